"""Split a recorded step into one piece for each parameter, and the prelude that all share; find equal pieces.

Calls have joined the values that they connect. For an elementwise optimizer, each group of values belongs to exactly one
parameter. An optimizer that mixes parameters gives a piece with several of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import InputRole
from baoc_compile.passes.capture.created_state import created_state, give_to_parameters
from baoc_compile.passes.capture.exchanged_numbers import find_exports, joined_by_exports, move_to_pieces
from baoc_compile.passes.capture.piece_graph import is_liftable
from baoc_compile.passes.capture.stand_in import StandIn
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recorder import Recorder
from baoc_compile.passes.recorder.recording import Call, Piece, Value, ValueGroup, Write, origin_of, values_in
from baoc_compile.passes.recorder.torch_calls import TENSOR_FORMS


def split_pieces(stand_in: StandIn, writes: list[Write]) -> tuple[list[Piece], list[Call], list[Call]]:
    """Return the pieces, in the order of their parameters, the prelude's calls, and those of them that are late.

    writes: what else the step changes.

    Raises UnsupportedStep for state that shares its memory with a parameter, a gradient or other state.
    """
    recorder = stand_in.recorder
    created = created_state(stand_in)
    give_to_parameters(created, stand_in)
    written = [w.value for w in writes if isinstance(w.value, Value)]
    for value in written:
        if value.group is not None:
            value.group.root().reason = (
                value.group.root().reason or "it keeps a number of elements outside of its state"
            )
    read = [*written, *(condition.value for condition in recorder.conditions)]
    while True:
        pieces, prelude = _split(recorder, created, written, read)
        late = find_exports(prelude, pieces, read)
        if not late or joined_by_exports(late, pieces) is None:
            break
    shared = _described_values(prelude)
    for piece in pieces:
        _describe(piece, stand_in, shared)
    return sorted(pieces, key=lambda piece: piece.parameters), prelude, late


def _split(
    recorder: Recorder, created: list[tuple[InputRole, Value]], written: list[Value], read: list[Value]
) -> tuple[list[Piece], list[Call]]:
    """Return the pieces with their calls, and the prelude's calls.

    read: what is written to places outside of tensors, and conditions.
    """
    pieces: dict[ValueGroup, Piece] = {}
    prelude: list[Call] = []
    for call in recorder.calls:
        if call in recorder.dropped:
            continue
        if call.group is None:
            prelude.append(call)
            continue
        root = call.group.root()
        if root not in pieces:
            pieces[root] = Piece(tuple(sorted(root.parameters)), [], reason=root.reason)
        pieces[root].calls.append(call)
    for role, value in created:
        assert value.call is not None and value.call.group is not None
        group = value.call.group.root()
        if role.parameter not in group.parameters:
            raise UnsupportedStep(f"it makes state {role.key!r} of a parameter from tensors of others")
        pieces[group].created.append((role, value))
    for value in written:
        if value.group is not None:
            pieces[value.group.root()].written.append(value)
    prelude = _needed(prelude, list(pieces.values()), read)
    return list(pieces.values()), move_to_pieces(prelude, list(pieces.values()), recorder.calls, read)


def _needed(prelude: list[Call], pieces: list[Piece], written: list[Value]) -> list[Call]:
    """Leave out calls of the prelude whose results nobody uses."""
    wanted = set(written)
    for piece in pieces:
        for call in piece.calls:
            wanted.update(v for v in values_in(call) if v.group is None)
    kept = []
    for call in reversed(prelude):
        if call.is_inplace or any(result in wanted for result in call.results):
            kept.append(call)
            wanted.update(values_in(call))
    return kept[::-1]


def _described_values(prelude: list[Call]) -> dict[Value, int]:
    """Return numbers that are equal for values of equal calls, whatever the parameters and the numbers that they take."""
    found: dict[Value, int] = {}

    def described(argument: Any) -> Hashable:
        if isinstance(argument, Value):
            role = argument.role
            return found.get(argument, role and (role.kind, role.key))
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
            origin = origin_of(call.results[0])
            if origin.role is not None:
                final[origin] = call.results[0]
    for role, value in piece.created:
        signature.append(("creates", role.key, piece.parameters.index(role.parameter), numbered(value)))
    signature += [("writes", numbered(value)) for value in piece.written]
    signature += [("exports", numbered(value)) for value in piece.exported]
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
