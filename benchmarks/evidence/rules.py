"""The update rules that workloads train with, and what state each keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ADAMW", "LION", "SGD", "Lion", "Rule"]


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al., arXiv 2302.06675), with decoupled weight decay."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                exp_avg = state["exp_avg"]
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(exp_avg.lerp(parameter.grad, 1 - beta1).sign(), alpha=-lr)
                exp_avg.lerp_(parameter.grad, 1 - beta2)


@dataclass(frozen=True)
class Rule:
    """`make`: parameters and learning rate -> optimizer, as users write it; `fused`: what makes torch's own step fast.

    slots: name of a state entry that is shaped like its parameter -> whether it is signed.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer]
    slots: Mapping[str, bool]
    fused: Mapping[str, Any]


def _adamw(parameters: list[Tensor], lr: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, **options)


def _sgd(parameters: list[Tensor], lr: float, momentum: float = 0.9, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=5e-4, **options)


ADAMW = Rule("AdamW", _adamw, {"exp_avg": True, "exp_avg_sq": False}, {"fused": True})
SGD = Rule("SGD", _sgd, {"momentum_buffer": True}, {"fused": True})
LION = Rule("Lion", Lion, {"exp_avg": True}, {})
