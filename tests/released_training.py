"""A small training with or without gradient release."""

from __future__ import annotations

import torch
from small_training import Small, bits

import baoc_compile

SMALL = 20_000  # bytes of a part: `Small` has three of them


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(200, (64,), generator=torch.Generator().manual_seed(step))
    return tokens, (3 * tokens + 1) % 200


class Training:
    """Trains `Small`, with or without release."""

    def __init__(self, optimizer=torch.optim.AdamW, release=None, model=None, schedule=None, options=None, **prepare):
        torch.manual_seed(0)
        self.model = model() if model is not None else Small()
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 3e-3, **(options or {})})
        baoc_compile.prepare(self.optimizer, model=self.model, **(prepare or {"plan": "8bit"}))
        self.handle = None if release is None else baoc_compile.release_gradients(self.optimizer, **release)
        self.schedule = schedule(self.optimizer) if schedule else None
        self.steps = 0

    def backward(self, micro: int = 0) -> torch.Tensor:
        loss = self.model(*batch(self.steps + 1000 * micro))
        loss.backward()
        return loss

    def run(self, steps: int = 6, micro: int = 1) -> str:
        for _ in range(steps):
            for k in range(micro):
                self.backward(k)
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            self.optimizer.zero_grad()
            self.steps += 1
        return bits(self.model, self.optimizer)
