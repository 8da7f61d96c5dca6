"""One line in every trainer: a run that is cut and resumed from the trainer's own checkpoint has the bits of a whole one.

The state is within its budget from before the first step on. The runs sample gradients and change their plan at step 6, and
are cut inside of the sampling window.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_training import SOON, Small, bits
from torch.utils.data import DataLoader

import baoc_compile
from baoc_compile import with_budget
from baoc_compile.runtime.session import known_session
from baoc_compile.state.wrapped_optimizer import inside

STEPS, CUT = 9, 5
BUDGET = "30%"
AdamW = torch.optim.AdamW


class Model(Small):
    """`Small`, called as trainers call models."""

    def forward(self, tokens, targets=None):
        tokens = tokens.flatten()
        return {"loss": super().forward(tokens, (3 * tokens + 1) % 200)}


def data() -> list[dict[str, torch.Tensor]]:
    return [{"tokens": torch.randint(200, (16,), generator=torch.Generator().manual_seed(i))} for i in range(4 * STEPS)]


def batches() -> Any:
    return DataLoader(data(), batch_size=4)  # type: ignore[arg-type]


def budgeted(**options) -> Any:
    return with_budget(AdamW, BUDGET, **(SOON | options))


def new_model() -> Model:
    torch.manual_seed(0)
    return Model()


class Watch:
    """Looks at the state before and after every step."""

    def __init__(self):
        self.sizes = []

    def look(self, optimizer, model) -> None:
        self.sizes.append(baoc_compile.state_bytes(inside(optimizer)))
        self.full = 8 * sum(p.numel() for p in model.parameters())

    def check(self, count: int) -> None:
        assert len(self.sizes) == count and min(self.sizes) > 0 and max(self.sizes) <= 0.3 * self.full


def assert_resumed(whole: SimpleNamespace, resumed: SimpleNamespace) -> None:
    """The two ended with the same bits, by baoc's own step, and with the plan that was made on the way."""
    optimizers = [inside(run.optimizer) for run in (whole, resumed)]
    sessions = [known_session(optimizer) for optimizer in optimizers]
    assert [s.own.refused for s in sessions] == ["", ""]
    assert len(sessions[0].configurator.history) == 1
    assert sessions[0].configurator.history[0].startswith("step 6")
    assert optimizers[0].state[whole.model.head.weight]["step"] == STEPS
    assert sessions[0].plan() == sessions[1].plan()
    assert bits(whole.model, optimizers[0]) == bits(resumed.model, optimizers[1])


# Hugging Face


def hugging_face(folder, resume=None, made=None, **arguments):
    """Train with `Trainer`; return model, optimizer and what was seen of the state."""
    transformers = pytest.importorskip("transformers")
    model, watch = new_model(), Watch()

    class Look(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            watch.look(optimizer, model)

    arguments = {"max_steps": STEPS, "save_steps": CUT, "per_device_train_batch_size": 4, **arguments}
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder), use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no", **arguments
        ),
        train_dataset=data(),
        callbacks=[Look()],
        optimizer_cls_and_kwargs=(made or budgeted(), {"lr": 3e-3}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return SimpleNamespace(model=model, optimizer=trainer.optimizer, watch=watch)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"max_grad_norm": 0.1, "warmup_steps": 3},
    ],
    ids=["plain", "accumulation", "clipping and warm-up"],
)
def test_hugging_face_trainer(tmp_path, arguments):
    whole = hugging_face(tmp_path, **arguments)
    whole.watch.check(STEPS)
    resumed = hugging_face(tmp_path / "again", resume=str(tmp_path / f"checkpoint-{CUT}"), **arguments)
    resumed.watch.check(STEPS - CUT)
    assert_resumed(whole, resumed)


# Lightning


def lightning(folder, resume=None, is_manual=False, **arguments):
    L = pytest.importorskip("lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model, watch, closures, loaded = new_model(), Watch(), [], list(batches())

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model
            self.automatic_optimization = not is_manual

        def training_step(self, batch, index):
            closures.append((torch.compiler.is_compiling(), torch.is_grad_enabled()))
            loss = self.model(**loaded[self.global_step])["loss"]  # a plain loader begins anew when a run resumes
            if is_manual:
                optimizer = self.optimizers()
                watch.look(optimizer, model)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.lr_schedulers().step()
            return loss

        def on_before_zero_grad(self, optimizer):
            if not is_manual:
                watch.look(optimizer, model)

        def configure_optimizers(self):
            optimizer = budgeted()(self.parameters(), lr=3e-3)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=CUT, save_top_k=-1)],
        **arguments,
    )
    trainer.fit(Module(), batches(), ckpt_path=resume)
    assert set(closures) == {(False, True)}
    return SimpleNamespace(model=model, optimizer=trainer.optimizers[0], watch=watch, trainer=trainer)


