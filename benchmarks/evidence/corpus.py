"""The byte-level corpus of the language models: the standard library's sources, some files held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evidence.workload import Batch
from language_model import CONTEXT, load_corpus, windows


def load_windows(count: int = 1024, batch_size: int = 32) -> tuple[Tensor, Sequence[Batch]]:
    """Return the training bytes, and `count` windows spread over the held-out ones, in an order that is fixed."""
    train, held_out = load_corpus()
    starts = torch.linspace(0, len(held_out) - CONTEXT - 1, count).long()
    shuffled = starts[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    return train, [windows(held_out, chunk) for chunk in shuffled.split(batch_size)]
