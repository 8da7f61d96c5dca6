"""A small training whose plan changes, for the tests of planning."""

from __future__ import annotations

import hashlib

import torch

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.runtime.session import session_of

SOON = {"warmup_steps": 6, "sample_steps": 4}


class Small(torch.nn.Module):
    """An embedding, two unlike layers and a head: gradients with structure."""

    def __init__(self, width: int = 48, vocabulary: int = 200):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.norm = torch.nn.LayerNorm(width)
        self.into = torch.nn.Linear(width, 2 * width)
        self.out = torch.nn.Linear(2 * width, width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.out(torch.nn.functional.gelu(self.into(self.norm(x))))
        return torch.nn.functional.cross_entropy(self.head(x), targets)


class Training:
    """Trains `Small` on batches that depend on the step alone."""

    def __init__(self, optimizer=torch.optim.AdamW, width=48, seed=0, **options):
        torch.manual_seed(seed)
        self.model = Small(width)
        self.optimizer = optimizer(self.model.parameters(), lr=3e-3)
        baoc_compile.prepare(self.optimizer, model=self.model, **options)
        self.compiled = torch.compile(self.optimizer.step, backend="baoc")
        self.steps = 0

    @property
    def session(self):
        return session_of(self.optimizer)

    @property
    def configurator(self):
        return self.session.configurator

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            tokens = torch.randint(200, (64,), generator=torch.Generator().manual_seed(self.steps))
            self.optimizer.zero_grad()
            self.model(tokens, (3 * tokens + 1) % 200).backward()
            self.compiled()
            self.steps += 1

    def plan(self) -> dict[str, dict[str, str]]:
        return {p.name: dict(p.slots) for p in self.session.plan().parameters.values()}

    def bits(self) -> str:
        return bits(self.model, self.optimizer)


def bits(model, optimizer) -> str:
    """Return a hash of the bits of all parameters and of their state, as it is stored."""
    tensors = [p.detach() for p in model.parameters()]
    for p in model.parameters():
        for _, value in sorted(optimizer.state.get(p, {}).items()):
            tensors += value.parts.values() if isinstance(value, StateTensor) else [torch.as_tensor(value)]
    raw = b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    return hashlib.sha256(raw).hexdigest()
