"""Programs for tests, tables of tensors to run them over, and what "the same bits" means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import optimizers
import torch
from hypothesis import strategies as st
from optimizers import CASES
from program_optimizers import Counts, KeepsLines, ReadsOld, Reduces

from baoc_compile.core.codec import WEIGHT_KEY, Codec, Rows
from baoc_compile.core.program_graph import ProgramGraph, Signature, TensorArguments
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.codecs.catalogue import codec_for, codec_named
from baoc_compile.kernels.codecs.codebook import Codebook
from baoc_compile.kernels.codecs.plain import Full
from baoc_compile.kernels.cpp.program import CppProgram
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.passes.capture import stand_in
from baoc_compile.passes.programs import compose_program as composing
from baoc_compile.passes.rewrite.bind_launches import size_of
from baoc_compile.state.state_tensor import StateTensor

OPTIMIZERS = {
    "ReadsOld": ReadsOld,
    "Reduces": Reduces,
    "Counts": Counts,
    "KeepsLines": KeepsLines,
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
}
Program = Callable[[ProgramGraph], Callable[[list[TensorArguments]], None]]
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


class Which(NamedTuple):
    """`form`: the format of all state, or "slot=format ..." with "*" for the rest and "param" for the weight."""

    optimizer: str
    form: str
    dtype: torch.dtype
    grad_dtype: torch.dtype

    def __str__(self) -> str:
        types = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys((self.dtype, self.grad_dtype))]
        return "-".join([self.optimizer, self.form, *types])


SHARING = [
    Which("SGD", "momentum_buffer=row", FP32, FP32),
    Which("SGD", "momentum_buffer=head:2", FP16, FP32),
    Which("AdamW", "exp_avg=column exp_avg_sq=factored *=8bit", FP32, FP32),
    Which("AdamW", "exp_avg=tensor exp_avg_sq=run:4 *=fp32", BF16, BF16),
    Which("AdamW", "exp_avg=dropped exp_avg_sq=column_head:3 *=4bit param=bf16+8", BF16, BF16),
    Which("Reduces", "8bit", FP32, FP32),
    Which("Reduces", "power=factored *=4bit", BF16, FP32),
    Which("KeepsLines", "8bit", FP32, FP32),
    Which("KeepsLines", "4bit", BF16, FP32),
]
PROGRAMS = [
    Which("ReadsOld", "trend=fp32 power=8bit", FP32, FP32),
    Which("AdamW", "8bit", FP32, FP32),
    Which("AdamW", "bf16", BF16, BF16),
    Which("SGD", "8bit", FP16, FP16),
    Which("SGD", "fp32", FP32, FP32),
    Which("RMSprop", "8bit", BF16, FP32),
    Which("Adamax", "8bit", FP32, BF16),
    Which("Adadelta", "fp32", FP32, FP32),
    Which("AdamW", "4bit", FP32, FP32),
    Which("AdamW", "4bit-learned", BF16, BF16),
    Which("AdamW", "8bit-learned", FP32, FP32),
    Which("AdamW", "exp_avg=e2m1 *=e4m4", FP32, FP32),
    Which("AdamW", "exp_avg=codebook4 exp_avg_sq=e3m1 *=bf16", FP32, FP32),
    Which("AdamW", "*=8bit param=bf16+8", BF16, BF16),
    Which("SGD", "*=bf16 param=bf16+16", BF16, FP32),
    Which("AdamW", "*=fp32 param=bf16+sr", BF16, BF16),
    Which("SGD", "*=4bit param=fp16+8", FP16, FP16),
    Which("SGD", "*=fp32 param=fp16+16", FP16, FP32),
    Which("SGD", "*=8bit param=fp16+sr", FP16, FP16),
    Which("Counts", "fp32", FP32, FP32),
    Which("Counts", "8bit", BF16, FP32),
    Which("SGD", "momentum_buffer=w+e2m5", FP32, FP32),
    Which("AdamW", "exp_avg=w+e2m1 *=16bit", FP32, BF16),
]


#: More, so that every codec, every stock optimizer and every other one of `optimizers.py` occurs.
MORE_PROGRAMS = [
    Which("SGD-momentum", "fp32", FP64, FP64),
    Which("Adadelta", "8bit", FP64, FP32),
    Which("AdamW", "exp_avg=e3m4 exp_avg_sq=e2m6 *=ucodebook4", FP32, BF16),
    Which("SGD-dampening", "4bit-learned", FP32, FP32),
    Which("SGD-nesterov", "8bit-learned", FP32, FP32),
    Which("Adam", "8bit", FP32, FP32),
    Which("Adam-amsgrad", "bf16", FP32, FP32),
    Which("NAdam", "8bit", FP32, FP32),
    Which("NAdam-decoupled", "4bit", BF16, BF16),
    Which("RAdam", "8bit", FP32, FP16),
    Which("Adagrad", "8bit", FP32, FP32),
    Which("RMSprop-momentum", "*=4bit param=bf16+16", BF16, BF16),
    Which("RMSprop-centered", "bf16", FP32, FP32),
    Which("RMSprop-centered-momentum", "bf16", FP32, FP32),
    Which("Rprop", "8bit", FP32, FP32),
    Which("Lion", "8bit", FP32, FP32),
    Which("Plain", "*=8bit param=fp16+8", FP16, FP16),
]


def optimizer_of(name: str) -> Any:
    """Of a parameter of 12 elements. One of `optimizers.CASES` where `OPTIMIZERS` has none of this name."""
    parameters = [torch.nn.Parameter(torch.zeros(3, 4))]
    return OPTIMIZERS[name](parameters) if name in OPTIMIZERS else CASES[name].make(parameters, **CASES[name].options)


@cache
def rule_of(which: Which) -> UpdateRule:
    """The rule of the optimizer. `Counts` keeps its count as on a GPU, where it is no number that the host reads."""
    is_number = (lambda tensor: False) if which.optimizer == "Counts" else stand_in.is_host_number
    with mock.patch.object(stand_in, "is_host_number", is_number):
        rule = optimizers.rule_of(optimizer_of(which.optimizer))
    assert bool(rule.inputs_of("counter")) == (which.optimizer == "Counts")
    return rule


@cache
def configuration_of(which: Which) -> dict[str, Codec]:
    forms = dict(pair.split("=") for pair in which.form.split()) if "=" in which.form else {"*": which.form}
    found = {}
    for slot in rule_of(which).slots:
        form = forms.get(slot.key, forms.get("*"))
        slot = replace(slot, follows_weight=form.startswith("w+"))
        found[slot.key], reason = codec_for(form, slot, torch.Size((2, 12)), which.dtype)
        assert reason == slot.why_exact
    if WEIGHT_KEY in forms:
        found[WEIGHT_KEY] = codec_named(forms[WEIGHT_KEY])
    return found


@cache
def graphs_of(which: Which) -> list[ProgramGraph]:
    """The programs of one step, in order."""
    counters = tuple((i.name, FP32) for i in rule_of(which).inputs if i.kind in ("counter", "lines"))
    signature = Signature("cpu", which.dtype, which.grad_dtype, counters)
    return composing.compose_step(rule_of(which), configuration_of(which), signature)


@cache
def cpp(graph: ProgramGraph) -> CppProgram:
    return CppProgram(graph)


def step(which: Which, batch: list[TensorArguments], program: Program = cpp) -> None:
    for graph in graphs_of(which):
        program(graph)(batch)


def step_both(
    which: Which, ours: list[TensorArguments], theirs: list[TensorArguments], program: Program = TorchProgram
) -> None:
    """One step by C++ and by another program, the latter with the former's shared and reduced values."""
    for graph in graphs_of(which):
        cpp(graph)(ours)
        program(graph)(theirs)
        for a, b in zip(ours, theirs, strict=True):
            for operand in graph.shared if graph.folds else ():
                name = operand.name
                if operand.fold == "average":
                    assert_almost_same_bits(a.tensors[name], b.tensors[name])
                elif operand.fold:  # summed up in double, in another order
                    torch.testing.assert_close(a.tensors[name], b.tensors[name], rtol=1e-12, atol=0, equal_nan=True)
                b.tensors[name].copy_(a.tensors[name])


