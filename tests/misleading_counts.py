"""Optimizers that count and schedule with numbers of unusual types and in unusual places."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from misleading_base import OneByOne, misleads


@misleads("refused")
class NumpyCount(OneByOne):
    """A counter that is numpy's, with a late switch."""

    def begin(self):
        self.k = np.int64(0)

    def step(self):
        self.k = self.k + 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.k < 7 else p.grad.sign(), alpha=group["lr"])


@misleads("refused")
class NumpyCountInState(OneByOne):
    """The same in the state, beside a tensor."""

    def update(self, p, state, group):
        if not state:
            state["k"], state["m"] = np.float64(0), torch.zeros_like(p)
        state["k"] = state["k"] + 1
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(state["m"] if state["k"] < 6 else p.grad, alpha=group["lr"])


@misleads("refused")
class FractionCount(OneByOne):
    """A counter that is a Fraction, with a late switch."""

    def begin(self):
        self.k = Fraction(0)

    def step(self):
        self.k = self.k + Fraction(1, 3)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.k < 2 else p.grad.sign(), alpha=group["lr"])


class Moments(NamedTuple):
    """Two numbers."""

    k: int
    rate: float


@misleads("refused")
class NamedNumbers(OneByOne):
    """Numbers in a named tuple that each step replaces."""

    def begin(self):
        self.numbers = Moments(0, 1.0)

    def step(self):
        self.numbers = Moments(self.numbers.k + 1, self.numbers.rate * 0.9)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.numbers.k < 7 else p.grad.sign(), alpha=group["lr"] * self.numbers.rate)


@misleads("refused")
class PairOfNumbers(OneByOne):
    """Numbers in a tuple that each step replaces."""

    def begin(self):
        self.pair = (0, 1.0)

    def step(self):
        self.pair = (self.pair[0] + 1, self.pair[1] * 0.9)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.pair[0] < 7 else p.grad.sign(), alpha=group["lr"] * self.pair[1])


@misleads("right")
class ListIndex(OneByOne):
    """A table of scales, by the counter."""

    def begin(self):
        self.scales, self.k = [1.0, 2.0, 0.5], 0

    def step(self):
        super().step()
        self.k += 1

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scales[self.k % 3])


@misleads("refused")
class ScheduleIterator(OneByOne):
    """Scales come from an iterator: the first ones are equal."""

    def begin(self):
        self.scales = iter([1.0] * 5 + [3.0] * 99)

    def step(self):
        self.scale = next(self.scales)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scale)


@misleads("right")
class Powers(OneByOne):
    """`pow`, `divmod`, `round`, `min`, `abs` and a comparison chain on numbers."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        quotient, rest = divmod(state["k"], 4)
        scale = pow(0.9, state["k"]) + round(1.3 * quotient) + min(rest, 2) + abs(-group["lr"])
        p.sub_(p.grad if 2 <= state["k"] < 6 else p.grad.sign(), alpha=group["lr"] * scale)
