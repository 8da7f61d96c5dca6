"""A loop of one's own with Accelerate and a memory budget: accumulation, clipping, a schedule, and a checkpoint.

python examples/accelerate_trainer.py
"""

import tempfile
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import baoc_compile


def data() -> DataLoader:
    """Return noisy points of eight directions, in one order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2048) % 8
    vectors = torch.eye(64)[labels] + 0.3 * torch.randn(2048, 64, generator=generator)
    return DataLoader(TensorDataset(vectors, labels), batch_size=32)


def train(folder: str, epochs: int = 4, resume: bool = False) -> tuple[Any, Any, float]:
    """Train; the state after half of the epochs is kept in `folder`, and `resume` goes on from it."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    baoc_compile.prepare(optimizer, model=model, memory_budget="15%")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 32 * epochs)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, data(), scheduler)
    if resume:
        accelerator.load_state(folder)
    loss = torch.zeros(())
    for epoch in range(epochs // 2 if resume else 0, epochs):
        for vectors, labels in batches:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(vectors), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        if not resume and epoch + 1 == epochs // 2:
            accelerator.save_state(folder)
    return model, optimizer, loss.item()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        _, trained, last = train(folder)
        print(f"loss {last:.3f}, {baoc_compile.state_bytes(trained):,} bytes of state")
