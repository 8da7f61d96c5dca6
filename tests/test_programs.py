"""A program's compiled C++ and its torch interpretation give the same bits, for any table of tensors, in place."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from baoc_compile.kernels import build_cpp, cpp_program, lower
from baoc_compile.kernels.catalogue import codec_for
from baoc_compile.kernels.cpp_program import CppProgram
from baoc_compile.kernels.torch_program import TorchProgram
from baoc_compile.passes.compose_program import compose_program
from baoc_compile.passes.discover_state import discover_state
from hypothesis import given
from hypothesis import strategies as st

from baoc_compile.errors import BaocWarning
from baoc_compile.program import ProgramGraph, Signature, TensorArguments
from baoc_compile.state_tensor import StateTensor
from baoc_compile.step_graph import ParameterTable

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
}
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
PROGRAMS = [
    ("AdamW", "8bit", FP32, FP32),
    ("AdamW", "bf16", BF16, BF16),
    ("SGD", "8bit", FP16, FP16),
    ("SGD", "fp32", FP32, FP32),
    ("RMSprop", "8bit", BF16, FP32),
    ("Adamax", "8bit", FP32, BF16),
    ("Adadelta", "fp32", FP32, FP32),
]
every_program = pytest.mark.parametrize("which", PROGRAMS, ids=lambda which: "-".join(map(str, which)))


@cache
def graph_of(which) -> ProgramGraph:
    """(optimizer, format of its state, parameter's type, gradient's type) -> program graph."""
    optimizer, form, dtype, grad_dtype = which
    table = ParameterTable.of(OPTIMIZERS[optimizer]([torch.nn.Parameter(torch.zeros(3, 4, dtype=dtype))]))
    schema = discover_state(table)[0]
    configuration = {slot.key: codec_for(form, slot, dtype)[0] for slot in schema.rule.slots}
    counters = tuple((i.name, schema.first[i.key].dtype) for i in schema.rule.inputs_of("counter"))
    return compose_program(schema.rule, configuration, Signature("cpu", dtype, grad_dtype, counters))


@cache
def cpp(which) -> CppProgram:
    return CppProgram(graph_of(which))


LAYOUTS = ("contiguous", "transposed", "channels_last", "every second")


def laid_out(value: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "transposed" and value.ndim >= 2:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    if layout == "every second" and value.ndim >= 1:
        return value.repeat_interleave(2, -1)[..., ::2]
    return value


def table_of(which, rows) -> list[TensorArguments]:
    """Rows of (shape, parameter's layout, gradient's layout, magnitude, seed); the same rows make the same tensors."""
    graph, batch = graph_of(which), []
    for shape, layout, grad_layout, magnitude, seed in rows:
        generator = torch.Generator().manual_seed(seed)

        def values(dtype, layout, shape=shape, generator=generator, magnitude=magnitude):
            return laid_out((torch.randn(shape, generator=generator) * magnitude).to(dtype), layout)

        param = values(graph.signature.param_dtype, layout)
        tensors = {"param": param, "grad": values(graph.signature.grad_dtype, grad_layout)}
        numbers = {}
        for key, codec in graph.configuration.items():
            value = values(codec.parts[0].dtype if not codec.stochastic else FP32, layout)
            value = value.abs() if graph.rule.slot(key).nonnegative else value
            if not codec.stochastic:
                tensors[f"{key}_values"] = value
                continue
            state = StateTensor.encoded(value, codec, key, seed)
            tensors |= {f"{key}_{part}": tensor for part, tensor in state.parts.items()}
            numbers[f"{key}_salt"] = float(state.salt)
        for rule_input, dtype in zip(
            graph.rule.inputs_of("counter"), dict(graph.signature.counter_dtypes).values(), strict=True
        ):
            tensors[rule_input.name] = torch.tensor(seed % 100, dtype=dtype)
        for rule_input in graph.rule.inputs_of("scalar"):
            low, high = (min(max(bound, -2.0), 2.0) for bound in rule_input.bounds)
            numbers[rule_input.name] = low + (high - low) * float(torch.rand((), generator=generator))
        batch.append(TensorArguments(param.numel(), tensors, numbers))
    return batch


def assert_same_bits(ours: list[TensorArguments], theirs: list[TensorArguments]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            assert bits(a.tensors[name]).equal(bits(b.tensors[name])), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Integers; all NaN are the same."""
    if not tensor.is_floating_point():
        return tensor
    flat = tensor.reshape(-1)
    integers = flat.clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    return integers.masked_fill_(flat.isnan(), -1)


dimension = st.integers(0, 70)
rows = st.tuples(
    st.one_of(
        st.just(()), st.tuples(dimension), st.tuples(dimension, dimension), st.sampled_from([(3, 5, 7), (2, 3, 5, 7)])
    ),
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
    st.sampled_from([1.0, 1e-3, 1e-30, 1e4, 1e30, 0.0]),
    st.integers(0, 10**6),
)
MANY_ROWS = [
    ((300, 101), "transposed", "contiguous", 1.0, 1),
    ((7,), "contiguous", "every second", 1.0, 2),
    ((), "contiguous", "contiguous", 1.0, 3),
    ((0,), "contiguous", "contiguous", 1.0, 4),
    ((4, 8, 9, 33), "channels_last", "contiguous", 1e-3, 5),
    ((129, 97), "every second", "transposed", 1.0, 6),
]


