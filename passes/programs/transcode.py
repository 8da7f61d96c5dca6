"""Decode and encode whole state tensors by compiled programs: those of the rules `param = slot` and `slot = param`.

They give the same bits as `StateTensor.decode` and `StateTensor.store`, which take some 40 times as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from baoc_compile.core.codec import Codec, Rows, Slot
from baoc_compile.core.program_graph import Executable, Operand, ProgramGraph, Signature, TensorArguments
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule
from baoc_compile.kernels.cpp.program import CppProgram, CppTable
from baoc_compile.passes.programs.make_programs import Need, programs_of
from baoc_compile.state.state_tensor import StateTensor

_SLOT = "slot"
_PLAIN = Tensor, nn.Parameter


def decoded(state: StateTensor) -> Tensor:
    """Return the values of a state tensor, in its type."""
    decode = _transcoder_of(state, _decoding)
    if decode is None:
        return state.decode()
    plain = torch.empty(decode.shape, dtype=decode.dtype, device=decode.device)
    decode(state, plain)
    return plain.add_(state.weight()) if state.codec.follows_weight else plain


def encode(state: StateTensor, value: Tensor) -> None:
    """Store `value` in a state tensor and advance its clock."""
    encode = _transcoder_of(state, _encoding)
    if encode is None or not encode.takes(value):
        with torch.no_grad():
            state.store(value)
    elif state.codec.follows_weight:
        state.stamp = None
        encode(state, value.detach() - state.weight())
    else:
        encode(state, value)


def _transcoder_of(state: StateTensor, rule: Callable[[], UpdateRule]) -> _Transcoder | None:
    """Return what runs the program of a rule on a state tensor; None if there is none for its codec or device."""
    try:
        return state.transcoders[rule]
    except KeyError:
        has_program = state.codec.mechanism == "rounding" and state.numel() > 0 and state.device.type in ("cpu", "cuda")
        kind = state.codec.inner, state.salt, state.shape, state.dtype, state.device, state.first_lane
        return state.transcoders.setdefault(rule, _transcoder(rule(), *kind) if has_program else None)


class _Transcoder:
    """One of the two programs, over any one state tensor of the same codec, salt, shape, type, device and first lane.

    A compiled C++ program's table takes 20 times as long to build as a small tensor to decode. So tables are kept, without
    tensors: every call writes the addresses that its tensors have now. Calls of several threads take different tables.
    """

    def __init__(
        self,
        rule: UpdateRule,
        codec: Codec,
        salt: int,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        first_lane: int,
    ):
        graph, executable = _program(rule, codec, Signature(str(device), dtype, dtype))
        self.graph, self.executable = graph, executable
        self.shape, self.dtype, self.device, self.first_lane = shape, dtype, device, first_lane
        rows = Rows.of(shape)
        self.rows = rows if graph.has_groups and rows.are_padded else None
        self.numbers = {o.name: float(salt) for o in graph.numbers}
        self.parts = [_part(o) for o in graph.pointers]
        self.keeps_tables = isinstance(executable, CppProgram)
        self.tables: list[CppTable] = []  # those that no call uses

    def __call__(self, state: StateTensor, plain: Tensor) -> None:
        parts = state.parts
        tensors = [plain if part is None else parts[part] for part in self.parts]
        if not self.keeps_tables or not all(t.is_contiguous() for t in tensors):
            self.executable([self._arguments(tensors)])
            return
        try:
            table = self.tables.pop()
        except IndexError:
            table = self.executable.table([self._arguments(tensors)])
        table.point_at([t.data_ptr() for t in tensors])
        self.executable.run(table)
        self.tables.append(table)

    def __deepcopy__(self, memo: Any) -> _Transcoder:
        return self  # it holds no tensors

    def takes(self, value: Tensor) -> bool:
        """Return whether a tensor's memory holds the values as the program reads them."""
        is_plain = type(value) in _PLAIN and value.layout is torch.strided
        return is_plain and value.dtype is self.dtype and value.device == self.device

    def _arguments(self, tensors: list[Tensor]) -> TensorArguments:
        named = {o.name: t.detach() for o, t in zip(self.graph.pointers, tensors, strict=True)}
        return TensorArguments(self.shape.numel(), named, self.numbers, first_index=self.first_lane, rows=self.rows)


def _part(operand: Operand) -> str | None:
    """Return the name of the part of a state tensor that an operand is; None for the plain tensor."""
    if operand.source == "param":
        return None
    return "clock" if operand.part is None else operand.part.name


#: State tensors of one kind share a transcoder.
_transcoder = lru_cache(maxsize=1024)(_Transcoder)


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
    gm = fx.GraphModule(nn.Module(), graph)
    return UpdateRule(gm, inputs, (RuleOutput("new", written),), (Slot(_SLOT),))
