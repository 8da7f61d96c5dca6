"""A small byte-level GPT, and a corpus that every machine has: the sources of Python's standard library."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 128
BYTES = 256  # the vocabulary


class Block(nn.Module):
    """Pre-norm transformer block: causal self-attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))  # (batch, time, 3, heads, head width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class GPT(nn.Module):
    """Decoder-only transformer over bytes; embedding and output head share their weight."""

    def __init__(self, width: int = 160, depth: int = 4, heads: int = 5):
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith("_out.weight")  # scaled down, so depth does not enlarge the stream
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per byte; `tokens` and `targets` are `[batch, time]`."""
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load_corpus(validation_every: int = 10) -> tuple[Tensor, Tensor]:
    """Return training and validation bytes; every `validation_every`-th source file is for validation."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    validation = files[::validation_every]
    train = [file for file in files if file not in validation]

    def read(files: list[Path]) -> Tensor:
        return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)

    return read(train), read(validation)


def windows(corpus: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs at `starts` and their targets, one byte later, each `[len(starts), CONTEXT]`."""
    chunk = corpus[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return chunk[:, :-1], chunk[:, 1:]


def random_batches(corpus: Tensor, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches without end; the same seed gives the same batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield windows(corpus, torch.randint(len(corpus) - CONTEXT, (batch_size,), generator=generator))


@torch.no_grad()
def evaluate(model: GPT, corpus: Tensor, count: int = 1024, batch_size: int = 32) -> float:
    """Return the mean loss over `count` windows spread evenly over `corpus`, in nats per byte."""
    starts = torch.linspace(0, len(corpus) - CONTEXT - 1, count).long()
    losses = [model(*windows(corpus, chunk)) for chunk in starts.split(batch_size)]
    return torch.stack(losses).mean().item()
