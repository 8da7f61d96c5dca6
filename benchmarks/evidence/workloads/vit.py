"""A vision transformer that reads characters in fonts it has never seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits_vit import Block
from evidence.glyphs import CHARACTERS, HELD_OUT, SIZE, labelled_batches, load_labelled
from evidence.workload import Workload

PATCH = 4


class GlyphViT(nn.Module):
    """Vision transformer over PATCH x PATCH patches; it classifies by the mean of the tokens."""

    def __init__(self, width: int = 96, depth: int = 3, heads: int = 4):
        super().__init__()
        self.embedding = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.5 * torch.randn((SIZE // PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CHARACTERS))

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        x = self.embedding(pictures).flatten(2).transpose(1, 2) + self.position
        return F.cross_entropy(self.head(self.norm(self.blocks(x)).mean(1)), labels)


WORKLOAD = Workload(
    name="vit",
    about=f"a vision transformer of 3 blocks, width 96, that names {len(CHARACTERS)} characters; "
    f"{len(HELD_OUT)} fonts are held out",
    loss="cross-entropy, nats per picture",
    model=GlyphViT,
    load=load_labelled,
    batches=labelled_batches,
    lr=2e-3,
    batch_size=64,
)
