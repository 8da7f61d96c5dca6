"""A workload: a model, its data, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evidence.rules import ADAMW, Rule

__all__ = ["Batch", "Workload", "validation_loss"]

#: What a model's forward takes; it returns the mean loss.
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Workload:
    """
    about: what is trained, on what.
    loss: what the loss is, with its unit.
    model: makes it; its parameters that require gradients are trained.
    load: the data of training, in whatever form `batches` takes, and the batches of validation, the same for all runs.
    batches: data, batch size, seed -> batches without end; the same seed gives the same ones.
    lr: the middle of the first grid of learning rates for the baseline.
    """

    name: str
    about: str
    loss: str
    model: Callable[[], nn.Module]
    load: Callable[[], tuple[Any, Sequence[Batch]]]
    batches: Callable[[Any, int, int], Iterator[Batch]]
    lr: float
    batch_size: int
    rule: Rule = ADAMW
    steps: int = 2000


@torch.no_grad()
def validation_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean over `batches`, which are of one size."""
    model.eval()
    losses = torch.stack([model(*batch) for batch in batches])
    model.train()
    return losses.double().mean().item()
