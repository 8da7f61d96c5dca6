"""Small models of the common kinds, and a way to take the names out of a model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, VOCABULARY, TIME, BATCH = 16, 4, 3, 24, 6, 2

Example = tuple[nn.Module, tuple[Tensor, ...]]  # a model, and what it is called with


def split_heads(x: Tensor, heads: int = HEADS) -> Tensor:
    """(batch, time, width) -> (batch, heads, time, width of a head)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.1) -> Tensor:
    """Causal attention as textbooks have it."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = F.dropout(scores.masked_fill(later, float("-inf")).softmax(-1), dropout)
    return weights @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class GPTLayer(nn.Module):
    def __init__(self, attention: Callable[..., Tensor], separate: bool):
        super().__init__()
        self.attention, self.separate = attention, separate
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        if separate:
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        else:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        q, k, v = (self.q(y), self.k(y), self.v(y)) if self.separate else self.qkv(y).chunk(3, -1)
        x = x + self.o(merge_heads(self.attention(split_heads(q), split_heads(k), split_heads(v))))
        return x + F.dropout(self.down(F.gelu(self.up(self.ln2(x)))), 0.1, self.training)


class GPT(nn.Module):
    """Pre-norm decoder with learned positions and an untied head."""

    def __init__(self, attention: Callable[..., Tensor] = fused_attention, separate: bool = True):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TIME, WIDTH)
        self.layers = nn.ModuleList(GPTLayer(attention, separate) for _ in range(LAYERS))
        self.final, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.classifier(self.final(x)).flatten(0, 1), targets.flatten())


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class LlamaLayer(nn.Module):
    def __init__(self, gqa: bool):
        super().__init__()
        self.gqa = gqa
        self.n1, self.n2 = RMSNorm(), RMSNorm()
        self.wq, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        y = self.n1(x)
        q, k, v = (split_heads(w(y), h) for w, h in ((self.wq, HEADS), (self.wk, HEADS // 2), (self.wv, HEADS // 2)))
        q, k = rotate(q), rotate(k)
        if not self.gqa:
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        x = x + self.wo(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.gqa)))
        y = self.n2(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    """RMSNorm, rotary positions, grouped queries, SwiGLU; the embedding is the head."""

    angles: Tensor

    def __init__(self, gqa: bool = False):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(LlamaLayer(gqa) for _ in range(LAYERS))
        self.last = RMSNorm()
        self.out = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.out.weight = self.table.weight
        rate = 100.0 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)
        self.register_buffer("angles", (torch.arange(TIME)[:, None] * rate).repeat(1, 2))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x, cos, sin = self.table(tokens), self.angles.cos(), self.angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.cross_entropy(self.out(self.last(x)).flatten(0, 1), targets.flatten())


class Encoder(nn.Module):
    """Post-norm encoder out of torch's own layers, with stored positions and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(5, WIDTH)
        self.cls, self.where = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, TIME + 1, WIDTH))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0) for _ in range(LAYERS))
        self.classifier = nn.Linear(WIDTH, 3)

    def forward(self, patches: Tensor) -> Tensor:
        x = torch.cat((self.cls.expand(len(patches), -1, -1), self.patches(patches)), 1) + self.where
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x[:, 0])


class ViT(nn.Module):
    """Vision transformer: a convolution cuts patches, stored positions, separate queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, stride=2)
        self.where = nn.Parameter(torch.randn(4, WIDTH))
        self.layers = nn.Sequential(*(GPTLayer(F.scaled_dot_product_attention, True) for _ in range(LAYERS)))
        self.final, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.where
        return F.cross_entropy(self.classifier(self.final(self.layers(x)).mean(1)), labels)


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(2, channels_in), nn.GroupNorm(2, channels)
        self.c1, self.c2 = nn.Conv2d(channels_in, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.time, self.short = nn.Linear(WIDTH, channels), nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.c1(F.silu(self.n1(x))) + self.time(time)[..., None, None]
        return self.short(x) + self.c2(F.silu(self.n2(y)))


class UNet(nn.Module):
    """Two resolutions; the outer features are handed across."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.down = nn.ModuleList(Residual(channels, channels) for _ in range(2))
        self.inner = nn.ModuleList(Residual(c, 2 * channels) for c in (channels, 2 * channels))
        self.up = nn.ModuleList(Residual(c, channels) for c in (3 * channels, channels))
        self.norm, self.out = nn.GroupNorm(2, channels), nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        time, x = self.time(times[:, None]), self.stem(images)
        for block in self.down:
            x = block(x, time)
        inner = F.avg_pool2d(x, 2)
        for block in self.inner:
            inner = block(inner, time)
        x = torch.cat((x, F.interpolate(inner, scale_factor=2.0)), 1)
        for block in self.up:
            x = block(x, time)
        return self.out(F.silu(self.norm(x)))


class ResNetBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.c1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.c2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.b1, self.b2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.short = None
        if stride != 1:
            self.short = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.b2(self.c2(self.relu(self.b1(self.c1(x)))))
        y += x if self.short is None else self.short(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Two stages of three blocks."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        blocks = [ResNetBlock(channels, channels, 1) for _ in range(3)]
        blocks += [ResNetBlock(channels * (1 if i == 0 else 2), 2 * channels, 2 if i == 0 else 1) for i in range(3)]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(2 * channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(images))), 2)
        return self.fc(self.blocks(x).mean((2, 3)))


def example(make: Callable[[], nn.Module], like: nn.Module | None = None) -> Example:
    """A model with the same initial values at every call, and inputs for it, or for one that is `like` it."""
    torch.manual_seed(0)
    model = make()
    tokens = torch.randint(VOCABULARY, (2, BATCH, TIME))
    inputs: dict[type, tuple[Tensor, ...]] = {
        GPT: (tokens[0], tokens[1]),
        Llama: (tokens[0], tokens[1]),
        Encoder: (torch.randn(BATCH, TIME, 5),),
        ViT: (torch.randn(BATCH, 1, 4, 4), torch.randint(3, (BATCH,))),
        UNet: (torch.randn(BATCH, 1, 4, 4), torch.rand(BATCH)),
        ResNet: (torch.randn(BATCH, 3, 8, 8),),
    }
    return model, inputs[type(like or model)]


ZOO: dict[str, Callable[[], nn.Module]] = {
    "gpt": GPT,
    "gpt fused": lambda: GPT(separate=False),
    "gpt written out": lambda: GPT(written_out_attention),
    "llama": Llama,
    "llama gqa": lambda: Llama(gqa=True),
    "encoder": Encoder,
    "vit": ViT,
    "unet": UNet,
    "resnet": ResNet,
}


class Renamed:
    """Mixed into a module's class: looks attributes up under their new names."""

    new_names: dict[str, str]

    def __getattr__(self, name: str):
        return super().__getattr__(self.__dict__["new_names"].get(name, name))  # type: ignore[misc]


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Renames every module, parameter, buffer and class in place; the model computes what it did."""
    rng = random.Random(seed)
    for module in list(model.modules()):
        new_names: dict[str, str] = {}
        for entries in (module._parameters, module._modules, module._buffers):
            for name in list(entries):
                new_names[name] = "".join(rng.choices("xyz", k=12))
                entries[new_names[name]] = entries.pop(name)

        module.__class__ = type("".join(rng.choices("XYZ", k=8)), (Renamed, type(module)), {})
        module.__dict__["new_names"] = new_names
    return model
