"""Optimizers whose steps return numbers, give results to `out=`, or make tensors of numbers."""

from __future__ import annotations

import math
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


@misleads("right")
class TensorOfNumbers(OneByOne):
    """One tensor of the step sizes of all parameters, made of numbers of their state."""

    def step(self):
        stepped = [p for p in self.parameters if p.grad is not None]
        sizes = []
        for p in stepped:
            self.state[p]["k"] = self.state[p].get("k", 0) + 1
            sizes.append(self.param_groups[0]["lr"] / self.state[p]["k"])
        with torch.no_grad():
            for p, size in zip(stepped, torch.tensor(sizes, dtype=torch.float32).unbind(), strict=True):
                p.sub_(p.grad * size)


@misleads("refused")
class TensorOfLostNumbers(OneByOne):
    """A tensor of numbers whose origin is lost (`from math import sqrt`)."""

    def update(self, p, state, group):
        p.sub_(p.grad * torch.tensor([0.5, sqrt(group["lr"])])[1])


@misleads("right")
class SumOfNumbers(OneByOne):
    """A tensor of as many numbers as there are gradients, summed up."""

    def step(self):
        rates = [self.param_groups[0]["lr"] for p in self.parameters if p.grad is not None]
        self.rate = torch.tensor(rates).sum()
        super().step()
        del self.rate

    def update(self, p, state, group):
        p.sub_(p.grad * self.rate)


@misleads("right")
class CountInOneElement(OneByOne):
    """The step counts in a tensor of one element, and takes its root by `math`."""

    def step(self):
        if "k" not in self.state:
            self.state["k"] = torch.tensor([0])
        self.rate = self.param_groups[0]["lr"] * math.pow(self.state["k"] + 1, 0.5)
        super().step()
        self.state["k"] += 1
        del self.rate

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=self.rate)
