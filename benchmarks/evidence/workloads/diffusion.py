"""A small diffusion transformer that draws the character it is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits_diffusion import add_noise
from evidence.glyphs import CHARACTERS, HELD_OUT, SIZE, Glyphs, held_out_glyphs, random_glyphs, training_glyphs
from evidence.workload import Batch, Workload

PATCH = 4


class Block(nn.Module):
    """Self-attention and an MLP, each scaled, shifted and gated by the condition; at first the block is the identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.condition(condition)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm(x) * (1 + scale1) + shift1).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        x = x + gate1 * self.attention_out(attended)
        hidden = F.gelu(self.mlp_in(self.norm(x) * (1 + scale2) + shift2))
        return x + gate2 * self.mlp_out(hidden)


class DiT(nn.Module):
    """Diffusion transformer over PATCH x PATCH patches, conditioned on time and character; it predicts the noise."""

    def __init__(self, width: int = 80, depth: int = 3, heads: int = 4):
        super().__init__()
        self.frequencies = nn.Buffer(2.0 ** torch.arange(8) * math.pi / 2)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.character = nn.Embedding(len(CHARACTERS), width)
        self.embedding = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.5 * torch.randn((SIZE // PATCH) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, PATCH * PATCH)

    def forward(self, pictures: Tensor, times: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise."""
        angles = times[:, None] * self.frequencies
        condition = F.silu(self.time(torch.cat((angles.sin(), angles.cos()), 1)) + self.character(labels))
        x = self.embedding(pictures).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, condition)
        predicted = F.fold(self.out(self.norm(x)).transpose(1, 2), SIZE, PATCH, stride=PATCH)
        return F.mse_loss(predicted, noise)


def random_batches(glyphs: Glyphs, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield training batches without end; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    for pictures, labels in random_glyphs(glyphs, batch_size, generator):
        times = torch.rand(batch_size, generator=generator)
        yield *add_noise(2 * pictures - 1, times, generator), labels


def load(copies: int = 24) -> tuple[Glyphs, Sequence[Batch]]:
    """Return the training glyphs, and batches in the fonts held out, each with times spread evenly over 0 ... 1."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for pictures, labels in held_out_glyphs(copies, generator):
        times = (torch.randperm(len(labels), generator=generator) + 0.5) / len(labels)
        batches.append((*add_noise(2 * pictures - 1, times, generator), labels))
    return training_glyphs(), batches


WORKLOAD = Workload(
    name="diffusion",
    about=f"a diffusion transformer of 3 blocks, width 80, that draws {len(CHARACTERS)} characters; "
    f"{len(HELD_OUT)} fonts are held out",
    loss="mean squared error of the noise",
    model=DiT,
    load=load,
    batches=random_batches,
    lr=2e-3,
    batch_size=64,
)
