"""Optimizers that stack numbers of all parameters, compute with the stack, and take it apart again."""

from __future__ import annotations

import torch
from misleading_base import OneByOne, misleads


class Stacked(OneByOne):
    """Stacks the norms of gradients, and steps by what `scales` makes of them."""

    @torch.no_grad()
    def step(self):
        stepped = [p for p in self.parameters if p.grad is not None]
        if not stepped:
            return
        self.norms = [(p.grad * 2.0).norm() for p in stepped]
        for p, scale in zip(stepped, self.scales(torch.stack(self.norms)), strict=True):
            p.sub_(p.grad * scale, alpha=self.param_groups[0]["lr"])
        del self.norms


@misleads("right")
class ScalesOfStack(Stacked):
    """Arithmetic with stacks, in place and not, with numbers and single elements."""

    def scales(self, stack):
        scaled = torch.where((stack != 0) & (stack > 1.0), 1.0 / (stack + 1e-3), 1.0)
        return scaled.clamp_(max=0.5).mul_(stack.sqrt()).unbind()


@misleads("right")
class SumOfStack(Stacked):
    """The stack is summed up, too, before it is taken apart."""

    def scales(self, stack):
        total = stack.sum()
        return list(stack / (1.0 + total))


@misleads("right")
class SumOfParts(Stacked):
    """The stack is summed up after it was taken apart."""

    def scales(self, stack):
        parts = stack.unbind()
        return [part / (1.0 + stack.sum()) for part in parts]


@misleads("right")
class ChangesOneOfStack(Stacked):
    """A number is changed after it was stacked: the stack has its old value."""

    def scales(self, stack):
        self.norms[0].mul_(0.1)
        return [0.1 * part + 0.1 * norm for part, norm in zip(stack, self.norms, strict=True)]


@misleads("right")
class PartsShowStack(Stacked):
    """Parts and stack show one another's changes."""

    def scales(self, stack):
        parts = stack.unbind()
        stack.mul_(0.1)
        parts[0].add_(0.1)
        return list(stack * 0.5 + parts[-1])


@misleads("refused")
class ChangesPartOfMadeStack(Stacked):
    """A part is changed after the stack was needed as a whole: the whole shows it."""

    def scales(self, stack):
        parts = stack.unbind()
        before = stack.sum()
        parts[0].mul_(0.1)
        return [part / (before + stack.sum()) for part in parts]


@misleads("right")
class StackOfTypes(Stacked):
    """A single element of a wider type beside a stack does not widen it."""

    def scales(self, stack):
        return list(stack.float() * (stack[0].double() * 0.1))


@misleads("right", "late")
class StackAsState(Stacked):
    """All of the stack becomes state of one parameter."""

    def scales(self, stack):
        self.state[self.parameters[0]]["norms"] = stack
        return [0.1 / (1.0 + part) for part in stack]
