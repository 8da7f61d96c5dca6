"""Split a recorded step into one piece for each parameter, and the prelude that all share; find equal pieces.

Calls have joined the values that they connect. For an elementwise optimizer, each group of values belongs to exactly one
parameter. An optimizer that mixes parameters gives a piece with several of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import InputRole
from baoc_compile.passes.capture.piece_graph import is_liftable
from baoc_compile.passes.capture.stand_in import StandIn
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Call, Piece, Value, ValueGroup
from baoc_compile.passes.recorder.torch_calls import TENSOR_FORMS, VIEWS


def split_pieces(stand_in: StandIn) -> tuple[list[Piece], list[Call]]:
    """Return the pieces, in the order of their parameters, and the prelude's calls.

    Raises UnsupportedStep for state that shares its memory with a parameter, a gradient or other state.
    """
    recorder = stand_in.recorder
    pieces: dict[ValueGroup, Piece] = {}
    prelude: list[Call] = []
    for call in recorder.calls:
        if call in recorder.dropped:
            continue
        group = call.results[0].group if call.results else None
        if group is None:
            prelude.append(call)
            continue
        root = group.root()
        if root not in pieces:
            pieces[root] = Piece(tuple(sorted(root.parameters)), [], reason=root.reason)
        pieces[root].calls.append(call)
    _add_created(stand_in, pieces)
    prelude = _needed(prelude, list(pieces.values()))
    shared = _described_values(prelude)
    for piece in pieces.values():
        _describe(piece, stand_in, shared)
    return sorted(pieces.values(), key=lambda piece: piece.parameters), prelude


def _add_created(stand_in: StandIn, pieces: dict[ValueGroup, Piece]) -> None:
    """Add the state entries whose tensor the step makes or replaces to their pieces."""
    recorder = stand_in.recorder
    for parameter, entries in stand_in.optimizer.state.items():
        index = stand_in.index_of(parameter)
        if index is None:
            continue
        seen: set[int] = set()
        for key, tensor in entries.items():
            value = recorder.value_of(tensor) if isinstance(tensor, Tensor) else None
            if value is None:
                continue
            root = recorder.root_of(tensor)
            if root in seen or _is_shared(value, tensor, recorder, index, key):
                raise UnsupportedStep(f"its state {key!r} shares memory with another tensor; keep a copy (`.clone()`)")
            seen.add(root)
            if value.role is not None or _changes_in_place(value, index, key):
                continue
            piece = None if value.group is None else pieces.get(value.group.root())
            if piece is None:
                raise UnsupportedStep(f"it makes state {key!r} of nothing that belongs to a parameter")
            piece.created.append((InputRole("state", index, key), value))


def _is_shared(value: Value, tensor: Any, recorder: Any, index: int, key: Any) -> bool:
    """Return whether a state entry shows the elements of another tensor."""
    if recorder.memory.is_view(tensor):
        return True
    origin = _origin(value)
    return origin.role is not None and (
        origin.role.kind != "state" or (origin.role.parameter, origin.role.key) != (index, key)
    )


def _origin(value: Value) -> Value:
    """Follow in-place calls, and views, back to the value that the tensor had first."""
    while value.call is not None and (value.call.is_inplace or value.call.name in VIEWS):
        value = value.call.arguments[0]
    return value


def _changes_in_place(value: Value, index: int, key: Any) -> bool:
    origin = _origin(value)
    return origin.role == InputRole("state", index, key)


def _needed(prelude: list[Call], pieces: list[Piece]) -> list[Call]:
    """Leave out calls of the prelude whose results nobody uses."""
    wanted: set[Value] = set()
    for piece in pieces:
        for call in piece.calls:
            wanted.update(v for v in values_in(call) if v.group is None)
    kept = []
    for call in reversed(prelude):
        if call.is_inplace or any(result in wanted for result in call.results):
            kept.append(call)
            wanted.update(values_in(call))
    return kept[::-1]


def values_in(argument: Any) -> list[Value]:
    """Return the values among the arguments of a call, or in nested lists, in order."""
    if isinstance(argument, Value):
        return [argument]
    if isinstance(argument, Call):
        return values_in([*argument.arguments, *argument.options.values()])
    return [v for a in argument for v in values_in(a)] if isinstance(argument, (list, tuple)) else []


def _described_values(prelude: list[Call]) -> dict[Value, int]:
    """Return numbers that are equal for values of equal calls, whatever the parameters and the numbers that they take."""
    found: dict[Value, int] = {}

    def described(argument: Any) -> Hashable:
        if isinstance(argument, Value):
            role = argument.role
            return found[argument] if argument in found else role and (role.kind, role.key)
        if isinstance(argument, (list, tuple)):
            return tuple(map(described, argument))
        return "number" if isinstance(argument, Expression) else (type(argument).__name__, repr(argument))

    for call in prelude:
        options = tuple((k, described(a)) for k, a in call.options.items())
        known = hash((call.name, call.is_inplace, described(call.arguments), options))
        found |= {result: hash((known, i)) for i, result in enumerate(call.results)}
    return found


def _describe(piece: Piece, stand_in: StandIn, shared: dict[Value, int]) -> None:
    """Find the piece's inputs and numbers, the last value of each input, and its signature.

    shared: see `_described_values`.
    """
    number: dict[Any, int] = {}
    final: dict[Value, Value] = {}
    signature: list[Hashable] = []

    def numbered(value: Value) -> Hashable:
        if value not in number:
            number[value] = len(number)
            if value.group is None:
                piece.scalars.append(value)
                signature.append(("tensor", tuple(value.shape), str(value.dtype), shared.get(value)))
            else:
                piece.inputs.append(value)
                signature.append(_role_of(value, piece, stand_in))
        return number[value]

    def described(argument: Any, call: Call, position: int | str) -> Hashable:
        if isinstance(argument, Value):
            return ("value", numbered(argument))
        if isinstance(argument, Expression):
            if argument not in number:
                number[argument] = len(number)
                piece.scalars.append(argument)
            return ("number", number[argument])
        if is_liftable(call, argument, position):
            piece.constants.append(argument)
            return ("constant",)
        if isinstance(argument, (list, tuple)):
            return (type(argument).__name__, *(described(a, call, position) for a in argument))
        return (type(argument).__name__, repr(argument))

    for call in piece.calls:
        arguments = tuple(described(a, call, i) for i, a in enumerate(call.arguments))
        options = tuple((k, described(a, call, k)) for k, a in call.options.items())
        signature.append(
            (call.function if call.name not in TENSOR_FORMS else call.name, call.is_inplace, arguments, options)
        )
        for result in call.results:
            number[result] = len(number)
        if call.is_inplace:
            origin = _origin(call.results[0])
            if origin.role is not None:
                final[origin] = call.results[0]
    for role, value in piece.created:
        signature.append(("creates", role.key, piece.parameters.index(role.parameter), numbered(value)))
    piece.final = [final.get(value, value) for value in piece.inputs]
    piece.signature = (tuple(signature), piece.reason)


def _role_of(value: Value, piece: Piece, stand_in: StandIn) -> Hashable:
    role = value.role
    if role is None:
        raise UnsupportedStep("it uses a tensor of unknown origin")
    shape = tuple(value.shape)
    own = stand_in.table.parameters[role.parameter]
    kind = "own shape" if shape == tuple(own.shape) else shape
    return (role.kind, piece.parameters.index(role.parameter), role.key, kind, str(value.dtype), own.ndim == 0)
