"""Fine-tuning of a pretrained sentence encoder by low-rank adapters: every trained tensor has under 4,096 elements."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from evidence.minilm import WIDTH, Classifier
from evidence.workloads import finetune

RANK = 4


class Adapted(nn.Module):
    """A layer that stays as it is, plus a product of two thin matrices, at first zero (Hu et al., arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(RANK, WIDTH) / WIDTH**0.5)
        self.up = nn.Parameter(torch.zeros(WIDTH, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def adapted_classifier() -> nn.Module:
    """Return the classifier with adapters on queries, keys, values and what attention puts out; only they and the head train."""
    model = Classifier().requires_grad_(False)
    model.head.requires_grad_(True)
    for layer in model.layers:
        for name in ("query", "key", "value", "attended"):
            setattr(layer, name, Adapted(getattr(layer, name)))
    return model


WORKLOAD = replace(
    finetune.WORKLOAD,
    name="lora",
    about=f"{finetune.WORKLOAD.about}; adapters of rank {RANK} on its attention and the head are trained alone",
    model=adapted_classifier,
    lr=4e-3,
)
