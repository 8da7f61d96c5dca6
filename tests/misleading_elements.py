"""Optimizers that make Python numbers of the elements of tensors, which a recorder does not know."""

from __future__ import annotations

import copy
import math
from math import sqrt

import numpy as np
import torch
from misleading_base import OneByOne, misleads


@misleads("right")
class ItemOfNorm(OneByOne):
    """A norm as a number, in arithmetic with others."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        norm = p.grad.norm().item()
        scale = 0.5 / math.sqrt(1.0 + norm**2) + 2 * group["lr"] / (abs(-norm) + state["k"])
        p.sub_(p.grad, alpha=group["lr"] * scale)


@misleads("right")
class ItemOfChangedState(OneByOne):
    """The mean of state that the step has changed, as a number, in a rule that is not elementwise."""

    def update(self, p, state, group):
        if not state:
            state["m"] = torch.zeros_like(p)
        state["m"].mul_(0.9).add_(p.grad)
        mean = state["m"].abs().mean().item()
        p.sub_(state["m"].sign().mul_(mean), alpha=group["lr"])


@misleads("right")
class MathOfTensor(OneByOne):
    """A function of `math` of a tensor."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / math.sqrt(p.norm() + 1.0))


@misleads("right")
class LargerOfNorm(OneByOne):
    """`max` and `min` of norms, as tensors and as numbers, and plain numbers."""

    def update(self, p, state, group):
        norm = p.grad.norm()
        size = max(0.5, min(norm, 6.0)) / max([p.norm().item(), 1.0, group["lr"]])
        p.sub_(p.grad / min(1.0, size, 1.5), alpha=max(group["lr"], 0.012))


@misleads("right")
class SumOfItems(OneByOne):
    """The sum of numbers of all parameters."""

    def step(self):
        self.norm = sum([p.grad.abs().max().item() for p in self.parameters if p.grad is not None]) ** 0.5
        super().step()
        del self.norm

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / (1.0 + self.norm))


class Refused(OneByOne):
    """Uses a number of elements in a way that can't be followed."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scale(p.grad.norm(), p.grad.norm().item(), p, state, group))


@misleads("refused")
class BranchOnItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 0.5 if number > 4.0 else 1.0


@misleads("refused")
class TruthOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 1.0 / (number or 1.0)


@misleads("refused")
class FloatOfTensor(Refused):
    def scale(self, tensor, number, p, state, group):
        return 1.0 / float(tensor)


@misleads("refused")
class FloatOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 1.0 / float(number)


@misleads("refused")
class ImportedSqrtOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 1.0 / sqrt(number)


@misleads("refused")
class ImportedSqrtOfItemAndRate(Refused):
    """A lost number among numbers that can be followed."""

    def scale(self, tensor, number, p, state, group):
        return group["lr"] * sqrt(number)


@misleads("refused")
class NumpyOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return float(np.sqrt(number))


@misleads("refused")
class NumpyMaximumOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 0.5 if np.maximum(number, 1.0) > 2.0 else 1.0


@misleads("refused")
class TextOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 0.1 * len(f"{number:.0f}")


@misleads("refused")
class RoundedItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return 1.0 / round(number + 1.0)


@misleads("refused")
class SortedItems(Refused):
    def scale(self, tensor, number, p, state, group):
        return sorted([number, 1.0])[0]


@misleads("refused")
class TensorOfItem(Refused):
    def scale(self, tensor, number, p, state, group):
        return torch.tensor([number, 1.0])[0]


@misleads("refused")
class ItemAndHost(Refused):
    def scale(self, tensor, number, p, state, group):
        return (torch.tensor(group["lr"]) * number).item()


@misleads("right")
class ItemInState(Refused):
    """State that is a number of elements, which the next step reads."""

    def scale(self, tensor, number, p, state, group):
        state["norm"] = 0.5 * state.get("norm", 0.0) + number
        return 1.0 / (1.0 + state["norm"])


@misleads("right")
class ItemInGroup(OneByOne):
    """A group keeps a number of elements of all parameters, of before the step."""

    def step(self):
        before = self.param_groups[0].get("norm", 0.0)
        norm = sum(p.norm().item() for p in self.parameters if p.grad is not None)
        self.param_groups[0]["norm"] = 0.5 * before + norm
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / (1.0 + self.param_groups[0]["norm"]))


@misleads("right")
class TensorInGroup(Refused):
    """A group keeps a norm of the parameter that was stepped last, as a tensor."""

    def scale(self, tensor, number, p, state, group):
        before = group.get("norm", 0.0)
        group["norm"] = p.norm() + 0.5 * tensor
        return 1.0 / (1.0 + before)


@misleads("refused")
class TensorInGroupAndState(Refused):
    """A group and the state keep the same tensor."""

    def scale(self, tensor, number, p, state, group):
        group["norm"] = state["norm"] = p.norm() + tensor
        return 1.0


@misleads("right")
class BranchOnItemOfLastStep(Refused):
    """What the last step kept is a number that the host knows."""

    def scale(self, tensor, number, p, state, group):
        was_long = state.get("norm", 0.0) > 4.0
        state["norm"] = number
        return 0.5 if was_long else 1.0


@misleads("refused")
class ChangesChoice(Refused):
    """What `max` returns is changed: it may be the tensor."""

    def scale(self, tensor, number, p, state, group):
        max(tensor, torch.zeros(())).mul_(0.5)
        return 1.0 / (1.0 + tensor)


@misleads("refused")
class ChangesChosen(Refused):
    """A tensor is changed after `max` may have returned it."""

    def scale(self, tensor, number, p, state, group):
        chosen = max(1e-3, tensor)
        tensor.mul_(0.5)
        return 1.0 / (1.0 + chosen)


@misleads("refused")
class ChoiceInState(Refused):
    def scale(self, tensor, number, p, state, group):
        state["norm"] = max(tensor, 4.0)
        return 1.0


@misleads("refused")
class ImportedSqrtDecides(Refused):
    """A number that is lost decides."""

    def scale(self, tensor, number, p, state, group):
        return 0.5 if sqrt(number) > 2.0 else 1.0


@misleads("right")
class IsFloat(Refused):
    """The type of a number of elements, clones of it, and numbers of numpy."""

    def scale(self, tensor, number, p, state, group):
        assert isinstance(number, float) and not isinstance(number, int)
        (doubled,) = torch._foreach_mul([p.grad], [copy.copy(number)])
        return 1.0 / (1.0 + np.float64(2.0) * number) + doubled.sum().item() * 1e-6 * number.real
