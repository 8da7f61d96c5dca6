"""A decoder of today's make: RMSNorm, rotary positions, grouped queries, SwiGLU, and one layer with a mixture of experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evidence.corpus import load_windows
from evidence.workload import Workload
from language_model import BYTES, CONTEXT, random_batches


def rotary(x: Tensor) -> Tensor:
    """Turn pairs of channels of `[batch, heads, time, width]` by angles that grow with time."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    angles = torch.arange(x.shape[-2])[:, None] * frequencies
    a, b = x.chunk(2, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)


class Attention(nn.Module):
    """Causal self-attention in which groups of query heads share a key and a value head."""

    def __init__(self, width: int, heads: int, shared_heads: int):
        super().__init__()
        self.head_width = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, shared_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(rotary(q), rotary(k), v, is_causal=True, enable_gqa=True)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Every token goes through the two experts of largest gates, weighted by them."""

    def __init__(self, width: int, hidden: int, count: int = 4):
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(SwiGLU(width, hidden) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gates, chosen = self.router(tokens).topk(2)
        gates = gates.softmax(-1)
        result = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, place = (chosen == index).nonzero(as_tuple=True)
            result = result.index_add(0, token, expert(tokens[token]) * gates[token, place, None])
        return result.view_as(x)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, mlp: nn.Module):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads, heads // 2)
        self.mlp_norm = nn.RMSNorm(width)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Three layers over bytes; the MLP of the second is a mixture of experts."""

    def __init__(self, width: int = 96, heads: int = 4, hidden: int = 256):
        super().__init__()
        self.embed_tokens = nn.Embedding(BYTES, width)
        mlps = SwiGLU(width, hidden), Experts(width, hidden // 2), SwiGLU(width, hidden)
        self.layers = nn.Sequential(*(Layer(width, heads, mlp) for mlp in mlps))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, BYTES, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per byte."""
        logits = self.lm_head(self.norm(self.layers(self.embed_tokens(tokens))))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


WORKLOAD = Workload(
    name="llama",
    about=f"a byte-level Llama of 3 layers (RMSNorm, rotary positions, grouped queries, SwiGLU, one layer of 4 experts) on "
    f"windows of {CONTEXT} bytes of the standard library",
    loss="cross-entropy, nats per byte",
    model=Llama,
    load=load_windows,
    batches=random_batches,
    lr=4e-3,
    batch_size=4,
)