@pytest.mark.parametrize("is_manual", [False, True], ids=["automatic", "manual"])
def test_lightning(tmp_path, is_manual):
    whole = lightning(tmp_path, is_manual=is_manual)
    whole.watch.check(STEPS)
    (checkpoint,) = tmp_path.glob(f"*step={CUT}.ckpt")
    resumed = lightning(tmp_path / "again", resume=checkpoint, is_manual=is_manual)
    resumed.watch.check(STEPS - CUT)
    assert_resumed(whole, resumed)


# Accelerate


def accelerate(folder, resume=None, prepares=False, accumulates=1):
    library = pytest.importorskip("accelerate")
    accelerator = library.Accelerator(cpu=True, gradient_accumulation_steps=accumulates)
    model, watch = new_model(), Watch()
    optimizer = (AdamW if prepares else budgeted())(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, batches(), scheduler)
    if prepares:
        baoc_compile.prepare(optimizer, memory_budget=BUDGET, **SOON)
    first = 0
    if resume is not None:
        accelerator.load_state(str(resume))
        first = CUT
    loaded = list(loader)
    for step in range(first, STEPS):
        watch.look(optimizer, model)
        for batch in [loaded[step]] * accumulates:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        if step + 1 == CUT and resume is None:
            accelerator.save_state(str(folder))
    return SimpleNamespace(model=model, optimizer=optimizer, watch=watch)


@pytest.mark.parametrize("accumulates", [1, 2])
@pytest.mark.parametrize("prepares", [False, True], ids=["class", "prepare"])
def test_accelerate(tmp_path, prepares, accumulates):
    whole = accelerate(tmp_path, prepares=prepares, accumulates=accumulates)
    whole.watch.check(STEPS)
    resumed = accelerate(None, resume=tmp_path, prepares=prepares, accumulates=accumulates)
    resumed.watch.check(STEPS - CUT)
    assert_resumed(whole, resumed)


# Fabric


def fabric(folder, resume=None, prepares=False):
    library = pytest.importorskip("lightning.fabric")
    runner = library.Fabric(accelerator="cpu", devices=1)
    model, watch = new_model(), Watch()
    module, optimizer = runner.setup(model, (AdamW if prepares else budgeted())(model.parameters(), lr=3e-3))
    if prepares:
        baoc_compile.prepare(optimizer, memory_budget=BUDGET, **SOON)
    first = 0
    if resume is not None:
        runner.load(resume / "saved.ckpt", {"model": module, "optimizer": optimizer})
        first = CUT
    for step, batch in list(enumerate(runner.setup_dataloaders(batches())))[first:STEPS]:
        watch.look(optimizer, model)
        optimizer.zero_grad()
        runner.backward(module(**batch)["loss"])
        optimizer.step()
        if step + 1 == CUT and resume is None:
            runner.save(folder / "saved.ckpt", {"model": module, "optimizer": optimizer})
    return SimpleNamespace(model=model, optimizer=optimizer, watch=watch)


@pytest.mark.parametrize("prepares", [False, True], ids=["class", "prepare"])
def test_fabric(tmp_path, prepares):
    whole = fabric(tmp_path, prepares=prepares)
    whole.watch.check(STEPS)
    resumed = fabric(None, resume=tmp_path, prepares=prepares)
    resumed.watch.check(STEPS - CUT)
    assert_resumed(whole, resumed)


# a loop of one's own


def loop(scaler=None, scheduler="", accumulates=1, made=None):
    """Train with torch alone; a scheduler may be made before or after the optimizer is prepared."""
    model = new_model()
    optimizer = (made or AdamW)(model.parameters(), lr=3e-3)
    schedule = [lambda: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
    schedulers = [make() for make in schedule if scheduler == "before"]
    if made is None:
        baoc_compile.prepare(optimizer, memory_budget=BUDGET, **SOON)
    schedulers += [make() for make in schedule if scheduler == "after"]
    for batch in batches():
        for _ in range(accumulates):
            loss = model(**batch)["loss"]
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer) if scaler else optimizer.step()
        if scaler:
            scaler.update()
        for each in schedulers:
            each.step()
        optimizer.zero_grad()
    assert known_session(optimizer).own.refused == ""
    return bits(model, optimizer)


@pytest.mark.parametrize("accumulates", [1, 2])
def test_gradient_scaler(accumulates):
    scaled = [
        loop(torch.amp.GradScaler("cpu", init_scale=2.0**12), "", accumulates, made) for made in (None, budgeted())
    ]
    assert scaled[0] == scaled[1] == loop(accumulates=accumulates)


def test_schedulers_before_and_after():
    before, after = loop(scheduler="before"), loop(scheduler="after")
    assert before == after == loop(scheduler="after", made=budgeted())
    assert before != loop()


def test_averaged_models():
    def average(made=None) -> str:
        model = new_model()
        optimizer = (made or AdamW)(model.parameters(), lr=3e-3)
        if made is None:
            baoc_compile.prepare(optimizer, memory_budget=BUDGET, **SOON)
        averaged = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        for batch in batches():
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
        assert known_session(optimizer).own.refused == ""
        assert bits(averaged.module, optimizer) != bits(model, optimizer)
        return bits(averaged.module, optimizer) + bits(model, optimizer)

    assert average() == average(budgeted())
