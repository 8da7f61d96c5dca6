"""Numbers that a step computes of many elements: which concern one parameter alone, and which parameters exchange.

A norm of one update is part of that update's piece. A sum of all updates' norms belongs to no parameter: it is computed by
the prelude. What the prelude reads of the pieces, they export; then it runs in two parts, of which the late one waits for the
exports.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from baoc_compile.passes.recorder.recording import Call, Piece, Value, ValueGroup, values_in


def move_to_pieces(prelude: list[Call], pieces: list[Piece], order: list[Call], written: Iterable[Value]) -> list[Call]:
    """Move the calls that concern one parameter alone, such as its norm, into its piece; return the others."""
    readers: dict[Value, set[int]] = defaultdict(set)  # pieces, or -1: more than a piece reads it
    for value in written:
        readers[value].add(-1)
    for k, piece in enumerate(pieces):
        for value in values_in([*piece.calls]) + [v for _, v in piece.created]:
            readers[value].add(k)
    sources: dict[Value, set[int]] = {}  # parameters that a value is computed from
    for call in prelude:
        found = set().union(*(_sources(v, sources) for v in values_in(call)))
        sources |= dict.fromkeys(call.results, found)
    moved: dict[int, list[Call]] = defaultdict(list)
    kept = []
    for call in reversed(prelude):
        read_by = set().union(*(readers[result] for result in call.results))
        k = next(iter(read_by), -1)
        is_own = k >= 0 and len(read_by) == 1 and sources[call.results[0]] == set(pieces[k].parameters)
        if is_own and len(pieces[k].parameters) == 1:
            moved[k].append(call)
        else:
            kept.append(call)
        for value in values_in(call):
            readers[value] |= read_by if is_own else {-1}
    position = {call: n for n, call in enumerate(order)} if moved else {}
    for k, calls in moved.items():
        pieces[k].calls = sorted([*pieces[k].calls, *calls], key=position.__getitem__)
    return kept[::-1]


def _sources(value: Value, known: dict[Value, set[int]]) -> set[int]:
    """Return the parameters that a value of the prelude is computed from; -1 for what belongs to none."""
    if value.call is None:
        return {-1 if value.role is None else value.role.parameter}
    return known.get(value, set()) if value.call.group is None else set(value.call.group.root().parameters)


def find_exports(prelude: list[Call], pieces: list[Piece], written: Iterable[Value]) -> list[Call]:
    """Fill in what the pieces export; return the late calls of the prelude: those that depend on it.

    A call that changes a tensor after the first late one is late, too, so that calls keep their order.
    """
    read = {*values_in(prelude), *written}
    for piece in pieces:
        own = {result for call in piece.calls for result in call.results}
        read.update(v for v in values_in([*piece.calls]) if v not in own)
    named = set(written)
    for piece in pieces:
        made = dict.fromkeys(result for call in piece.calls for result in call.results)
        outside = [v for v in made if v in read and (v.group is None or v in named)]
        piece.exported = [v for v in outside if v not in piece.written]
    late: list[Call] = []
    waiting = {v for piece in pieces for v in piece.exported}
    for call in prelude:
        if not waiting.isdisjoint(values_in(call)) or (late and call.is_inplace):
            late.append(call)
            waiting.update(call.results)
    return late


def joined_by_exports(late: list[Call], pieces: list[Piece]) -> ValueGroup | None:
    """Return the group of all pieces that exchange numbers, joined, if they have to run together, else None.

    They do if they exchange numbers more than once in a step, or if one that exports some is no elementwise update. The late
    calls belong to the group then.
    """
    waiting = {v for piece in pieces for v in piece.exported} | {r for call in late for r in call.results}
    run_together = False
    involved: list[Piece] = []
    for piece in pieces:
        own = {result for call in piece.calls for result in call.results}
        depends: set[Value] = set()  # on what is exchanged
        for call in piece.calls:
            if any(v in depends or (v in waiting and v not in own) for v in values_in(call)):
                depends.update(call.results)
        run_together = (
            run_together or any(v in depends for v in piece.exported) or bool(piece.exported and piece.reason)
        )
        if depends or piece.exported:
            involved.append(piece)
    if not run_together:
        return None
    first, *others = [g for piece in involved for call in piece.calls if (g := call.group) is not None]
    for group in others:
        first = first.join(group)
    for call in late:
        call.group = first
    return first.root()
