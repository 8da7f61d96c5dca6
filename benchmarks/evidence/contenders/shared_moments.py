"""Rivals that keep one second moment for many elements: AdamW otherwise, re-implemented in eager torch from papers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baoc_compile.kernels.codecs.optimal_levels import nearest_levels
from evidence.contenders.contender import Contender, Setting
from evidence.rules import ADAMW

BINS, LEVELS = 4096, 256
BLOCK = 512  # elements that share a scale of Gefen-X's momentum


class SharedAdamW(torch.optim.Optimizer, ABC):
    """AdamW whose second moments are shared as subclasses say; the momentum is in full precision unless they say."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.steps += 1
        if self.steps == 1:
            self.begin()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                second = self.second_moment(state, gradient.square(), beta2) / (1 - beta2**self.steps)
                first = self.momentum(state, parameter).lerp(gradient, 1 - beta1)
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.addcdiv_(first, second.sqrt() + group["eps"], value=-lr / (1 - beta1**self.steps))
                self.store(state, first)

    def parameters(self) -> list[Any]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def begin(self) -> None:
        """Make what depends on the first gradients."""

    @abstractmethod
    def second_moment(self, state: dict[str, Tensor], squared: Tensor, beta2: float) -> Tensor:
        """Advance the shared moments by the squared gradient; return them for every element."""

    def momentum(self, state: dict[str, Tensor], like: Tensor) -> Tensor:
        return state.get("momentum", torch.zeros_like(like))

    def store(self, state: dict[str, Tensor], momentum: Tensor) -> None:
        state["momentum"] = momentum


def _average(state: dict[str, Tensor], name: str, value: Tensor, beta: float) -> Tensor:
    """Advance an exponential moving average that begins at zero."""
    state[name] = state.get(name, torch.zeros_like(value)).lerp(value, 1 - beta)
    return state[name]


class AdamMini(SharedAdamW):
    """One second moment for every row of a matrix: output neuron or token (Zhang et al., arXiv 2406.16793)."""

    def second_moment(self, state: dict[str, Tensor], squared: Tensor, beta2: float) -> Tensor:
        of_rows = squared.flatten(1).mean(1) if squared.ndim > 1 else squared
        return _average(state, "second", of_rows, beta2).view(-1, *[1] * (squared.ndim - 1)).expand_as(squared)


class GefenX(SharedAdamW):
    """int8 momentum with a scale a block, and second moments factored into those of rows and of columns."""

    def second_moment(self, state: dict[str, Tensor], squared: Tensor, beta2: float) -> Tensor:
        if squared.ndim < 2:
            return _average(state, "second", squared, beta2)
        matrix = squared.flatten(1)
        rows = _average(state, "rows", matrix.mean(1), beta2)
        columns = _average(state, "columns", matrix.mean(0), beta2)
        return torch.outer(rows / rows.mean().clamp(min=1e-30), columns).view_as(squared)

    def momentum(self, state: dict[str, Tensor], like: Tensor) -> Tensor:
        if "codes" not in state:
            return torch.zeros_like(like)
        values = state["codes"].float() * (state["scales"] / 127)
        return values.flatten()[: like.numel()].view_as(like)

    def store(self, state: dict[str, Tensor], momentum: Tensor) -> None:
        block = min(BLOCK, momentum.numel())
        blocks = F.pad(momentum.flatten(), (0, -momentum.numel() % block)).view(-1, block)
        state["scales"] = blocks.abs().amax(1, keepdim=True)
        state["codes"] = (blocks / state["scales"].clamp(min=1e-30) * 127).round().to(torch.int8)


def period(gradient: Tensor) -> int:
    """Return how many consecutive elements share a moment, found in one gradient (arXiv 2606.13894).

    Of the divisors, the one that is a local maximum of the mean difference between adjacent blocks' mean logarithms.
    """
    logarithms = (gradient.flatten().square() + 1e-12).log()
    count = len(logarithms)
    divisors = [p for p in range(1, count // 4 + 1) if count % p == 0]
    scores = [logarithms.view(-1, p).mean(1).diff().abs().mean().item() for p in divisors]
    peaks = [
        (score, p)
        for p, before, score, after in zip(divisors[1:], scores, scores[1:], scores[2:], strict=False)
        if p > 8 and before < score > after
    ]
    best = max(peaks, default=(0.0, 1))[1]
    return next((p for p in divisors if p > 1024 and best % p == 0), best)


class Gefen(SharedAdamW):
    """A second moment and a scale of the momentum for every block; the momentum's codes have levels learned at the start.

    One set of levels for all parameters is learned from the first gradients, by exact dynamic programming on a histogram.
    """

    def begin(self) -> None:
        counts = torch.zeros(BINS)
        for parameter in self.parameters():
            state = self.state[parameter]
            blocks = parameter.grad.view(-1, period(parameter.grad))
            state["codes"] = torch.zeros(blocks.shape, dtype=torch.uint8)
            state["scales"] = torch.zeros(len(blocks), 1)
            places = blocks / blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
            counts += torch.histc(places, BINS, -1, 1)
        levels = nearest_levels(np.linspace(-1, 1, BINS), counts.double().numpy(), LEVELS)
        levels[0], levels[-1] = -1.0, 1.0
        for parameter in self.parameters():
            self.state[parameter]["levels"] = self.levels = torch.from_numpy(levels).float()

    def second_moment(self, state: dict[str, Tensor], squared: Tensor, beta2: float) -> Tensor:
        blocks = squared.view(state["codes"].shape)
        of_blocks = _average(state, "second", blocks.mean(1, keepdim=True), beta2)
        return of_blocks.expand_as(blocks).reshape_as(squared)

    def momentum(self, state: dict[str, Tensor], like: Tensor) -> Tensor:
        return (self.levels[state["codes"].int()] * state["scales"]).view_as(like)

    def store(self, state: dict[str, Tensor], momentum: Tensor) -> None:
        blocks = momentum.view(state["codes"].shape)
        state["scales"] = blocks.abs().amax(1, keepdim=True)
        places = blocks / state["scales"].clamp(min=1e-30)
        middles = (self.levels[1:] + self.levels[:-1]) / 2
        state["codes"] = torch.bucketize(places, middles).to(torch.uint8)


def _made(optimizer: type[SharedAdamW]) -> dict[str, Callable[[Setting], Any]]:
    return {ADAMW.name: lambda setting: optimizer(setting.parameters, setting.lr)}


SHARED_MOMENTS = (
    Contender(
        "Gefen",
        "Gefen (arXiv 2606.13894), re-implemented in eager torch from the paper: second moments shared over blocks found in "
        "the first gradient, momentum of 8 bits with learned levels",
        _made(Gefen),
        factors=(0.35, 0.6, 1.0),
    ),
    Contender(
        "Gefen-X",
        "Gefen-X, re-implemented in eager torch as we read it: momentum of 8 bits with a scale for 512 elements, factored "
        "second moments",
        _made(GefenX),
    ),
    Contender(
        "Adam-mini",
        "Adam-mini (arXiv 2406.16793), re-implemented in eager torch: one second moment for every row of a matrix",
        _made(AdamMini),
    ),
)