@every_program
@given(table=st.lists(rows, min_size=1, max_size=4))
def test_cpp_and_torch_give_the_same_bits(which, table):
    compiled, interpreted = table_of(which, table), table_of(which, table)
    for _ in range(2):
        cpp(which)(compiled)
        TorchProgram(graph_of(which))(interpreted)
        assert_same_bits(compiled, interpreted)


@every_program
def test_a_step_changes_what_it_writes_in_place_and_nothing_else(which):
    before, batch = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    pointers = [{name: t.data_ptr() for name, t in row.tensors.items()} for row in batch]
    cpp(which)(batch)
    assert pointers == [{name: t.data_ptr() for name, t in row.tensors.items()} for row in batch]
    written = {operand.name for operand in graph_of(which).operands if operand.written}
    old, new = before[0].tensors, batch[0].tensors
    changed = {name for name in old if not bits(old[name]).equal(bits(new[name]))}
    assert "param" in changed
    assert changed <= written


@every_program
def test_gaps_between_elements_are_left_alone(which):
    batch = table_of(which, [((40, 9), "every second", "contiguous", 1.0, 0)])
    whole = batch[0].tensors["param"].as_strided((40 * 18,), (1,))
    gaps = whole[1::2].clone()
    cpp(which)(batch)
    assert torch.equal(whole[1::2], gaps)


@every_program
@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_for_every_number_of_threads(which, threads, monkeypatch):
    monkeypatch.setattr(cpp_program, "ELEMENTS_PER_THREAD", 1)
    one, several = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        cpp(which)(one)
        torch.set_num_threads(threads)
        cpp(which)(several)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(one, several)


@pytest.mark.parametrize("which", PROGRAMS[:2], ids=str)
def test_same_bits_with_more_threads_than_groups(which, monkeypatch):
    monkeypatch.setattr(cpp_program, "ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    table = [((33,), "contiguous", "contiguous", 1.0, 0), ((), "contiguous", "contiguous", 1.0, 1)]
    compiled, interpreted = table_of(which, table), table_of(which, table)
    cpp(which)(compiled)
    TorchProgram(graph_of(which))(interpreted)
    assert_same_bits(compiled, interpreted)


@every_program
@pytest.mark.parametrize("program", [cpp, lambda which: TorchProgram(graph_of(which))], ids=["cpp", "torch"])
def test_same_bits_in_any_order_and_one_by_one(which, program):
    batch, reverse, single = (table_of(which, MANY_ROWS) for _ in range(3))
    program(which)(batch)
    program(which)(reverse[::-1])
    for row in single:
        program(which)([row])
    assert_same_bits(batch, reverse)
    assert_same_bits(batch, single)


@every_program
def test_same_bits_for_any_layout(which):
    """Elements are numbered in logical order: the strides of a parameter decide nothing."""
    batches = [table_of(which, [((3, 4, 5, 33), layout, "contiguous", 1.0, 9)]) for layout in LAYOUTS]
    for batch in batches:
        cpp(which)(batch)
    for batch in batches[1:]:
        assert_same_bits(batches[0], batch)


@pytest.mark.parametrize("which", PROGRAMS[:3], ids=str)
def test_same_bits_for_every_chunk_of_torch(which):
    small, large = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    TorchProgram(graph_of(which), chunk_elements=1000)(small)
    TorchProgram(graph_of(which))(large)
    assert_same_bits(small, large)


def test_an_empty_batch_does_nothing():
    cpp(PROGRAMS[0])([])
    cpp(PROGRAMS[0])(table_of(PROGRAMS[0], [((0, 3), "contiguous", "contiguous", 1.0, 0)]))


@pytest.mark.parametrize("optimizer", ["AdamW", "Adadelta"])
def test_float64_agrees_within_ulps(optimizer):
    """torch's own float64 square root is not correctly rounded, so equal bits cannot be asked for: 1 ulp of a root,
    and one for each of the few operations after it."""
    which = (optimizer, "fp32", FP64, FP64)
    compiled, interpreted = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    cpp(which)(compiled)
    TorchProgram(graph_of(which))(interpreted)
    for a, b in zip(compiled, interpreted, strict=True):
        for name, tensor in a.tensors.items():
            torch.testing.assert_close(tensor, b.tensors[name], rtol=8 * 2.0**-52, atol=8 * 2.0**-52, equal_nan=True)


def test_without_a_compiler_it_warns_once_and_gives_the_same_bits(monkeypatch):
    which = PROGRAMS[0]
    compiled, fallen_back = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    cpp(which)(compiled)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(build_cpp.shutil, "which", lambda command: None)
    for cached in (build_cpp.compiler, build_cpp.build, lower._warn_once):
        cached.cache_clear()
    with pytest.warns(BaocWarning, match="compiler"):
        program = lower.lower(graph_of(which))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lower.lower(graph_of(PROGRAMS[1]))
    assert isinstance(program, TorchProgram)
    program(fallen_back)
    assert_same_bits(compiled, fallen_back)
