"""Programs are made once, and their compilers run while torch goes on; what fails is told of where it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

import baoc_compile
from baoc_compile.passes.programs import lower, make_programs

LARGE, SMALL = (64, 64), (8,)


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(make_programs, "_PROGRAMS", {})


def optimizer_over(*shapes: tuple[int, ...]) -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.ones_like(p)
    return torch.optim.AdamW(parameters)


def test_prepare_starts_what_the_first_step_needs(monkeypatch):
    """The compilers are held up until `prepare` has returned: it does not wait for them."""
    returned = threading.Event()
    original = lower.lower

    def held_up(graph: Any) -> Any:
        assert returned.wait(60)
        return original(graph)

    monkeypatch.setattr(lower, "lower", held_up)
    optimizer = optimizer_over(LARGE, SMALL, LARGE)
    baoc_compile.prepare(optimizer, plan="8bit")
    started = list(make_programs._PROGRAMS)
    returned.set()
    optimizer.step()
    assert len(started) == 2
    assert list(make_programs._PROGRAMS) == started


@pytest.mark.parametrize("prepared", [True, False])
def test_the_compilers_of_a_step_run_at_once(prepared, monkeypatch):
    """Each waits until both have begun."""
    both, original = threading.Barrier(2, timeout=60), lower.lower

    def together(graph: Any) -> Any:
        both.wait()
        return original(graph)

    monkeypatch.setattr(lower, "lower", together)
    optimizer = optimizer_over(LARGE, SMALL, LARGE)
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    torch.compile(optimizer.step, backend="baoc", options={"plan": "8bit"})()
    assert len(make_programs._PROGRAMS) == 2


def test_a_program_is_made_once_in_a_process(monkeypatch):
    made = []
    original = lower.lower
    monkeypatch.setattr(lower, "lower", lambda graph: made.append(graph) or original(graph))
    for _ in range(2):
        torch._dynamo.reset()
        optimizer = optimizer_over(LARGE, SMALL)
        baoc_compile.prepare(optimizer, plan="8bit")
        torch.compile(optimizer.step, backend="baoc")()
    assert len(made) == 2


@pytest.mark.parametrize("where", [(lower, "lower"), (make_programs, "compose_step")], ids=["lowering", "composing"])
def test_a_failure_is_told_of_when_the_step_runs(where, monkeypatch):
    class Failure(Exception):
        pass

    def fails(*arguments: Any) -> Any:
        raise Failure("as it was to be")

    monkeypatch.setattr(*where, fails)
    optimizer = optimizer_over(SMALL)
    baoc_compile.prepare(optimizer, plan="8bit")
    with pytest.raises(Failure, match="as it was to be"):
        torch.compile(optimizer.step, backend="baoc")()


def test_what_failed_is_tried_again(monkeypatch):
    original, fails = lower.lower, True

    def lowered(graph: Any) -> Any:
        if fails:
            raise MemoryError("for now")
        return original(graph)

    monkeypatch.setattr(lower, "lower", lowered)
    optimizer = optimizer_over(SMALL)
    baoc_compile.prepare(optimizer, plan="8bit")
    step = torch.compile(optimizer.step, backend="baoc")
    with pytest.raises(MemoryError, match="for now"):
        step()
    fails = False
    step()
    assert optimizer.param_groups[0]["params"][0].ne(1.0).all()


_ENDS_EARLY = """
import sys, torch, baoc_compile
p = torch.nn.Parameter(torch.ones(8))
p.grad = torch.ones(8)
optimizer = torch.optim.AdamW([p])
baoc_compile.prepare(optimizer, plan="fp32")
sys.exit(3)
"""


def test_an_interpreter_that_ends_leaves_no_compiler_behind(tmp_path):
    """It ends as it wants to, and what was begun is in the cache."""
    environment = {**os.environ, "BAOC_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _ENDS_EARLY], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert "Exception" not in done.stderr
    made = {suffix: {path.stem for path in tmp_path.glob(f"*{suffix}")} for suffix in (".so", ".lock")}
    assert made[".so"] and made[".so"] == made[".lock"]
    assert len(list(tmp_path.iterdir())) == 2 * len(made[".so"]), "nothing is half done"
