"""Optimizers with objects, functions and randomness that a recorder may not see change."""

from __future__ import annotations

import copy
import itertools
import random
from collections import OrderedDict, deque
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from misleading_base import OneByOne, misleads
from torch import Tensor


class _Counter:
    """An object with a number."""

    k = 0


@misleads("right")
class CounterObject(OneByOne):
    """The step counts in an object of its own, and switches late."""

    def begin(self):
        self.counter = _Counter()

    def step(self):
        self.counter.k += 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.counter.k < 7 else p.grad.sign(), alpha=group["lr"])


@misleads("refused")
class CounterGenerator(OneByOne):
    """The step counts with `itertools.count`, and switches late."""

    def begin(self):
        self.counter, self.k = itertools.count(), 0

    def step(self):
        self.k = next(self.counter)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.k < 7 else p.grad.sign(), alpha=group["lr"])


@misleads("refused")
class CounterDeque(OneByOne):
    """The step remembers learning rates in a deque, and switches when it is full."""

    def begin(self):
        self.rates = deque(maxlen=6)

    def step(self):
        self.rates.append(1)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if len(self.rates) < 6 else p.grad.sign(), alpha=group["lr"])


class Phase(Enum):
    """Where training is."""

    COLD = 0
    WARM = 1


@misleads("late")
class EnumPhase(OneByOne):
    """An attribute is an Enum's member, and the step changes it."""

    def begin(self):
        self.phase, self.k = Phase.COLD, 0

    def step(self):
        super().step()
        self.k += 1
        self.phase = Phase.WARM if self.k >= 3 else Phase.COLD

    def update(self, p, state, group):
        p.sub_(p.grad if self.phase is Phase.COLD else p.grad.sign(), alpha=group["lr"])


def _gentle(p: Tensor, lr: float) -> None:
    p.sub_(p.grad, alpha=lr)


def _harsh(p: Tensor, lr: float) -> None:
    p.sub_(p.grad.sign(), alpha=lr)


@misleads("late")
class FunctionSwitch(OneByOne):
    """An attribute is a function, and the step puts another in its place."""

    def begin(self):
        self.rule, self.k = _gentle, 0

    def step(self):
        super().step()
        self.k += 1
        self.rule = _harsh if self.k >= 3 else _gentle

    def update(self, p, state, group):
        self.rule(p, group["lr"])


def _swap_rule(optimizer: Any, count: int) -> None:
    optimizer.rule = _harsh if count >= 4 else _gentle


@misleads("right", between=_swap_rule)
class FunctionFromOutside(OneByOne):
    """The training script changes the function."""

    def begin(self):
        self.rule = _gentle

    def update(self, p, state, group):
        self.rule(p, group["lr"])


def _set_scale(optimizer: Any, count: int) -> None:
    optimizer.config.scale = 1.0 if count < 4 else 4.0


@misleads("right", between=_set_scale)
class ConfigFromOutside(OneByOne):
    """The training script changes a number in an object that the optimizer holds."""

    def begin(self):
        self.config = SimpleNamespace(scale=1.0)

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.config.scale)


def _set_flag(optimizer: Any, count: int) -> None:
    optimizer.flags["sign"] = count >= 4


@misleads("right", between=_set_flag)
class OrderedFlags(OneByOne):
    """The training script changes a flag in an ordered dictionary."""

    def begin(self):
        self.flags = OrderedDict(sign=False)

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if self.flags["sign"] else p.grad, alpha=group["lr"])


def _set_nested_flag(optimizer: Any, count: int) -> None:
    optimizer.settings[0]["sign"] = count >= 4


@misleads("right", between=_set_nested_flag)
class FlagsInTuple(OneByOne):
    """The training script changes a flag in a dictionary in a tuple."""

    def begin(self):
        self.settings = ({"sign": False},)

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if self.settings[0]["sign"] else p.grad, alpha=group["lr"])


GLOBALS = {"scale": 1.0, "count": 0}


def _reset_globals() -> None:
    GLOBALS.update(scale=1.0, count=0)
    Counted.count = 0
    random.seed(0)


def _set_global(optimizer: Any, count: int) -> None:
    GLOBALS["scale"] = 1.0 if count < 4 else 4.0


@misleads("right", reset=_reset_globals, between=_set_global)
class GlobalScale(OneByOne):
    """The training script changes a number of the module."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * GLOBALS["scale"])


@misleads("refused", reset=_reset_globals)
class GlobalCounter(OneByOne):
    """The step counts in the module."""

    def update(self, p, state, group):
        GLOBALS["count"] += 1
        p.sub_(p.grad, alpha=group["lr"] / GLOBALS["count"])


@misleads("refused", reset=_reset_globals)
class Counted(OneByOne):
    """The step counts in its class, and switches late."""

    count = 0

    def step(self):
        type(self).count += 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.count < 7 else p.grad.sign(), alpha=group["lr"])


@misleads("refused", reset=_reset_globals)
class PythonRandom(OneByOne):
    """Python's random numbers."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * random.random())


@misleads("refused", reset=_reset_globals)
class PythonRandomBranch(OneByOne):
    """A branch that Python's random numbers take seldom."""

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if random.random() < 0.2 else p.grad, alpha=group["lr"])


@misleads("refused")
class TorchRandom(OneByOne):
    """torch's random numbers."""

    def update(self, p, state, group):
        p.sub_(p.grad * torch.rand_like(p), alpha=group["lr"])


@misleads("right")
class TorchDropout(OneByOne):
    """torch's random numbers under a rarer name."""

    def update(self, p, state, group):
        p.sub_(torch.alpha_dropout(p.grad, 0.5, True), alpha=group["lr"])


@misleads("right")
class HookList(OneByOne):
    """A list of functions whose name ends as torch's hooks do."""

    def begin(self):
        self.gradient_hooks = [lambda g: g.sign()]

    def update(self, p, state, group):
        grad = p.grad
        for hook in self.gradient_hooks:
            grad = hook(grad)
        p.sub_(grad, alpha=group["lr"])


@misleads("right")
class SchedulersName(OneByOne):
    """Counts under a name that schedulers use too."""

    def step(self):
        self._step_count = getattr(self, "_step_count", 0) + 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / self._step_count)


@misleads("right", options={"fused": True})
class OwnFused(OneByOne):
    """A flag that torch's optimizers have too, with another meaning."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * (3 if group["fused"] else 1))


@misleads("refused")
class RemembersParameter(OneByOne):
    """An attribute is one of the parameters, and the step takes the next."""

    def begin(self):
        self.chosen = self.parameters[0]

    def step(self):
        super().step()
        index = next(i for i, q in enumerate(self.parameters) if q is self.chosen)
        self.chosen = self.parameters[(index + 1) % len(self.parameters)]

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if p is self.chosen else p.grad, alpha=group["lr"])


@misleads("refused")
class InnerOptimizer(OneByOne):
    """Another optimizer does the work."""

    def begin(self):
        self.inner = torch.optim.SGD(self.parameters, lr=0.01, momentum=0.9)

    def step(self):
        self.inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self.inner.step()


@misleads("right")
class CopiesItself(OneByOne):
    """The step works on copies of its own options."""

    def update(self, p, state, group):
        options = copy.deepcopy({k: v for k, v in group.items() if k != "params"})
        p.sub_(p.grad, alpha=options["lr"])
