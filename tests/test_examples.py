"""The examples run, learn, and resume with the same bits; the documentation shows them as they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from small_training import bits

import baoc_compile
from baoc_compile.state.wrapped_optimizer import inside

ROOT = Path(__file__).parent.parent
NAMES = ("hf_trainer", "lightning_trainer", "accelerate_trainer", "fabric_trainer")


def example(name: str, *needs: str):
    for library in needs:
        pytest.importorskip(library)
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(model, optimizer, other_model, other_optimizer):
    optimizers = [inside(optimizer), inside(other_optimizer)]
    assert bits(model, optimizers[0]) == bits(other_model, optimizers[1])
    numel = sum(p.numel() for p in model.parameters())
    assert baoc_compile.state_bytes(optimizers[0]) <= 0.15 * 8 * numel


def test_hugging_face(tmp_path):
    hf = example("hf_trainer", "transformers", "accelerate")
    whole = hf.train(str(tmp_path), steps=12)
    losses = [entry["loss"] for entry in hf.train(str(tmp_path / "longer"), steps=40).state.log_history[:2]]
    assert losses[1] < losses[0] < 5.6
    (tmp_path / "checkpoint-12").rename(tmp_path / "last")
    resumed = hf.train(str(tmp_path), steps=12, resume=True)
    assert_same(whole.model, whole.optimizer, resumed.model, resumed.optimizer)


def test_lightning(tmp_path):
    lightning = example("lightning_trainer", "lightning")
    whole = lightning.train(str(tmp_path))
    assert whole.callback_metrics["loss"] < 1.0
    resumed = lightning.train(str(tmp_path / "again"), resume=str(tmp_path / "epoch=1.ckpt"))
    assert_same(whole.model, whole.optimizers[0], resumed.model, resumed.optimizers[0])


def test_accelerate(tmp_path):
    accelerate = example("accelerate_trainer", "accelerate")
    *whole, loss = accelerate.train(str(tmp_path))
    assert loss < 1.5
    *resumed, _ = accelerate.train(str(tmp_path), resume=True)
    assert_same(*whole, *resumed)


def test_fabric(tmp_path):
    fabric = example("fabric_trainer", "lightning")
    *whole, loss = fabric.train(str(tmp_path))
    assert loss < 1.5
    *resumed, _ = fabric.train(str(tmp_path), resume=True)
    assert_same(*whole, *resumed)


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_shows_them(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) < 60
    assert f"```python\n{text}```" in (ROOT / "docs" / "trainers.md").read_text()


def test_the_documentation_names_tests_that_exist():
    named = re.findall(r"\[`(\w+)`\]\(\.\./tests/(test_\w+\.py)\)", (ROOT / "docs" / "trainers.md").read_text())
    assert len(named) > 10
    for test, file in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"
