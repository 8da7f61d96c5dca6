"""Lightning with a memory budget: one line in `configure_optimizers`.

python examples/lightning_trainer.py
"""

import tempfile

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import baoc_compile


class Classifier(lightning.LightningModule):
    """Learns which of eight fixed directions a noisy vector has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        baoc_compile.prepare(optimizer, model=self, memory_budget="15%")
        return optimizer


def data() -> DataLoader:
    torch.manual_seed(0)
    labels = torch.arange(2048) % 8
    vectors = torch.eye(64)[labels] + 0.3 * torch.randn(2048, 64)
    return DataLoader(TensorDataset(vectors, labels), batch_size=64)


def train(folder: str, epochs: int = 4, resume: str | None = None) -> lightning.Trainer:
    """Train; checkpoints lie in `folder`, and `resume` names the one to go on from."""
    torch.manual_seed(0)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[keep])
    trainer.fit(Classifier(), data(), ckpt_path=resume)
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trained = train(folder)
        print(f"loss {float(trained.callback_metrics['loss']):.3f}")
        print(f"{baoc_compile.state_bytes(trained.optimizers[0]):,} bytes of state")
