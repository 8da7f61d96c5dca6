"""A small vision transformer that classifies scikit-learn's 8x8 digits under random shifts and noise."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 8  # images are SIZE x SIZE
PATCH = 2
CLASSES = 10
NOISE = 0.2  # standard deviation of the noise, where black is 0 and white is 1

#: Images `[count, SIZE, SIZE]` in 0 ... 1, and labels `[count]`.
Digits = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(
            -1, (3, self.heads, -1)
        )  # (batch, token, 3, heads, head width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + self.attention_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class ViT(nn.Module):
    """Vision transformer over PATCH x PATCH patches; it classifies by the mean of the tokens."""

    def __init__(self, width: int = 96, depth: int = 3, heads: int = 4):
        super().__init__()
        self.embedding = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.5 * torch.randn((SIZE // PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats; `images` is `[batch, SIZE, SIZE]`, `labels` is `[batch]`."""
        patches = self.embedding(images[:, None]).flatten(2).transpose(1, 2)
        tokens = self.blocks(patches + self.position)
        return F.cross_entropy(self.head(self.norm(tokens).mean(1)), labels)


def load_digits(validation_every: int = 5) -> tuple[Digits, Digits]:
    """Return training and validation digits; every `validation_every`-th image is for validation."""
    from sklearn import datasets  # the model alone does without

    digits = datasets.load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % validation_every == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return every image moved by up to one pixel along each axis, with noise added."""
    down, right = torch.randint(3, (2, len(images), 1, 1), generator=generator)
    pixel = torch.arange(SIZE)
    which = torch.arange(len(images))[:, None, None]
    moved = F.pad(images, (1, 1, 1, 1))[which, down + pixel[:, None], right + pixel]
    return moved + NOISE * torch.randn(moved.shape, generator=generator)


def random_batches(digits: Digits, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches without end; the same seed gives the same batches."""
    images, labels = digits
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        yield augment(images[chosen], generator), labels[chosen]


@torch.no_grad()
def evaluate(model: ViT, digits: Digits, copies: int = 8) -> float:
    """Return the mean loss over `digits`, each shifted and noised in `copies` ways that are the same at every call."""
    images, labels = digits
    generator = torch.Generator().manual_seed(0)
    return torch.stack([model(augment(images, generator), labels) for _ in range(copies)]).mean().item()
