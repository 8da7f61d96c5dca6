"""Triton kernels on a GPU give the same bits as compiled C++ on a CPU, in place, for any table of tensors.

Sums of shared values are taken in another order: they may differ by the last place of fp32. These are the programs by
themselves; `test_gpu.py` has whole steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from program_cases import (
    FP32,
    LAYOUTS,
    MANY_ROWS,
    MORE_PROGRAMS,
    PROGRAMS,
    SHARING,
    Which,
    assert_almost_same_bits,
    assert_same_bits,
    bits,
    configuration_of,
    cpp,
    graphs_of,
    step,
    table_of,
)
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.program_graph import TensorArguments
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.triton import tune_launch as choosing
from baoc_compile.state.state_tensor import StateTensor

pytest.importorskip("triton")
from baoc_compile.kernels.triton.program import LaunchShape, TritonProgram, default_shape

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
EVERY = [*PROGRAMS, *SHARING, *MORE_PROGRAMS]
every_program = pytest.mark.parametrize("which", EVERY, ids=str)

#: Several program instances for one tensor, too.
LARGER_ROWS = [*MANY_ROWS, ((1025, 96), "contiguous", "contiguous", 1.0, 7), ((1,), "contiguous", "contiguous", 1.0, 8)]


def on_gpu(batch: list[TensorArguments], shift: int = 0) -> list[TensorArguments]:
    """The same tensors, in the same layouts, on the GPU; contiguous ones `shift` elements behind an aligned address."""
    return [
        TensorArguments(
            row.numel,
            {name: copied(tensor, shift) for name, tensor in row.tensors.items()},
            row.numbers,
            row.sharing,
            row.first_index,
            row.rows,
        )
        for row in batch
    ]


def copied(tensor: Tensor, shift: int = 0) -> Tensor:
    if tensor.is_contiguous():
        memory = torch.empty(shift + tensor.numel(), dtype=tensor.dtype, device=DEVICE)
        return memory[shift:].view(tensor.shape).copy_(tensor)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE).copy_(tensor)


def back(batch: list[TensorArguments]) -> list[TensorArguments]:
    return [
        TensorArguments(
            row.numel, {name: tensor.cpu() for name, tensor in row.tensors.items()}, row.numbers, rows=row.rows
        )
        for row in batch
    ]


def step_both(
    which: Which, on_cpu: list[TensorArguments], theirs: list[TensorArguments], program: Callable = TritonProgram
) -> None:
    """One step on each device, the GPU's with the CPU's shared values."""
    for graph in graphs_of(which):
        cpp(graph)(on_cpu)
        program(graph)(theirs)
        for a, b in zip(on_cpu, theirs, strict=True):
            for name in graph.decays:
                assert_almost_same_bits(a.tensors[name], b.tensors[name].cpu())
                b.tensors[name].copy_(a.tensors[name])


def addresses(batch: list[TensorArguments]) -> list[dict[str, int]]:
    return [{name: tensor.data_ptr() for name, tensor in row.tensors.items()} for row in batch]


def test_every_codec_occurs():
    used = {codec.name.split(":")[0] for which in EVERY for codec in configuration_of(which).values()}
    assert used >= {name.split(":")[0] for name in CODECS} - {"nearest"}


@every_program
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
def test_same_bits_as_on_the_cpu(which, shift):
    ours, theirs = table_of(which, LARGER_ROWS), on_gpu(table_of(which, LARGER_ROWS), shift)
    before = addresses(theirs)
    for _ in range(2):
        step_both(which, ours, theirs)
        assert_same_bits(ours, back(theirs))
    assert addresses(theirs) == before


@every_program
def test_same_bits_for_any_layout(which):
    batches = []
    for layout in LAYOUTS:
        batches.append(on_gpu(table_of(which, [((4, 3, 5, 33), layout, "every second", 1.0, 9)])))
        step(which, batches[-1], TritonProgram)
    for batch in batches[1:]:
        assert_same_bits(back(batches[0]), back(batch))


@every_program
def test_gaps_between_elements_are_left_alone(which):
    batch = on_gpu(table_of(which, [((40, 9), "every second", "contiguous", 1.0, 0)]))
    whole = batch[0].tensors["param"].as_strided((40 * 18 - 1,), (1,))
    whole[1::2] = 7.0
    step(which, batch, TritonProgram)
    assert (whole[1::2] == 7.0).all()


@every_program
def test_same_bits_for_every_launch_shape(which):
    expected = table_of(which, LARGER_ROWS)
    step(which, expected)
    for shape in (*choosing.CANDIDATES, LaunchShape(512, 1, 4), LaunchShape(256, 3, 8)):
        found = on_gpu(table_of(which, LARGER_ROWS))
        step_both(which, table_of(which, LARGER_ROWS), found, lambda graph, shape=shape: TritonProgram(graph, shape))
        assert_same_bits(expected, back(found))


@every_program
def test_same_bits_in_every_run_and_any_order(which):
    """What program instances of a launch do to each other would show: counters, tickets, partial sums."""
    first, reverse = on_gpu(table_of(which, LARGER_ROWS)), on_gpu(table_of(which, LARGER_ROWS))
    step(which, first, TritonProgram)
    step(which, reverse[::-1], TritonProgram)
    assert_same_bits(back(first), back(reverse))
    for _ in range(5):
        again = on_gpu(table_of(which, LARGER_ROWS))
        step(which, again, TritonProgram)
        assert_same_bits(back(first), back(again))


@pytest.mark.parametrize("which", [PROGRAMS[0], PROGRAMS[7], SHARING[2]], ids=str)
def test_a_table_of_300_tensors(which):
    rows = [((1 + i % 70, 2 + 2 * (i % 13)), LAYOUTS[i % 4], LAYOUTS[i // 4 % 4], 1.0, i) for i in range(300)]
    ours = table_of(which, rows)
    theirs = on_gpu(table_of(which, rows))
    step_both(which, ours, theirs)
    assert_same_bits(ours, back(theirs))


@pytest.mark.parametrize("which", [PROGRAMS[0], PROGRAMS[7], PROGRAMS[13]], ids=str)
def test_shards_that_start_beyond_2_to_the_32(which):
    ours = table_of(which, [((129, 96), "contiguous", "contiguous", 1.0, 6)])
    ours[0].first_index = 2**32 + 9 * GROUP_SIZE
    theirs = on_gpu(ours)
    step_both(which, ours, theirs)
    assert_same_bits(ours, back(theirs))


def test_a_tensor_of_more_than_2_to_the_31_elements():
    """Compared with the CPU's steps of three of its parts: the start, around element 2^31, and the end."""
    check_parts_of_a_large_tensor(numel=2**31 + 3 * 2**16 + 77, middle=2**31, reach=2**16)