LAYOUTS = ("contiguous", "transposed", "channels_last", "every second")


def laid_out(value: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "transposed" and value.ndim >= 2:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    if layout == "every second" and value.ndim >= 1:
        return value.repeat_interleave(2, -1)[..., ::2]
    return value


def table_of(which: Which, rows) -> list[TensorArguments]:
    """Rows of (shape, parameter's layout, gradient's layout, magnitude, seed); the same rows make the same tensors.

    Shapes that a codec does not fit are left out.
    """
    rule, configuration, batch = rule_of(which), configuration_of(which), []
    for shape, layout, grad_layout, magnitude, seed in rows:
        if any(
            configuration[s.key].why_not(
                replace(s, follows_weight=configuration[s.key].follows_weight), torch.Size(shape)
            )
            for s in rule.slots
        ):
            continue
        generator = torch.Generator().manual_seed(seed)

        def values(dtype, layout, shape=shape, generator=generator, magnitude=magnitude):
            return laid_out((torch.randn(shape, generator=generator) * magnitude).to(dtype), layout)

        param = values(which.dtype, layout)
        tensors = {"param": param, "grad": values(which.grad_dtype, grad_layout)}
        numbers: dict[str, float] = {}
        sharing = {}
        for key, codec in configuration.items():
            value = values(codec.parts[0].dtype if isinstance(codec, Full) else FP32, layout)
            if isinstance(codec, Full):
                tensors[f"{key}_values"] = value.abs() if rule.slot(key).nonnegative else value
                continue
            state = StateTensor.empty(value.shape, FP32, value.device, codec, key, seed).anchored(param)
            if codec.mechanism == "weight":
                state.store_weight(param.float() * (1 + 2.0**-12 * torch.rand(shape, generator=generator)), param)
            elif codec.mechanism != "dropping":
                if isinstance(codec, Codebook):  # levels of the tensor's own
                    state.parts["levels"][1:-1] += 1
                state.store(value.abs() if rule.slot(key).nonnegative else value)
            tensors |= {f"{key}_{part}": tensor for part, tensor in state.parts.items()}
            numbers[f"{key}_salt"] = float(state.salt)
            shared = (part for part in codec.parts if part.per == "shared")
            sharing |= {f"{key}_{part.name}": codec.sharing(part, torch.Size(shape)) for part in shared}
        for operand in graphs_of(which)[-1].operands:
            if operand.source == "counter":
                tensors[operand.name] = torch.tensor(seed % 100, dtype=operand.dtype)
        for operand in (o for graph in graphs_of(which) for o in graph.operands if o.source in ("reduced", "lines")):
            sharing[operand.name] = lines = operand.input.sharing(param.shape)
            size = (lines.cycle,) if operand.input.origin else ()
            if operand.source == "reduced":
                tensors[operand.name] = torch.zeros(size, dtype=operand.dtype)
            elif operand.name not in tensors:
                tensors[operand.name] = torch.rand(size, dtype=operand.dtype, generator=generator) * magnitude
        for rule_input in rule.inputs_of("scalar"):
            if rule_input.origin in ("numel", "columns"):
                numbers[rule_input.name] = size_of(rule_input, param)
                continue
            low, high = (min(max(bound, -2.0), 2.0) for bound in rule_input.bounds)
            numbers[rule_input.name] = low + (high - low) * float(torch.rand((), generator=generator))
        batch.append(
            TensorArguments(param.numel(), tensors, numbers, sharing, rows=rows_of(graphs_of(which)[-1], param.shape))
        )
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


def assert_almost_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The last place differs at most, and hardly ever."""
    off = (ordered(ours) - ordered(theirs)).abs()
    assert (off <= 1).all()
    assert (off > 0).sum() <= 1 + off.numel() / 1000


def ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the numbers, and as dense."""
    integers = bits(tensor).long()
    return torch.where(integers < -1, -(integers & 0x7FFFFFFF), integers)


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


def shards(graph: ProgramGraph, row: TensorArguments, cut: int) -> list[TensorArguments]:
    """A contiguous tensor's operands before and from row `cut`; each has clocks, counters and tables of its own."""
    parts: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = {}, {}
    for operand in graph.operands:
        if not operand.in_memory:
            continue
        tensor = row.tensors[operand.name]
        halves = [tensor[:cut], tensor[cut:]] if operand.per in ("element", "group") else [tensor, tensor]
        for part, half in zip(parts, halves, strict=True):
            part[operand.name] = half.clone()
    shape = row.tensors["param"].shape
    first = cut * Rows.of(shape).padded
    shapes = torch.Size([cut, *shape[1:]]), torch.Size([shape[0] - cut, *shape[1:]])
    return [
        TensorArguments(s.numel(), part, row.numbers, first_index=i, rows=rows_of(graph, s))
        for s, part, i in zip(shapes, parts, (0, first), strict=True)
    ]


def rows_of(graph: ProgramGraph, shape: torch.Size) -> Rows | None:
    rows = Rows.of(shape)
    return rows if graph.has_groups and rows.are_padded else None
