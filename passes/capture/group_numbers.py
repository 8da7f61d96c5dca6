"""Group parameters whose numbers are the same functions of the same sources, so that each is computed once for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from baoc_compile.passes.capture.piece_graph import operands_of
from baoc_compile.passes.numbers.expressions import SEVERAL, Expression, Guard
from baoc_compile.passes.numbers.number_function import NumberFunction, compile_numbers
from baoc_compile.passes.recorder.recording import Piece, Recording, Value, Write


@dataclass(eq=False)
class NumberGroup:
    """Parameters with the same numbers, but for what their state says.

    function: takes the state of one parameter as a row; its `own` sources are those of the first one.
    members: indices of the parameters; one that is stepped together with others stands for all of them.
    pieces: the piece of each; None for a parameter that only has numbers.
    positions: positions among a piece's scalars of the values that the function returns first.
    writes: what the function returns after them is written to these places; the parameter is the first one's.
    """

    function: NumberFunction
    members: list[int]
    pieces: list[Piece | None]
    positions: tuple[int, ...]
    writes: tuple[Write, ...]


@dataclass
class GroupedNumbers:
    """The numbers of a recording.

    shared: checks the guards that concern no parameter alone, and computes what is written outside of their state, what
        the prelude takes, and the number that the step returns, if it does.
    shared_writes: where the values that `shared` returns first go.
    prelude: the expressions whose values `shared` returns after them.
    groups: the numbers of parameters.
    element_writes: where numbers go that are not computed on the host, but by the prelude and the pieces.
    """

    shared: NumberFunction
    shared_writes: tuple[Write, ...]
    prelude: tuple[Expression, ...]
    groups: list[NumberGroup]
    element_writes: tuple[Write, ...] = ()


@dataclass
class _Of:
    """The numbers of one parameter."""

    piece: Piece | None = None
    writes: list[Write] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)


def group_numbers(recording: Recording) -> GroupedNumbers:
    """Group the parameters of a recording, in order of first appearance."""
    of: dict[int, _Of] = defaultdict(_Of)
    for found in recording.pieces:
        of[found.parameters[0]].piece = found
    shared_writes = []
    element_writes = []
    for write in recording.writes:
        if isinstance(write.value, Value):
            element_writes.append(write)
        elif write.source.parameter >= 0:
            of[write.source.parameter].writes.append(write)
        else:
            shared_writes.append(write)
    shared_guards = []
    for guard in recording.guards:
        if guard.expression.owner >= 0:
            of[guard.expression.owner].guards.append(guard)
        else:
            shared_guards.append(guard)
    operands = [v for call in recording.prelude for v in operands_of(call)]
    prelude = tuple(dict.fromkeys(v for v in operands if isinstance(v, Expression)))
    returned = [recording.returns.number] if recording.returns.kind == "number" else []
    shared = compile_numbers(shared_guards, [*(write.value for write in shared_writes), *prelude, *returned])
    groups: dict[Hashable, NumberGroup] = {}
    for index, numbers in sorted(of.items()):
        piece, writes = numbers.piece, numbers.writes
        scalars = [] if piece is None else [(i, s) for i, s in enumerate(piece.scalars) if isinstance(s, Expression)]
        wanted = [s for _, s in scalars] + [w.value for w in writes]
        is_alone = all(_owner(v) in (index, -1) for v in wanted)
        key = (
            None if piece is None else piece.signature,
            tuple((i, s.template) for i, s in scalars),
            tuple((w.source.path, w.dtype, _template(w.value)) for w in writes),
            tuple((g.expression.template, g.is_truth, repr(g.expected)) for g in numbers.guards),
            None if is_alone else index,
        )
        if key not in groups:
            function = compile_numbers(numbers.guards, wanted, index)
            groups[key] = NumberGroup(function, [], [], tuple(i for i, _ in scalars), tuple(writes))
        groups[key].members.append(index)
        groups[key].pieces.append(piece)
    return GroupedNumbers(shared, tuple(shared_writes), prelude, list(groups.values()), tuple(element_writes))


def _owner(value: Any) -> int:
    if not isinstance(value, Expression):
        return -1
    return SEVERAL if value.owner == SEVERAL else value.owner


def _template(value: Any) -> Hashable:
    return value.template if isinstance(value, Expression) else (type(value), repr(value))


def same_numbers(some: GroupedNumbers, others: GroupedNumbers) -> bool:
    """Return whether two recordings compute the same numbers of the same sources."""
    return _described(some) == _described(others)


def _described(numbers: GroupedNumbers) -> Any:
    groups = [
        (_function(g.function, g.members[0]), g.members, g.positions, [(w.source.path, w.dtype) for w in g.writes])
        for g in numbers.groups
    ]
    shared = [(w.source.kind, w.source.path, w.dtype) for w in numbers.shared_writes]
    elements = [(w.source, w.dtype) for w in numbers.element_writes]
    return _function(numbers.shared, -1), shared, groups, elements


def _function(function: NumberFunction, owner: int) -> Any:
    sources = [(s.kind, s.path, s.is_tensor, s.parameter == owner) for s in (*function.shared, *function.own)]
    return function.source_text, sources
