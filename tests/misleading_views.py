"""Optimizers whose state is a view, or a number that is computed before all updates, and ones that write through views."""

from __future__ import annotations

import torch
from misleading_base import OneByOne, misleads


class Stacked(OneByOne):
    """Norms of all parameters in one tensor, of which each parameter's state gets a part."""

    @torch.no_grad()
    def step(self):
        stepped = [p for p in self.parameters if p.grad is not None]
        norms = torch.stack([p.norm() for p in stepped]).clamp_(max=10.0)
        for p, part in zip(stepped, self.parts(norms), strict=True):
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
            self.keep(p, part)

    def keep(self, p, part):
        if "norm" in self.state[p]:
            p.sub_(p.sign() * self.state[p]["norm"], alpha=1e-3)
        self.state[p]["norm"] = part


@misleads("right")
class PartsAsState(Stacked):
    """Every parameter has a part of its own."""

    def parts(self, norms):
        return list(norms)


@misleads("refused")
class SamePartAsState(Stacked):
    """All have the same."""

    def parts(self, norms):
        return [norms[:1] for _ in norms]


@misleads("right")
class PartsThatChange(Stacked):
    """Each has a part of its own, and a later change of the whole shows in it."""

    def parts(self, norms):
        parts = list(norms)
        norms.mul_(0.5)
        return parts


@misleads("refused")
class RowsThatChange(Stacked):
    """The same with rows of a tensor."""

    def parts(self, norms):
        table = norms.unsqueeze(1) * torch.ones(1, 2, dtype=norms.dtype)
        parts = [row[0] for row in table]
        table.mul_(0.5)
        return parts


@misleads("right")
class NormAsState(OneByOne):
    """State that is computed of the parameter as it was before the step."""

    def update(self, p, state, group):
        before = state.get("norm")
        state["norm"] = p.norm() / p.numel() ** 0.5
        p.sub_(p.grad if before is None else p.grad * before, alpha=group["lr"])


@misleads("right")
class NormOfAllAsState(OneByOne):
    """State that is computed of all parameters as they were before the step."""

    def step(self):
        with torch.no_grad():
            self.norm = sum(p.norm() for p in self.parameters if p.grad is not None)
        super().step()
        del self.norm

    def update(self, p, state, group):
        state["norm"] = self.norm * 0.5
        p.sub_(p.grad * state["norm"], alpha=group["lr"])


@misleads("right")
class NumberThenNorm(OneByOne):
    """State that is a Python number until the step replaces it."""

    def update(self, p, state, group):
        if not state:
            state["m"], state["norm"] = torch.zeros_like(p), 0.0
        state["norm"] = p.norm()
        state["m"].lerp_(p.grad, 0.1)
        p.sub_(state["m"], alpha=group["lr"])


@misleads("right")
class WritesParts(OneByOne):
    """A part of a tensor is written, and then the tensor is read."""

    def update(self, p, state, group):
        scale = torch.zeros(2)
        part = scale[:1]
        part.fill_(group["lr"])
        p.sub_(p.grad * scale.sum())
        flat = p.view(-1)
        flat[:2].mul_(0.9)
        p.sub_(p.sign(), alpha=group["lr"])


@misleads("right")
class WritesByIndex(OneByOne):
    """Elements that an attribute lists are written through a view."""

    def begin(self):
        self.indices = {p: torch.tensor([0, 2]) for p in self.parameters}

    def update(self, p, state, group):
        chosen = p.grad.reshape(-1).index_select(0, self.indices[p])
        p.view(-1).index_add_(0, self.indices[p], chosen, alpha=-group["lr"])


@misleads("refused")
class ParameterInAttribute(OneByOne):
    """An attribute shows a part of each parameter."""

    def begin(self):
        self.parts = {p: p.detach().view(-1)[:2] for p in self.parameters}

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])
        p.sub_(p.sign() * self.parts[p].sum(), alpha=1e-3)


@misleads("right")
class TotalInAttribute(OneByOne):
    """A tensor in an attribute is changed in place by all updates, and then read."""

    def begin(self):
        self.total = torch.zeros(1, dtype=self.parameters[0].dtype)

    def step(self):
        self.total.mul_(0.5)
        super().step()
        with torch.no_grad():
            for p in self.parameters:
                if p.grad is not None:
                    p.sub_(p.sign() / (1.0 + self.total), alpha=1e-3)

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])
        self.total.add_(p.square().sum())


@misleads("right")
class TotalReplaced(OneByOne):
    """A tensor in an attribute is replaced by another one."""

    def begin(self):
        self.total = torch.zeros(1, dtype=self.parameters[0].dtype)

    def step(self):
        with torch.no_grad():
            self.total = 0.5 * self.total + sum(p.grad.square().sum() for p in self.parameters if p.grad is not None)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad / (1.0 + self.total), alpha=group["lr"])


@misleads("refused")
class TotalsTurn(OneByOne):
    """Two tensors in attributes change places."""

    def begin(self):
        self.one, self.other = torch.zeros(1), torch.ones(1)

    def step(self):
        self.one, self.other = self.other, self.one
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad * self.one, alpha=group["lr"])
