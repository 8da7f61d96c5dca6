"""Optimizers that share state, keep buffers elsewhere, or write by way of views, `.data` and gradients."""

from __future__ import annotations

from typing import Any

import torch
from misleading_base import OneByOne, misleads


@misleads("refused")
class SharedCount(OneByOne):
    """One 0-dim tensor counts for all parameters."""

    def begin(self):
        count = torch.tensor(0.0)
        for p in self.parameters:
            self.state[p]["k"] = count

    def update(self, p, state, group):
        state["k"] += 1
        p.sub_(p.grad, alpha=group["lr"] / state["k"].item())


@misleads("refused")
class SharedDictionary(OneByOne):
    """One dictionary of numbers for all parameters."""

    def begin(self):
        shared = {"k": 0}
        for p in self.parameters:
            self.state[p]["shared"] = shared

    def update(self, p, state, group):
        state["shared"]["k"] += 1
        p.sub_(p.grad, alpha=group["lr"] / state["shared"]["k"])


@misleads("refused")
class SharedBuffer(OneByOne):
    """One buffer for all parameters of a shape, made at the first step."""

    def begin(self):
        self.state[self.parameters[0]]["m"] = self.shared = torch.zeros_like(self.parameters[0])

    def update(self, p, state, group):
        if p.shape == self.shared.shape:
            self.shared.mul_(0.9).add_(p.grad)
            p.sub_(state["m"], alpha=group["lr"])
        else:
            p.sub_(p.grad, alpha=group["lr"])


@misleads("right")
class GlobalState(OneByOne):
    """State under a string."""

    def begin(self):
        self.state["all"] = {"k": 0}

    def step(self):
        self.state["all"]["k"] += 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.state["all"]["k"] < 7 else p.grad.sign(), alpha=group["lr"])


@misleads("right")
class BuffersInAttribute(OneByOne):
    """Buffers by parameter in an attribute."""

    def begin(self):
        self.buffers = {p: torch.zeros_like(p) for p in self.parameters}

    def update(self, p, state, group):
        self.buffers[p].mul_(0.9).add_(p.grad)
        p.sub_(self.buffers[p], alpha=group["lr"])


@misleads("right")
class BuffersById(OneByOne):
    """Buffers by identity in an attribute, made at the first step."""

    def begin(self):
        self.buffers: dict[int, Any] = {}

    def update(self, p, state, group):
        buffer = self.buffers.setdefault(id(p), torch.zeros_like(p))
        buffer.mul_(0.9).add_(p.grad)
        p.sub_(buffer, alpha=group["lr"])


@misleads("right", options={"fresh": True, "k": 0})
class GroupFlag(OneByOne):
    """The step changes a flag and a counter of the group."""

    def step(self):
        super().step()
        for group in self.param_groups:
            group["fresh"] = False
            group["k"] += 1

    def update(self, p, state, group):
        p.sub_(p.grad if group["fresh"] else p.grad.sign(), alpha=group["lr"] / (1 + group["k"]))


@misleads("right")
class ByData(OneByOne):
    """Writes by way of `.data`."""

    def update(self, p, state, group):
        p.data.sub_(p.grad.data, alpha=group["lr"])
        p.data = p.data * 0.99


@misleads("refused")
class OldData(OneByOne):
    """`.data` from before an assignment keeps the old values."""

    def update(self, p, state, group):
        old = p.data
        p.data = p.data - group["lr"] * p.grad
        p.data = 0.5 * old + 0.5 * p.data


@misleads("refused")
class SharedData(OneByOne):
    """The parameter's data becomes the state itself, which then changes."""

    def update(self, p, state, group):
        if "z" not in state:
            state["z"] = p.clone()
        p.data = state["z"]
        state["z"].sub_(p.grad, alpha=group["lr"])


@misleads("right")
class ThroughViews(OneByOne):
    """Writes through views."""

    def update(self, p, state, group):
        flat = p.view(-1)
        p.sub_(p.grad, alpha=group["lr"])
        flat[: len(flat) // 2] *= 0.9
        p.data[0] = p.data[0] * 0.5
        p.view(-1)[-1] = 0.25


@misleads("right")
class ChangesGradient(OneByOne):
    """Changes the gradient in place."""

    def update(self, p, state, group):
        p.grad.mul_(0.5).add_(p, alpha=0.1)
        p.sub_(p.grad, alpha=group["lr"])


@misleads("refused")
class DropsGradient(OneByOne):
    """Drops the gradient."""

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])
        p.grad = None


