"""Optimizers that keep tensors in lists, dictionaries and objects of their state."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from misleading_base import OneByOne, misleads


@misleads("right")
class ListOfBuffers(OneByOne):
    """Two buffers in a list, changed in place."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["buffers"] = [torch.zeros_like(p), torch.ones(p.shape[0], dtype=p.dtype)]

    def update(self, p, state, group):
        first, second = state["buffers"]
        first.mul_(0.9).add_(p.grad)
        second.lerp_(p.grad.reshape(len(second), -1).square().mean(1), 0.1)
        p.sub_(first / second.sqrt().reshape(-1, *[1] * (p.ndim - 1)), alpha=group["lr"])


@misleads("right")
class ListMadeAtFirst(OneByOne):
    """The same, made at the first step, as attributes of an object, and replaced."""

    def update(self, p, state, group):
        if not state:
            state["kept"] = SimpleNamespace(m=torch.zeros_like(p), k=0)
        kept = state["kept"]
        kept.k += 1
        kept.m = kept.m * 0.9 + p.grad / kept.k
        p.sub_(kept.m, alpha=group["lr"])


@misleads("right")
class ListMadeAtSecond(OneByOne):
    """A list takes the place of None at the second step, and holds another tensor than at the first."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["buffers"] = [torch.zeros_like(p)]

    def update(self, p, state, group):
        state["buffers"] = [state["buffers"][0].mul(0.9).add_(p.grad)]
        p.sub_(state["buffers"][0], alpha=group["lr"])


@misleads("refused")
class ListTurns(OneByOne):
    """The buffers in a list change places."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["buffers"] = [torch.zeros_like(p), torch.zeros_like(p)]

    def update(self, p, state, group):
        state["buffers"].reverse()
        state["buffers"][0].mul_(0.9).add_(p.grad)
        p.sub_(state["buffers"][0], alpha=group["lr"])


@misleads("refused")
class ListGrows(OneByOne):
    """A list of all gradients so far."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["gradients"] = []

    def update(self, p, state, group):
        state["gradients"].append(p.grad.clone())
        p.sub_(sum(state["gradients"]), alpha=group["lr"])


@misleads("refused")
class NestedAndNot(OneByOne):
    """One tensor in the state, and in a list of the state."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["m"] = torch.zeros_like(p)
            self.state[p]["all"] = [self.state[p]["m"]]

    def update(self, p, state, group):
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(state["all"][0], alpha=group["lr"])


@misleads("refused")
class NestedView(OneByOne):
    """A list of the state holds a part of a tensor of the state."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["m"] = torch.zeros_like(p)
            self.state[p]["parts"] = [self.state[p]["m"][:2]]

    def update(self, p, state, group):
        state["m"].mul_(0.9).add_(p.grad)
        state["parts"][0].mul_(0.5)
        p.sub_(state["m"], alpha=group["lr"])


@misleads("right")
class SameTensorTwice(OneByOne):
    """One tensor in two places of a list."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["same"] = [torch.zeros_like(p)] * 2

    def update(self, p, state, group):
        state["same"][0].mul_(0.9).add_(p.grad)
        p.sub_(state["same"][1], alpha=group["lr"])


@misleads("refused")
class AttributeOfState(OneByOne):
    """An attribute refers to a tensor of the state."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["m"] = torch.zeros_like(p)
        self.held = [self.state[p]["m"] for p in self.parameters]

    def update(self, p, state, group):
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(next(m for m in self.held if m.shape == p.shape), alpha=group["lr"])


@misleads("right", options={"betas": (0.5, 0.9)})
class BuffersByRate(OneByOne):
    """Buffers under the numbers with which they decay."""

    def update(self, p, state, group):
        if not state:
            state["buffers"] = {beta: torch.zeros_like(p) for beta in group["betas"]}
        for beta in group["betas"]:
            p.sub_(state["buffers"][beta].mul_(beta).add_(p.grad), alpha=group["lr"] / 2)


@misleads("refused")
class BecomesSameTensor(OneByOne):
    """Two places of a list get the same tensor, an old one or a new one."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["pair"] = [torch.zeros_like(p), torch.zeros_like(p)]

    def update(self, p, state, group):
        pair = state["pair"]
        if p.ndim == 2:
            pair[1] = pair[0]
        else:
            pair[0] = pair[1] = pair[0] * 0.5
        pair[0].add_(p.grad)
        p.sub_(pair[1], alpha=group["lr"])
