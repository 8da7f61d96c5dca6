"""Lightning Fabric with a memory budget: the optimizer is prepared when it is made, before Fabric wraps it.

python examples/fabric_trainer.py
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

import baoc_compile


def data() -> DataLoader:
    """Return noisy points of eight directions, in one order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2048) % 8
    vectors = torch.eye(64)[labels] + 0.3 * torch.randn(2048, 64, generator=generator)
    return DataLoader(TensorDataset(vectors, labels), batch_size=32)


def train(folder: str, epochs: int = 2, resume: bool = False) -> tuple[Any, Any, float]:
    """Train; the state after half of the epochs is kept in `folder`, and `resume` goes on from it."""
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))
    AdamW = baoc_compile.with_budget(torch.optim.AdamW, "15%")
    model, optimizer = fabric.setup(network, AdamW(network.parameters(), lr=1e-3))
    batches = fabric.setup_dataloaders(data())
    saved = Path(folder) / "saved.ckpt"
    if resume:
        fabric.load(saved, {"model": model, "optimizer": optimizer})
    loss = torch.zeros(())
    for epoch in range(epochs // 2 if resume else 0, epochs):
        for vectors, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(vectors), labels)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if not resume and epoch + 1 == epochs // 2:
            fabric.save(saved, {"model": model, "optimizer": optimizer})
    return network, optimizer, loss.item()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        _, trained, last = train(folder)
        print(f"loss {last:.3f}, {baoc_compile.state_bytes(trained):,} bytes of state")