def check_parts_of_a_large_tensor(numel: int, middle: int, reach: int) -> None:
    which = Which("Adam", "8bit", FP32, FP32)
    (graph,) = graphs_of(which)
    needed = numel * (4 + 4 + 2 * (1 + 2 / 32)) * 1.05
    if DEVICE.type == "cuda" and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    generator = torch.Generator(DEVICE).manual_seed(0)
    param, grad = (torch.empty(numel, device=DEVICE).normal_(generator=generator) for _ in range(2))
    tensors, numbers = {"param": param, "grad": grad}, {}
    for key, codec in configuration_of(which).items():
        state = StateTensor.empty(param.shape, FP32, DEVICE, codec, key, seed=3)
        tensors |= {f"{key}_{part}": tensor for part, tensor in state.parts.items()}
        numbers[f"{key}_salt"] = float(state.salt)
    for operand in graph.pointers:
        if operand.source == "counter":
            tensors[operand.name] = torch.zeros((), dtype=operand.dtype, device=DEVICE)
    for operand in graph.numbers:
        numbers.setdefault(operand.name, 0.01)
    bounds = [(0, reach), (middle - reach, middle + reach), ((numel - reach) // GROUP_SIZE * GROUP_SIZE, numel)]
    parts = []
    for first, last in bounds:
        piece = TensorArguments(last - first, {}, numbers, {}, first)
        for operand in graph.pointers:
            piece.tensors[operand.name] = _between(tensors[operand.name], operand, first, last).cpu().clone()
        parts.append(piece)
    whole = TensorArguments(numel, tensors, numbers)
    program = TritonProgram(graph)
    for _ in range(2):
        program([whole])
        for piece in parts:
            cpp(graph)([piece])
    for piece, (first, last) in zip(parts, bounds, strict=True):
        for operand in graph.pointers:
            found = _between(tensors[operand.name], operand, first, last).cpu()
            assert torch.equal(bits(found), bits(piece.tensors[operand.name])), (operand.name, first)


def _between(tensor: Tensor, operand, first: int, last: int) -> Tensor:
    """What belongs to these elements."""
    if operand.per == "element":
        return tensor[first:last]
    if operand.per == "group":
        return tensor[first // GROUP_SIZE : -(-last // GROUP_SIZE)]
    return tensor


# the launch shape


def test_a_launch_shape_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setenv("BAOC_CACHE_DIR", str(tmp_path))
    measured = []
    measure = choosing._milliseconds
    monkeypatch.setattr(choosing, "_milliseconds", lambda *a: measured.append(a) or measure(*a))
    (graph,) = graphs_of(PROGRAMS[0])
    shape = choosing.choose_shape(graph, DEVICE)
    assert len(measured) == len({default_shape(graph), *choosing.CANDIDATES})
    assert len(json.loads((tmp_path / "launch_shapes.json").read_text())) == 1
    assert choosing.choose_shape(graph, DEVICE) == shape
    assert len(measured) == len({default_shape(graph), *choosing.CANDIDATES})
    script = f"""
import torch
from baoc_compile.kernels.triton import tune_launch as choose_shape
from program_cases import PROGRAMS, graphs_of
choose_shape._milliseconds = None
shape = choose_shape.choose_shape(graphs_of(PROGRAMS[0])[0], torch.device("cuda"))
assert [shape.tile, shape.tiles, shape.warps] == {[shape.tile, shape.tiles, shape.warps]}
"""
    run_python(["-c", script])


# the sanitizer

SANITIZED = """
import test_gpu_kernels as t
for which in (t.PROGRAMS[0], t.PROGRAMS[7], t.PROGRAMS[13], t.SHARING[2]):
    for shift in (0, 1):
        batch = t.on_gpu(t.table_of(which, t.LARGER_ROWS), shift)
        t.step(which, batch, t.TritonProgram)
        t.step(which, batch, t.TritonProgram)
        t.torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool):
    """Every tensor in an allocation of its own, so that memcheck sees an access beside it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    options = ["--tool", tool, "--error-exitcode", "99"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]
    run_python(["-c", SANITIZED], [sanitizer, *options], PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def run_python(arguments: list[str], before: list[str] | None = None, **environment: str) -> None:
    """In a new process that can import the tests' modules."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*(before or []), sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
