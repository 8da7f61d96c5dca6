"""Decode and encode whole state tensors by compiled programs: those of the rules `param = slot` and `slot = param`.

They give the same bits as `StateTensor.decode` and `StateTensor.store`, which take some 40 times as long on a CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import Codec, Rows, Slot
from baoc_compile.core.program_graph import Executable, Operand, ProgramGraph, Signature, TensorArguments
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule
from baoc_compile.passes.programs.make_programs import Need, programs_of
from baoc_compile.state.state_tensor import StateTensor

_SLOT = "slot"


def decoded(state: StateTensor) -> Tensor:
    """Return the values of a state tensor, in its type."""
    if not _has_program(state):
        return state.decode()
    plain = torch.empty(state.shape, dtype=state.dtype, device=state.device)
    _run(state, plain, _decoding())
    return plain.add_(state.weight()) if state.codec.follows_weight else plain


def encode(state: StateTensor, value: Tensor) -> None:
    """Store `value` in a state tensor and advance its clock."""
    if not _has_program(state) or value.dtype != state.dtype or value.device != state.device:
        state.store(value)
    else:
        value = value.detach()
        if state.codec.follows_weight:
            value, state.stamp = value - state.weight(), None
        _run(state, value, _encoding())


def _has_program(state: StateTensor) -> bool:
    return state.codec.mechanism == "rounding" and state.numel() > 0 and state.device.type in ("cpu", "cuda")


def _run(state: StateTensor, plain: Tensor, rule: UpdateRule) -> None:
    graph, executable = _program(rule, state.codec.inner, Signature(str(state.device), state.dtype, state.dtype))
    tensors = {o.name: _tensor(o, state, plain) for o in graph.pointers}
    numbers = {o.name: float(state.salt) for o in graph.numbers}
    rows = Rows.of(state.shape)
    padded = rows if graph.has_groups and rows.are_padded else None
    executable([TensorArguments(state.numel(), tensors, numbers, rows=padded)])


def _tensor(operand: Operand, state: StateTensor, plain: Tensor) -> Tensor:
    if operand.source == "param":
        return plain
    return state.parts["clock" if operand.part is None else operand.part.name]


@cache
def _program(rule: UpdateRule, codec: Codec, signature: Signature) -> tuple[ProgramGraph, Executable]:
    (((graph, executable),),) = programs_of([Need(rule, ((_SLOT, codec),), signature)])
    return graph, executable


@cache
def _decoding() -> UpdateRule:
    return _rule("param", "slot")


@cache
def _encoding() -> UpdateRule:
    return _rule("slot", "param")


def _rule(written: str, read: str) -> UpdateRule:
    """Return the rule that copies one of its inputs to the other."""
    graph = fx.Graph()
    inputs = (RuleInput("param", "param"), RuleInput("slot", "slot", _SLOT))
    placeholders = {i.name: graph.placeholder(i.name) for i in inputs}
    graph.output((placeholders[read],))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    return UpdateRule(gm, inputs, (RuleOutput("new", written),), (Slot(_SLOT),))