@misleads("right")
class LooksAhead(OneByOne):
    """Nesterov's point, by way of a copy of the parameter."""

    def update(self, p, state, group):
        if not state:
            state["x"], state["k"] = p.clone(), 0
        state["k"] += 1
        ahead = state["x"].clone()
        state["x"].copy_(p - group["lr"] * p.grad)
        p.copy_(state["x"] + (state["k"] - 1) / (state["k"] + 2) * (state["x"] - ahead))


@misleads("right")
class MaxAndClamp(OneByOne):
    """`torch.max` of two tensors, `clamp`, and a number from one tensor's largest element."""

    def update(self, p, state, group):
        if not state:
            state["top"] = torch.zeros_like(p)
        state["top"] = torch.max(state["top"] * 0.9, p.grad.abs())
        p.sub_((p.grad / (state["top"] + 0.1)).clamp(-0.7, 0.7) / (1 + torch.max(p.grad)), alpha=group["lr"])


@misleads("right")
class ZippedLists(OneByOne):
    """Lists of parameters, gradients and state, stepped together and by foreach."""

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                present = [p for p in group["params"] if p.grad is not None]
                for p in present:
                    self.state[p].setdefault("m", torch.zeros_like(p))
                moments = [self.state[p]["m"] for p in present]
                for m, p in zip(moments, present, strict=True):
                    m.mul_(0.9).add_(p.grad)
                if present:
                    torch._foreach_add_(present, torch._foreach_mul(moments, -group["lr"]))


@misleads("right")
class InPlaceOut(OneByOne):
    """Results go to state by `out=`."""

    def update(self, p, state, group):
        if not state:
            state["m"] = torch.empty_like(p).copy_(p.grad)
        torch.lerp(state["m"], p.grad, 0.3, out=state["m"])
        torch.sub(p, state["m"], alpha=group["lr"], out=p)


class _Momentum(OneByOne):
    """Plain momentum."""

    def update(self, p, state, group):
        state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
        p.sub_(state["m"], alpha=group["lr"])


@misleads("right", "late")
class CallsItsBase(torch.optim.SGD):
    """The base class's step, then a decay."""

    def __init__(self, params, **options):
        super().__init__(params, lr=0.01, momentum=0.9, **options)

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"])


@misleads("right")
class DeletesState(_Momentum):
    """Starts again every fifth step."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        if state["k"] % 5 == 0:
            state["m"].zero_()
        super().update(p, state, group)


@misleads("right")
class PopsState(_Momentum):
    """Deletes the buffer every fifth step."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        if state["k"] % 5 == 0:
            state.pop("m")
        super().update(p, state, group)


@misleads("right", "late")
class DecaysAll(OneByOne):
    """Parameters without a gradient decay too."""

    def step(self):
        super().step()
        with torch.no_grad():
            for p in self.parameters:
                p.mul_(1 - self.param_groups[0]["lr"])

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"])


@misleads("right", "late")
class CountsAll(OneByOne):
    """Parameters without a gradient count too."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["k"] = 0

    def step(self):
        for p in self.parameters:
            self.state[p]["k"] += 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] / state["k"])


@misleads("right")
class ListsOfSmallType(OneByOne):
    """A list operation on bfloat16, which rounds its numbers as the operation on one tensor does not."""

    def update(self, p, state, group):
        direction = p.grad.bfloat16()
        torch._foreach_mul_([direction], [0.8164965])
        (direction,) = torch._foreach_mul([direction], 0.3)
        p.sub_(direction / torch.linalg.vector_norm(direction, dim=0), alpha=group["lr"])


@misleads("refused")
class SharedScaleShrinks(OneByOne):
    """A tensor of no parameter, which all read and which the step changes between them."""

    def step(self):
        self.scale = torch.ones(1)
        super().step()
        del self.scale

    def update(self, p, state, group):
        p.sub_(p.grad * self.scale, alpha=group["lr"])
        self.scale.mul_(0.5)


@misleads("right")
class SharedScaleGrows(OneByOne):
    """A tensor that earlier parameters read and later ones change, stepped from the last to the first."""

    def step(self):
        self.scale = torch.ones(1)
        for group in self.param_groups[::-1]:
            for p in group["params"][::-1]:
                if p.grad is not None:
                    self.update(p, self.state[p], group)
        del self.scale

    @torch.no_grad()
    def update(self, p, state, group):
        p.sub_(p.grad * self.scale, alpha=group["lr"])
        if p.ndim == 2 and p.shape[0] == 5:
            self.scale.add_(p.norm())
        else:
            p.sub_(p.sign() / p.norm(), alpha=group["lr"])
