"""The workloads that benchmarks train: the models of the examples, their data and their settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from paths import ROOT

sys.path.insert(0, str(ROOT / "examples"))

import digits_diffusion
import digits_vit
import language_model
from train_language_model import warmup_then_cosine

__all__ = ["WORKLOADS", "Workload", "warmup_then_cosine"]


@dataclass(frozen=True)
class Workload:
    loss: str  # what the validation loss is
    model: Callable[[], torch.nn.Module]
    load: Callable[[], tuple[Any, Any]]  # training and validation data
    batches: Callable[[Any, int, int], Iterator[tuple[torch.Tensor, ...]]]  # training data, batch size, seed
    evaluate: Callable[[Any, Any], float]  # model, validation data
    steps: int
    batch_size: int
    lr: float


WORKLOADS = {
    "language": Workload(
        "nats per byte",
        language_model.GPT,
        language_model.load_corpus,
        language_model.random_batches,
        language_model.evaluate,
        steps=400,
        batch_size=8,
        lr=1.5e-3,
    ),
    "digits_vit": Workload(
        "cross-entropy in nats",
        digits_vit.ViT,
        digits_vit.load_digits,
        digits_vit.random_batches,
        digits_vit.evaluate,
        steps=500,
        batch_size=32,
        lr=2e-3,
    ),
    "digits_diffusion": Workload(
        "mean squared error",
        digits_diffusion.UNet,
        digits_diffusion.load_digits,
        digits_diffusion.random_batches,
        digits_diffusion.evaluate,
        steps=500,
        batch_size=32,
        lr=6e-3,
    ),
}
