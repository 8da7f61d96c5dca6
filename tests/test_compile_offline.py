"""Kernels compiled for GPUs that are not here: no spilled registers, wide accesses; and every operation compiles."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from baoc_compile.kernels.build.cache import cache_folder

_SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "registers.py"
_SPEC = importlib.util.spec_from_file_location("registers", _SCRIPT)
assert _SPEC is not None and _SPEC.loader is not None
registers = importlib.util.module_from_spec(_SPEC)
sys.modules["registers"] = registers  # its dataclasses look for their module
_SPEC.loader.exec_module(registers)

#: Those of one maker have as many registers and the same instructions for memory, so one of each is enough for a quick run.
QUICK = ("sm_90", "gfx942")
TARGETS = [pytest.param(target, marks=[pytest.mark.slow] * (target not in QUICK)) for target in registers.TARGETS]
every_target = pytest.mark.parametrize("target", TARGETS)
measured = cache(registers.measured_apart)


@every_target
def test_no_kernel_spills_registers_at_its_default_shape(target):
    rows = measured(target)
    assert len(rows) > len(registers.CONFIGURATIONS)  # one of them averages first
    assert {row.title: row.spills for row in rows if row.spills} == {}


@every_target
def test_contiguous_fp32_tensors_are_loaded_and_stored_in_128_bits(target):
    for row in measured(target):
        assert row.loads.get("128", 0) >= row.wide_loads, row.title
        assert row.stores.get("128", 0) >= row.wide_stores, row.title
        assert "averages" in row.title or "bf16+8" in row.title or row.wide_loads >= 2


#: Lane operations for an element that an H100's memory bandwidth leaves to a step that moves 16.25 bytes of it: 132
#: multiprocessors of 128 lanes at 1.755 GHz, 3.0 TB/s.
LEFT = 132 * 128 * 1.755e9 / 3.0e12 * 16.25


@pytest.mark.parametrize("target", [t for t in TARGETS if str(t.values[0]).startswith("sm_")])
def test_codecs_leave_the_step_bound_by_memory(target):
    found = {row.title: row.instructions for row in measured(target)}
    assert 40 < found["AdamW, fp32"] < found["AdamW, 8bit"] <= min(155, LEFT)
    assert found["SGD with momentum, 8bit"] < found["AdamW, 8bit"]


def compile_all_operations(target: str) -> None:
    """Run in a process of its own."""
    from test_triton_steps import OPERATIONS, TRANSCENDENTAL, program_graph

    from baoc_compile.kernels.triton.compile_offline import compile_offline
    from baoc_compile.kernels.triton.program import TritonProgram

    def everything(p, g):
        return sum(function(p, g) for function in [*OPERATIONS.values(), *TRANSCENDENTAL.values()])

    program = TritonProgram(program_graph(everything, "cuda"))
    for strided in (False, True):
        assert compile_offline(program, target, aligned=not strided, strided=strided).registers


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_operation_compiles(target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache_folder().path / "offline" / target)
    command = [
        sys.executable,
        "-c",
        f"import test_compile_offline; test_compile_offline.compile_all_operations({target!r})",
    ]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.gpu
def test_interpreted_kernels_in_a_process_without_the_gpu():
    """What conftest.py skips here."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "interpreted and not slow", str(Path(__file__).parent)]
    done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
