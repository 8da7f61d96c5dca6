"""A program's compiled C++ and its torch interpretation give the same bits, for any table of tensors, in place.

Shared values are means that the two sum up in different orders, in double: they may differ by the last place of fp32.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from program_cases import (
    FP64,
    LAYOUTS,
    MANY_ROWS,
    PROGRAMS,
    SHARING,
    Which,
    assert_same_bits,
    bits,
    cpp,
    graphs_of,
    rows,
    shards,
    step,
    step_both,
    table_of,
)

from baoc_compile.core.errors import BaocWarning
from baoc_compile.kernels.build import compile_cpp as build_cpp
from baoc_compile.kernels.cpp import program as cpp_program
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.passes.programs import lower

every_program = pytest.mark.parametrize("which", [*PROGRAMS, *SHARING], ids=str)


@every_program
@given(table=st.lists(rows, min_size=1, max_size=4))
def test_cpp_and_torch_give_the_same_bits(which, table):
    compiled, interpreted = table_of(which, table), table_of(which, table)
    for _ in range(2):
        step_both(which, compiled, interpreted)
        assert_same_bits(compiled, interpreted)


@every_program
def test_a_step_changes_what_it_writes_in_place_and_nothing_else(which):
    before, batch = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    pointers = [{name: t.data_ptr() for name, t in row.tensors.items()} for row in batch]
    step(which, batch)
    assert pointers == [{name: t.data_ptr() for name, t in row.tensors.items()} for row in batch]
    written = {operand.name for graph in graphs_of(which) for operand in graph.operands if operand.written}
    old, new = before[0].tensors, batch[0].tensors
    changed = {name for name in old if not bits(old[name]).equal(bits(new[name]))}
    assert "param" in changed
    assert changed <= written


@every_program
def test_gaps_between_elements_are_left_alone(which):
    batch = table_of(which, [((40, 9), "every second", "contiguous", 1.0, 0)])
    whole = batch[0].tensors["param"].as_strided((40 * 18,), (1,))
    gaps = whole[1::2].clone()
    step(which, batch)
    assert torch.equal(whole[1::2], gaps)


@every_program
@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_for_every_number_of_threads(which, threads, monkeypatch):
    monkeypatch.setattr(cpp_program, "ELEMENTS_PER_THREAD", 1)
    one, several = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        step(which, one)
        torch.set_num_threads(threads)
        step(which, several)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(one, several)


@pytest.mark.parametrize("which", PROGRAMS[:2], ids=str)
def test_same_bits_with_more_threads_than_groups(which, monkeypatch):
    monkeypatch.setattr(cpp_program, "ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    table = [((33,), "contiguous", "contiguous", 1.0, 0), ((), "contiguous", "contiguous", 1.0, 1)]
    compiled, interpreted = table_of(which, table), table_of(which, table)
    step_both(which, compiled, interpreted)
    assert_same_bits(compiled, interpreted)


@every_program
@pytest.mark.parametrize("program", [cpp, TorchProgram], ids=["cpp", "torch"])
def test_same_bits_in_any_order_and_one_by_one(which, program):
    batch, reverse, single = (table_of(which, MANY_ROWS) for _ in range(3))
    step(which, batch, program)
    step(which, reverse[::-1], program)
    for row in single:
        step(which, [row], program)
    assert_same_bits(batch, reverse)
    assert_same_bits(batch, single)


@every_program
def test_same_bits_for_any_layout(which):
    """Elements are numbered in logical order: the strides of a parameter decide nothing."""
    batches = [table_of(which, [((4, 3, 5, 33), layout, "contiguous", 1.0, 9)]) for layout in LAYOUTS]
    for batch in batches:
        assert batch
        step(which, batch)
    for batch in batches[1:]:
        assert_same_bits(batches[0], batch)


@every_program
def test_same_bits_for_every_size_of_chunks(which):
    small, large = (table_of(which, MANY_ROWS) for _ in range(2))
    step(which, small, lambda graph: TorchProgram(graph, chunk_elements=1000))
    step(which, large, TorchProgram)
    assert_same_bits(small, large)


@pytest.mark.parametrize("which", PROGRAMS, ids=str)
@pytest.mark.parametrize("program", [cpp, TorchProgram], ids=["cpp", "torch"])
@given(
    shape=st.tuples(st.integers(2, 40), st.integers(1, 70))
    | st.tuples(st.integers(2, 9), st.integers(1, 5), st.integers(1, 40)),
    data=st.data(),
)
def test_a_shard_along_the_first_dimension_has_the_bits_of_the_whole(which, program, shape, data):
    """At any row: no group crosses rows."""
    row = (shape, "contiguous", "contiguous", 1.0, 6)
    (whole,), (again,) = table_of(which, [row]), table_of(which, [row])
    (graph,) = graphs_of(which)
    parts = shards(graph, again, data.draw(st.integers(1, shape[0] - 1)))
    for _ in range(2):
        step(which, [whole], program)
        step(which, parts, program)
    for operand in graph.operands:
        if operand.in_memory:
            first, second = (bits(part.tensors[operand.name]) for part in parts)
            joined = torch.cat([first, second]) if operand.per in ("element", "group") else second
            assert torch.equal(joined, bits(whole.tensors[operand.name]).view_as(joined)), operand.name


def test_an_empty_batch_does_nothing():
    step(PROGRAMS[0], [])
    step(PROGRAMS[0], table_of(PROGRAMS[0], [((0, 3), "contiguous", "contiguous", 1.0, 0)]))


@pytest.mark.parametrize("optimizer", ["AdamW", "Adadelta"])
def test_float64_agrees_within_ulps(optimizer):
    """torch's own float64 square root is not correctly rounded, so equal bits cannot be asked for: 1 ulp of a root,
    and one for each of the few operations after it."""
    which = Which(optimizer, "fp32", FP64, FP64)
    compiled, interpreted = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    step_both(which, compiled, interpreted)
    for a, b in zip(compiled, interpreted, strict=True):
        for name, tensor in a.tensors.items():
            torch.testing.assert_close(tensor, b.tensors[name], rtol=8 * 2.0**-52, atol=8 * 2.0**-52, equal_nan=True)


def test_without_a_compiler_it_warns_once_and_gives_the_same_bits(monkeypatch):
    which = PROGRAMS[0]
    compiled, fallen_back = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    step(which, compiled)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(build_cpp.shutil, "which", lambda command: None)
    monkeypatch.setattr("baoc_compile.core.errors._TOLD", set())
    build_cpp.build.cache_clear()
    with pytest.warns(BaocWarning, match="compiler"):
        program = lower.lower(graphs_of(which)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lower.lower(graphs_of(PROGRAMS[1])[0])
    assert isinstance(program, TorchProgram)
    program(fallen_back)
    assert_same_bits(compiled, fallen_back)
