"""Replay: run a piece that is not elementwise as the step did, between decoding and encoding its state.

A tensor lives as long as in the step: until the last call that it takes part in. State is encoded then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.torch_private import holders_of_memory
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.programs.transcode import decoded, encode
from baoc_compile.passes.recorder.recording import Piece, Value
from baoc_compile.passes.rewrite.places import entry_at, object_at, set_entry
from baoc_compile.passes.rewrite.run_calls import last_uses, run_call
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
        self._last_uses = last_uses(piece.calls, {*piece.written, *(value for _, value in piece.created)})
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
        opened = _Decoded()
        for index in self.indices:  # stored anew, since the weights change
            for state in table.state(index).values():
                if isinstance(state, StateTensor) and state.codec.follows_weight:
                    opened.decode(state)
        for value in self.piece.inputs:
            real = tensor_of(value, table)
            values[value] = opened.decode(real) if isinstance(real, StateTensor) else real
        for scalar, number in zip(self.piece.scalars, self.numbers, strict=True):
            if isinstance(scalar, Expression):
                values[scalar] = number
            elif scalar.call is None and scalar not in values:  # a tensor of a group or an attribute
                values[scalar] = tensor_of(scalar, table)
        for call, done in zip(self.piece.calls, self._last_uses, strict=True):
            run_call(call, values)
            for value in done:
                opened.close_if_free(id(values.pop(value)))
        known |= {value: values[value] for value in self.piece.written}
        opened.close()
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


class _Decoded:
    """The state tensors that are decoded now, by the `id` of the decoded tensor, and that tensor."""

    def __init__(self) -> None:
        self._all: dict[int, tuple[StateTensor, Tensor]] = {}

    def decode(self, state: StateTensor) -> Tensor:
        known = next((plain for other, plain in self._all.values() if other is state), None)
        plain = decoded(state) if known is None else known
        self._all[id(plain)] = state, plain
        return plain

    def close_if_free(self, identity: int) -> None:
        """Encode a decoded tensor that nobody else refers to any more, nor to its memory."""
        if identity in self._all:
            state, plain = self._all[identity]
            is_held = sys.getrefcount(plain) > 3 or holders_of_memory(plain) > 1  # the pair, `plain`, the argument
            if not is_held and not state.codec.follows_weight:
                del self._all[identity]
                encode(state, plain)

    def close(self) -> None:
        """Encode what is left."""
        while self._all:
            encode(*self._all.popitem()[1])


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
