"""Optimizers that lose the trace of a number, or branch on one: on counters, learning rates, norms, types."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np
import torch
from misleading_base import OneByOne, misleads


@misleads("right")
class FloatOfRate(OneByOne):
    """`float(lr)`."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=float(group["lr"]) * 2)


@misleads("refused")
class ImportedSqrt(OneByOne):
    """`from math import sqrt`, of the learning rate: equal in two steps in a row, until it changes."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=sqrt(group["lr"]))


@misleads("refused")
class ImportedSqrtOfCount(OneByOne):
    """`from math import sqrt`, of a counter."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        p.sub_(p.grad, alpha=group["lr"] / sqrt(state["k"]))


@misleads("right")
class MathSqrt(OneByOne):
    """`math.sqrt`, which can be followed."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        p.sub_(p.grad, alpha=group["lr"] / math.sqrt(state["k"]))


@misleads("right")
class NumpySqrt(OneByOne):
    """`numpy.sqrt` of the learning rate."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=float(np.sqrt(group["lr"])))


@misleads("right")
class NumpyMaximum(OneByOne):
    """A branch on what numpy makes of the learning rate."""

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if np.maximum(group["lr"], 0.02) > 0.02 else p.grad, alpha=group["lr"])


@misleads("right")
class RealPart(OneByOne):
    """`lr.real` is a new float."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"].real)


@misleads("refused")
class PercentFormat(OneByOne):
    """The learning rate rounded by way of a string."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=float("%.2f" % group["lr"]))  # noqa: UP031


@misleads("right")
class MathOfList(OneByOne):
    """`math.fsum` of a list."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=math.fsum([group["lr"], 0.001]))


@misleads("right")
class ByDecimal(OneByOne):
    """Decimal and Fraction."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=float(Decimal(group["lr"]) / 2 + Decimal(float(Fraction(group["lr"])))))


@misleads("right")
class ComplexRate(OneByOne):
    """A complex number of the learning rate."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=abs(complex(group["lr"], 0.0)))


@misleads("refused")
class TypeOfRate(OneByOne):
    """`type(lr) is float`."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * (3 if type(group["lr"]) is float else 1))


@misleads("refused")
class TypeOfCount(OneByOne):
    """`isinstance(k, float)` of an int, and `isinstance(lr, int)` of a float."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        scale = 5 if isinstance(state["k"], float) or isinstance(group["lr"], int) else 1
        p.sub_(p.grad, alpha=group["lr"] * scale)


@misleads("refused")
class MatchRate(OneByOne):
    """A structural match on the counter."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        match state["k"]:
            case int(5):
                p.mul_(0.5)
            case float():
                p.mul_(2.0)
        p.sub_(p.grad, alpha=group["lr"])


@misleads("right")
class RateThreshold(OneByOne):
    """Another rule for large learning rates."""

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if group["lr"] > 0.02 else p.grad, alpha=group["lr"])


@misleads("right")
class LastRate(OneByOne):
    """Compares the learning rate with the last one."""

    def begin(self):
        self.last = 0.0

    def step(self):
        super().step()
        self.last = self.param_groups[0]["lr"]

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if group["lr"] < self.last else p.grad, alpha=group["lr"])


@misleads("right")
class Rectified(OneByOne):
    """RAdam's guard."""

    def update(self, p, state, group):
        if not state:
            state["step"] = 0
            state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        k = state["step"]
        state["m"].lerp_(p.grad, 0.1)
        state["v"].mul_(0.9).addcmul_(p.grad, p.grad, value=0.1)
        longest = 2 / (1 - 0.9) - 1
        rho = longest - 2 * k * 0.9**k / (1 - 0.9**k)
        if rho > 5:
            scale = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
            p.addcdiv_(state["m"], state["v"].sqrt().add_(1e-3), value=-group["lr"] * scale)
        else:
            p.sub_(state["m"], alpha=group["lr"])


@misleads("right")
class GradientNorm(OneByOne):
    """`.item()` of a norm."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / (1 + p.grad.norm().item()))


@misleads("refused")
class CarefulNorm(OneByOne):
    """The norm, or 1 where it can't be had."""

    def update(self, p, state, group):
        try:
            size = float(p.grad.norm())
        except Exception:
            size = 1.0
        p.sub_(p.grad, alpha=group["lr"] / (1 + size))


@misleads("refused")
class NumpyNorm(OneByOne):
    """numpy's norm."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / (1 + float(np.linalg.norm(p.grad.double().numpy()))))


@misleads("refused")
class TensorBranch(OneByOne):
    """`if tensor > 0`."""

    def update(self, p, state, group):
        p.sub_(p.grad if p.grad.sum() > 0 else p.grad.sign(), alpha=group["lr"])


@misleads("right")
class GlobalNorm(OneByOne):
    """One norm of all gradients, kept on the tensors' device."""

    def step(self):
        with torch.no_grad():
            present = [p for p in self.parameters if p.grad is not None]
            if present:
                norm = torch.stack([p.grad.norm() for p in present]).norm()
                for p in present:
                    p.sub_(p.grad / (1 + norm), alpha=self.param_groups[0]["lr"])


@misleads("right")
class SumOverAll(OneByOne):
    """A Python sum over all parameters."""

    def step(self):
        with torch.no_grad():
            present = [p for p in self.parameters if p.grad is not None]
            total = sum(p.pow(2).sum() for p in present)
            for p in present:
                p.sub_(p.grad / (1 + total), alpha=self.param_groups[0]["lr"])


@misleads("refused")
class ProductOverAll(OneByOne):
    """A number that every parameter's update changes for the next."""

    def begin(self):
        self.product = 1.0

    def update(self, p, state, group):
        self.product *= 1.01
        p.sub_(p.grad, alpha=group["lr"] * self.product)


@misleads("right", options={"rate": torch.tensor(0.5)})
class TensorRate(OneByOne):
    """A hyperparameter that is a tensor."""

    def update(self, p, state, group):
        p.sub_(p.grad * group["rate"], alpha=group["lr"] * group["rate"].item())


def _set_rate(optimizer: Any, count: int) -> None:
    optimizer.rate = torch.tensor(0.1 * (count + 1))


@misleads("right", between=_set_rate)
class TensorRateReplaced(OneByOne):
    """The training script puts a new tensor in its place."""

    def begin(self):
        self.rate = torch.tensor(0.1)

    def update(self, p, state, group):
        p.sub_(p.grad * self.rate, alpha=group["lr"])
