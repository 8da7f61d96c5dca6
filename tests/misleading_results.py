"""Optimizers whose steps return numbers, give results to `out=`, or make tensors of numbers."""

from __future__ import annotations

from math import sqrt

import torch
from misleading_base import OneByOne, misleads


@misleads("right")
class ReturnsZero(OneByOne):
    """A step that returns 0.0, as one does that begins with `loss = 0.0` and gets no closure."""

    def step(self):
        super().step()
        return 0.0

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])


@misleads("right")
class ReturnsRate(OneByOne):
    """A step that returns a number that changes from step to step."""

    def begin(self):
        self.count = 0

    def step(self):
        super().step()
        self.count += 1
        return self.param_groups[0]["lr"] / self.count

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])


@misleads("refused")
class ReturnsLostNumber(OneByOne):
    """A step that returns a number whose origin is lost (`from math import sqrt`)."""

    def step(self):
        super().step()
        return sqrt(self.param_groups[0]["lr"])

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])


@misleads("refused")
class ReturnsNorm(OneByOne):
    """A step that returns a tensor."""

    def step(self):
        super().step()
        return self.parameters[0].norm()

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])


@misleads("right")
class OutOfNothing(OneByOne):
    """`out=None`, as functions of torch have it that call others."""

    def update(self, p, state, group):
        direction = torch.nn.functional.normalize(p.grad, dim=0)
        p.sub_(torch.mul(direction, group["lr"], out=None))
