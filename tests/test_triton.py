"""Interpreted Triton kernels give the same bits as compiled C++, for any table of tensors, in place.

Shared values are sums in another order: they may differ by the last place of fp32. Transcendental functions differ,
too: see `test_device_functions.py`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optimizers import CASES
from program_cases import (
    BF16,
    FP32,
    MORE_PROGRAMS,
    PROGRAMS,
    SHARING,
    Which,
    assert_same_bits,
    bits,
    configuration_of,
    graphs_of,
    rows,
    step,
    step_both,
    table_of,
)

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.program_graph import TensorArguments
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.codecs.weight import NearestWeight
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.kernels.triton import program as triton_program
from baoc_compile.kernels.triton.program import LaunchShape, TritonProgram

pytestmark = [pytest.mark.interpreted, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]
EVERY = [*PROGRAMS, *SHARING, *MORE_PROGRAMS]
every_program = pytest.mark.parametrize("which", EVERY, ids=str)

#: 0-d, empty, a single element, several tiles and a last one that is short, several dimensions, strides.
COVERING = [
    ((), "contiguous", "contiguous", 1.0, 3),
    ((0,), "contiguous", "contiguous", 1.0, 4),
    ((1,), "contiguous", "contiguous", 1e-3, 6),
    ((34, 36), "transposed", "every second", 1.0, 7),
    ((2, 4, 6, 5), "channels_last", "contiguous", 1e-30, 8),
]


def interpreted(graph, tiles=2, tile=512, warps=4):
    """Several program instances for a tensor of more than 1,024 elements."""
    return TritonProgram(graph, LaunchShape(tile, tiles, warps))


def surrounded(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements at an odd address, between NaN; strided tensors as they are."""
    if not tensor.is_contiguous():
        return tensor
    outside = torch.full((600,), float("nan") if tensor.is_floating_point() else 77).to(tensor.dtype)
    return torch.cat([outside[:1], tensor.reshape(-1), outside])[1 : 1 + tensor.numel()].view(tensor.shape)


def shifted(which: Which, batch: list[TensorArguments], group: int) -> list[TensorArguments]:
    """As shards that start at a later group, at odd addresses."""
    for row in batch:
        row.first_index = group * GROUP_SIZE
        row.tensors = {name: surrounded(tensor) for name, tensor in row.tensors.items()}
    return batch


def check(which: Which, table: list, group: int = 0, program=interpreted) -> None:
    """One step both ways, over tensors at odd addresses if they are shards."""
    ours, theirs = table_of(which, table), table_of(which, table)
    if group:
        ours, theirs = shifted(which, ours, group), shifted(which, theirs, group)
    pointers = [{name: t.data_ptr() for name, t in row.tensors.items()} for row in theirs]
    step_both(which, ours, theirs, program)
    assert_same_bits(ours, theirs)
    assert pointers == [{name: t.data_ptr() for name, t in row.tensors.items()} for row in theirs]


def test_every_codec_and_optimizer_occurs():
    used = {codec.name.split(":")[0] for which in EVERY for codec in configuration_of(which).values()}
    for kind in {type(codec) for codec in CODECS.values()} - {NearestWeight}:  # which stores nothing and has no code
        of_kind = {name.split(":")[0] for name, codec in CODECS.items() if type(codec) is kind}
        assert len(used & of_kind) >= min(len(of_kind), 6), of_kind - used
    assert {which.optimizer for which in EVERY} >= CASES.keys() - {"ASGD", "ThreeSlots"}  # in test_triton_steps.py


@every_program
def test_same_bits_as_cpp(which):
    check(which, COVERING)


