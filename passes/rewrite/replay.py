"""Replay: run a piece that is not elementwise as the step did, between decoding and encoding its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.programs.transcode import decoded, encode
from baoc_compile.passes.recorder.recording import Piece, Value
from baoc_compile.passes.rewrite.places import entry_at, object_at, set_entry
from baoc_compile.passes.rewrite.run_calls import run_calls
from baoc_compile.state.state_tensor import StateTensor


class Replay:
    """A callable that runs a piece on the optimizer's tensors and returns the state entries that it makes.

    piece: the piece.
    reason: why it is not a fused program.
    indices: the parameters that it steps.
    numbers: the value of each of the piece's scalars that is an expression.
    """

    def __init__(self, piece: Piece, reason: str, table: ParameterTable):
        self.piece, self.reason, self.indices = piece, reason, piece.parameters
        names = "_".join(table.short_name(i) for i in piece.parameters[:2])
        self.__name__ = f"replay_{names}"
        self.numbers: list[Any] = [s.value if isinstance(s, Expression) else None for s in piece.scalars]

    def enter(self, positions: Sequence[int], values: Sequence[Any]) -> None:
        """Take the step's numbers."""
        for position, value in zip(positions, values, strict=True):
            self.numbers[position] = value

    @torch.no_grad()
    def __call__(self, table: ParameterTable, known: dict[Value, Any]) -> dict[tuple[int, Any], Tensor]:
        """Run the piece.

        known: the prelude's values; gets those that are written to places outside of tensors.

        Returns (parameter index, state key) -> the tensor, for state that is made or replaced. Nested tensors are replaced.
        """
        values: dict[Any, Any] = dict(known)
        opened: list[tuple[StateTensor, Tensor]] = []
        for value in self.piece.inputs:
            real = tensor_of(value, table)
            if isinstance(real, StateTensor):
                plain = decoded(real)
                opened.append((real, plain))
                real = plain
            values[value] = real
        for scalar, number in zip(self.piece.scalars, self.numbers, strict=True):
            if isinstance(scalar, Expression):
                values[scalar] = number
            elif scalar.call is None and scalar not in values:  # a tensor of a group or an attribute
                values[scalar] = tensor_of(scalar, table)
        run_calls(self.piece.calls, values)
        known |= {value: values[value] for value in self.piece.written}
        for state, plain in opened:
            encode(state, plain)
        made = {}
        for role, value in self.piece.created:
            old = table.state(role.parameter).get(role.key) if role.kind == "state" else None
            if role.kind == "nested":
                *path, last = role.key
                set_entry(entry_at(table.state(role.parameter), path), last, values[value])
            elif isinstance(old, StateTensor):
                encode(old, values[value])
            else:
                made[role.parameter, role.key] = values[value]
        return made


def tensor_of(value: Value, table: ParameterTable) -> Any:
    """Return the tensor that a value from before the step stands for."""
    role = value.role
    assert role is not None
    if role.kind == "param":
        return table.parameters[role.parameter]
    if role.kind == "grad":
        return table.parameters[role.parameter].grad
    if role.kind == "state":
        return table.state(role.parameter)[role.key]
    return object_at(table.optimizer, role.source)
