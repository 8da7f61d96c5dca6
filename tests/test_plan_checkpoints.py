"""Checkpoints of trainings whose plan changes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from small_training import SOON, Small, Training

import baoc_compile
from baoc_compile import state_bytes

SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from small_training import Training, SOON
import baoc_compile
path, start, stop = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
training = Training(memory_budget="12%", replan_every=7, hysteresis=0.0, **SOON)
if start:
    saved = torch.load(path, weights_only=True)
    training.model.load_state_dict(saved["model"])
    training.optimizer.load_state_dict(saved["optimizer"])
    training.steps = start
training.step(stop - start)
torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, path)
print(training.bits(), sorted(training.plan().items()))
"""


def run(tests, path, start, stop) -> str:
    arguments = [sys.executable, "-c", SCRIPT, tests, str(path), str(start), str(stop)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def uncut(request, tmp_path_factory) -> str:
    return run(str(request.path.parent), tmp_path_factory.mktemp("uncut") / "uncut.pt", 0, 15)


@pytest.mark.parametrize("cut", [4, pytest.param(6, marks=pytest.mark.slow), 11])
def test_a_run_cut_while_it_samples_or_after_it_migrated_ends_with_the_same_plan_and_bits(
    request, tmp_path, uncut, cut
):
    """A run killed while it solves or migrates goes on from its last checkpoint, which is one of these."""
    tests = str(request.path.parent)
    run(tests, tmp_path / "cut.pt", 0, cut)
    assert run(tests, tmp_path / "cut.pt", cut, 15) == uncut


def test_a_checkpoint_over_the_budget_is_planned_anew():
    rich, poor = Training(memory_budget="60%", **SOON), Training(memory_budget="20%", **SOON)
    rich.step(6)
    poor.optimizer.load_state_dict(rich.optimizer.state_dict())
    poor.step(1)
    assert state_bytes(poor.optimizer) <= 0.2 * 8.1 * sum(p.numel() for p in poor.model.parameters())


def test_a_checkpoint_of_another_model_is_refused():
    other = Training(memory_budget="20%", width=32, **SOON)
    training = Training(memory_budget="20%", **SOON)
    plan = training.plan()
    with pytest.raises(baoc_compile.PlanError, match="shape"):
        training.optimizer.load_state_dict(other.optimizer.state_dict())
    assert training.plan() == plan


def test_stock_optimizers_load_what_is_exported():
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    exported = baoc_compile.export_state_dict(training.optimizer)
    assert set(exported) == {"state", "param_groups"}
    torch.optim.AdamW(Small().parameters()).load_state_dict(exported)