@pytest.mark.parametrize("which", [PROGRAMS[3], PROGRAMS[7], PROGRAMS[13], SHARING[0]], ids=str)
@settings(max_examples=4, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(table=st.lists(rows, min_size=1, max_size=2), group=st.sampled_from([0, 1, 2**23 + 1, 2**31 + 7]))
def test_same_bits_for_any_table(which, table, group):
    check(which, table, group)


@pytest.mark.slow
@every_program
@settings(max_examples=15)
@given(table=st.lists(rows, min_size=1, max_size=4), group=st.sampled_from([0, 1, 2**23 + 1, 2**31 + 7]))
def test_same_bits_for_any_table_thoroughly(which, table, group):
    check(which, table, group)


@pytest.mark.parametrize("which", [PROGRAMS[0], PROGRAMS[7], PROGRAMS[15]], ids=str)
def test_random_words_of_a_shard_that_crosses_element_2_to_the_32(which):
    """From the group before it, in the middle of a tile."""
    ours, theirs = (table_of(which, [((40, 50), "contiguous", "contiguous", 1.0, 3)]) for _ in range(2))
    for batch, program in ((ours, TorchProgram), (theirs, interpreted)):
        step(which, shifted(which, batch, 2**32 // GROUP_SIZE - 1), program)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("which", [PROGRAMS[0], SHARING[4]], ids=str)
@pytest.mark.parametrize("tile, tiles, warps", [(512, 1, 4), (1024, 2, 8), (2048, 1, 1)])
def test_same_bits_for_every_launch_shape(which, tile, tiles, warps):
    shaped = partial(interpreted, tile=tile, tiles=tiles, warps=warps)
    check(which, [((42, 60), "contiguous", "contiguous", 1.0, 3)], program=shaped)


@pytest.mark.parametrize("which", [PROGRAMS[1], PROGRAMS[7], PROGRAMS[13], SHARING[0]], ids=str)
def test_nothing_beside_the_elements_is_written(which):
    batch = shifted(which, table_of(which, [((1030,), "contiguous", "contiguous", 1.0, 1)] * 2), 1)
    gaps = table_of(which, [((40, 30), "every second", "contiguous", 1.0, 0)])
    before = [[bits(t._base.clone()) for t in row.tensors.values()] for row in batch]
    between = gaps[0].tensors["param"].as_strided((40 * 60,), (1,))[1::2]
    old = between.clone()
    step(which, batch + gaps, interpreted)
    assert torch.equal(between, old)
    for row, bases in zip(batch, before, strict=True):
        for (name, tensor), base in zip(row.tensors.items(), bases, strict=True):
            now = bits(tensor._base)
            assert now[0] == base[0] and now[1 + tensor.numel() :].equal(base[1 + tensor.numel() :]), name


@pytest.mark.parametrize("form", ["fp32", "trend=tensor"])
def test_many_tensors_in_one_launch(form):
    """Some of them of several program instances, of which one counts the step."""
    which = Which("Counts", form, FP32, FP32)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 200, (40,), generator=generator).tolist()
    table = [((4 * n,), "contiguous", "contiguous", 1.0, seed) for seed, n in enumerate(sizes)]
    ours, theirs = table_of(which, table), table_of(which, table)
    steps = [float(row.tensors["count"]) for row in theirs]
    step_both(which, ours, theirs, partial(interpreted, tiles=1))
    assert_same_bits(ours, theirs)
    assert [float(row.tensors["count"]) for row in theirs] == [s + 1 for s in steps]


@pytest.mark.parametrize("which", [PROGRAMS[0], SHARING[0], SHARING[3]], ids=str)
def test_tickets_are_0_after_every_launch(which, monkeypatch):
    monkeypatch.setattr(triton_program, "PIECE", 1)
    ours, theirs = (table_of(which, [((32, 48), "contiguous", "contiguous", 1.0, 1), *COVERING]) for _ in range(2))
    programs = [interpreted(graph, tiles=1) for graph in graphs_of(which)]
    tables = [program.table(theirs) for program in programs]
    for _ in range(2):
        step(which, ours)
        for program, table in zip(programs, tables, strict=True):
            assert len(table.instances) > len(table.tickets)
            program.run(table)
            assert not table.tickets.any()
    if which in PROGRAMS:
        assert_same_bits(ours, theirs)


# what has all reductions takes many programs; lines are enough for a quick run
@pytest.mark.parametrize(
    "which", [pytest.param(w, marks=[pytest.mark.slow] * (w.optimizer == "Reduces")) for w in SHARING], ids=str
)
def test_a_sum_in_several_pieces(which, monkeypatch):
    monkeypatch.setattr(triton_program, "PIECE", 1)
    check(which, [((60, 24), "contiguous", "transposed", 1.0, 1), ((4, 1032), "contiguous", "contiguous", 1e-3, 2)])


def test_a_long_sum_in_two_pieces():
    which = Which("SGD", "momentum_buffer=tensor", FP32, BF16)
    table = [((40_000,), "contiguous", "contiguous", 1.0, 1)]
    graph, batch = graphs_of(which)[0], table_of(which, table)
    assert len(interpreted(graph).table(batch).instances) == 2
    check(which, table, program=partial(interpreted, tile=4096))


def test_an_empty_batch_does_nothing():
    step(PROGRAMS[0], [], interpreted)
    step(SHARING[0], [], interpreted)


def test_strides_of_more_dimensions_than_a_kernel_takes_are_refused():
    batch = table_of(PROGRAMS[0], [((2,) * 7, "transposed", "contiguous", 1.0, 1)])
    with pytest.raises(
        ValueError, match=r"param of shape \(2, 2, 2, 2, 2, 2, 2\) has strides and more than 6 dimensions"
    ):
        step(PROGRAMS[0], batch, interpreted)
