"""Gradient release in every trainer: the bits of a run without it; what it can't be combined with is told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from small_training import Small, bits

import baoc_compile
from baoc_compile import StateError
from baoc_compile.release_gradients import Released
from baoc_compile.state.wrapped_optimizer import inside

STEPS = 5


class Model(Small):
    """`Small`, called as trainers call models."""

    def forward(self, tokens, targets=None):
        tokens = tokens.flatten()
        return {"loss": super().forward(tokens, (3 * tokens + 1) % 200)}


def data(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"tokens": torch.randint(200, (64,), generator=torch.Generator().manual_seed(i))} for i in range(count)]


def new(released: bool, every: int = 1) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    baoc_compile.prepare(optimizer, plan="8bit")
    if released:
        baoc_compile.release_gradients(optimizer, every=every)
    return model, optimizer


def assert_released(model: torch.nn.Module) -> None:
    assert all(isinstance(p.grad, Released) for p in model.parameters())


def hugging_face(folder, released: bool, every: int = 1, logs_norm: bool = False, **arguments) -> str:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, optimizer = new(released, every)

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if released:
                assert_released(model)

    class Trainer(transformers.Trainer):
        def _get_grad_norm(self, model, grad_norm=None):
            """The trainer logs the norm of all gradients, which needs them all, whether it clips or not."""
            return super()._get_grad_norm(model, grad_norm) if logs_norm else None

    trainer = Trainer(
        model,
        transformers.TrainingArguments(
            str(folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=every,
            **{"max_grad_norm": 0.0, **arguments},
        ),
        train_dataset=data(2 * STEPS * every),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))),
        callbacks=[Look()],
    )
    trainer.train()
    return bits(model, optimizer)


@pytest.mark.parametrize("every", [1, 2])
def test_hugging_face_trainer(tmp_path, every):
    assert hugging_face(tmp_path, True, every) == hugging_face(tmp_path, False, every)


@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"logs_norm": True}])
def test_hugging_face_trainer_that_clips_is_told(tmp_path, options):
    with pytest.raises(StateError, match="clip_grad_norm_"):
        hugging_face(tmp_path, True, **options)


def lightning(released: bool, every: int = 1, **arguments) -> str:
    L = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, optimizer = new(released, every)

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def on_before_optimizer_step(self, optimizer):
            if released:
                assert_released(model)

        def configure_optimizers(self):
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))]

    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=every,
        **arguments,
    )
    loader: Any = data(STEPS * every)
    trainer.fit(Module(), torch.utils.data.DataLoader(loader))
    return bits(model, optimizer)


@pytest.mark.parametrize("every", [1, 2])
def test_lightning(every):
    assert lightning(True, every) == lightning(False, every)


def test_lightning_that_clips_is_told():
    with pytest.raises(StateError, match="clip_grad_norm_"):
        lightning(True, gradient_clip_val=1.0)


def accelerate(released: bool, every: int, clips: bool = False) -> str:
    library = pytest.importorskip("accelerate")
    accelerator = library.Accelerator(cpu=True, gradient_accumulation_steps=every)
    model, optimizer = new(released, every)
    module, wrapped = accelerator.prepare(model, optimizer)
    for batch in data(STEPS * every):
        with accelerator.accumulate(module):
            accelerator.backward(module(**batch)["loss"])
            if accelerator.sync_gradients and released:
                assert_released(model)
            if accelerator.sync_gradients and clips:
                accelerator.clip_grad_norm_(module.parameters(), 1.0)
            wrapped.step()
            wrapped.zero_grad()
    return bits(model, inside(wrapped))


@pytest.mark.parametrize("every", [1, 2])
def test_accelerate(every):
    assert accelerate(True, every) == accelerate(False, every)


def test_accelerate_that_clips_is_told():
    with pytest.raises(StateError, match="clip_grad_norm_"):
        accelerate(True, 1, clips=True)


def fabric(released: bool) -> str:
    library = pytest.importorskip("lightning.fabric")
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    runner = library.Fabric(accelerator="cpu", devices=1)
    model, optimizer = new(released)
    module, wrapped = runner.setup(model, optimizer)
    for batch in data(STEPS):
        runner.backward(module(**batch)["loss"])
        if released:
            assert_released(model)
        wrapped.step()
        wrapped.zero_grad()
    return bits(model, optimizer)


def test_fabric():
    assert fabric(True) == fabric(False)
