"""A group of parameters with the same numbers, bound to their state and to the launches and replays that take them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.launch.host_numbers import Distinct, Gathered, HostNumbers
from baoc_compile.kernels.launch.survey import Parameters
from baoc_compile.passes.capture.group_numbers import NumberGroup
from baoc_compile.passes.numbers.expressions import Source
from baoc_compile.passes.rewrite.bind_launches import Bound
from baoc_compile.passes.rewrite.number_targets import targets_of
from baoc_compile.passes.rewrite.places import entry_at, put
from baoc_compile.passes.rules.extract_rules import Bounds


class OutOfBounds(Exception):
    """A number left the interval that a proof assumes.

    signature: of the pieces; position: of the scalar; value: the number.
    """

    def __init__(self, signature: Hashable, position: int, value: float):
        super().__init__(signature, position, value)
        self.signature, self.position, self.value = signature, position, value


class BoundGroup:
    """A group's numbers in every step.

    Raises KeyError or IndexError when made if the optimizer lacks a number that the step reads.

    group: the group.
    shared: source -> position among the values that all groups share; the group's own are added.
    gathered: the tensors that hold numbers; the group's are added.
    bounds: signature of pieces -> the interval that proofs assume for each scalar.
    """

    def __init__(
        self,
        group: NumberGroup,
        table: ParameterTable,
        bound: Bound,
        shared: dict[Source, int],
        gathered: Gathered,
        bounds: dict[Hashable, list[Bounds]],
    ):
        self.group, self.function = group, group.function
        self.indices = np.array(group.members)
        self._member = {index: k for k, index in enumerate(group.members)}
        self.entries = [table.state(i) for i in group.members]
        self._shared = [shared.setdefault(source, len(shared)) for source in self.function.shared]
        #: For each of the function's own sources, where the members' tensors are among the host numbers.
        self._at = [gathered.positions(self._at_all(s.path)) if s.is_tensor else None for s in self.function.own]
        self._is_integer = [
            s.is_tensor and not entry_at(self.entries[0], s.path).is_floating_point() for s in self.function.own
        ]
        self._written = [
            None if w.dtype is None else gathered.positions(self._at_all(w.source.path)) for w in group.writes
        ]
        self._distinct: list[Distinct | None] = []
        piece = group.pieces[0]
        self.signature = None if piece is None else piece.signature
        of = bounds.get(self.signature, [])
        #: Position among the values, lowest and highest number.
        self._bounds = [
            (k, *of[p]) for k, p in enumerate(group.positions) if p < len(of) and of[p] != (-np.inf, np.inf)
        ]
        self._targets = targets_of(group, bound)
        steps = {r.indices[0]: r for r in bound.replays}
        self._replays = [steps.get(i) for i in group.members] if any(i in steps for i in group.members) else []
        # of one step
        #: Positions of the members that take it; None for all.
        self._members: np.ndarray | None = None
        #: What the function returned for each distinct row of own numbers.
        self._results: list[tuple[Any, ...]] = []
        #: For each of these members, which result is its own; None if there is one for all.
        self._which: np.ndarray | None = None

    def _at_all(self, path: Sequence[Any]) -> list[Any]:
        return [entry_at(entries, path) for entries in self.entries]

    def read_from(self, host: HostNumbers) -> None:
        """Read the members' tensors from where they are gathered."""
        self._distinct = [None if at is None else Distinct(host.values, at) for at in self._at]

    # a step

    def compute(self, shared: Sequence[Any], seen: Parameters) -> bool:
        """Compute the numbers of the members that have a gradient. Return whether there are any.

        shared: the values that all groups share.

        Raises GuardFailed and OutOfBounds.
        """
        members = None
        if not seen.all_present:
            members = np.flatnonzero(seen.present[self.indices])
            if len(members) == len(self.indices):
                members = None
        self._members = members
        if members is not None and not len(members):
            return False
        rows, self._which = self._rows()
        self._results = self.function([shared[k] for k in self._shared], rows)
        for k, low, high in self._bounds:
            for result in self._results:
                if not low <= result[k] <= high:
                    raise OutOfBounds(self.signature, self.group.positions[k], result[k])
        return True

    def _rows(self) -> tuple[Sequence[Sequence[Any]], np.ndarray | None]:
        """Return the distinct rows of own numbers, and which of them each member has; None if there is one for all."""
        if not self._distinct:
            return ((),), None
        members, columns = self._members, []
        for source, distinct, is_integer in zip(self.function.own, self._distinct, self._is_integer, strict=True):
            if distinct is not None:
                numbers: list[Any]
                numbers, which = distinct.find(members)
                if is_integer:  # they are read as doubles
                    numbers = list(map(int, numbers))
                if len(self._distinct) == 1:
                    return [(number,) for number in numbers], which
                count = len(self.entries if members is None else members)
                columns.append(numbers * count if which is None else [numbers[k] for k in which.tolist()])
            else:
                entries = self.entries if members is None else [self.entries[m] for m in members.tolist()]
                key, *more = source.path
                columns.append([entry_at(e, source.path) for e in entries] if more else [e[key] for e in entries])
        position: dict[tuple[Any, ...], int] = {}
        rows = [position.setdefault(row, len(position)) for row in zip(*columns, strict=True)]
        return list(position), np.array(rows, dtype=np.int64) if len(position) > 1 else None

    def _result(self, k: int) -> tuple[Any, ...]:
        """Return the numbers of the k-th member that takes the step."""
        return self._results[0 if self._which is None else int(self._which[k])]

    def _chosen(self) -> Sequence[int]:
        """Return the positions of the members that take the step."""
        return range(len(self.entries)) if self._members is None else self._members.tolist()

    def enter(self) -> None:
        """Enter the numbers in the launches and replays that take them."""
        count = len(self.group.positions)
        if self._targets:
            scalars = np.array([result[:count] for result in self._results], dtype=np.float64)
            which = self._which
            if which is not None and self._members is not None:
                which = np.zeros(len(self.entries), dtype=np.int64)  # any numbers will do for the others
                which[self._members] = self._which
            for target in self._targets:
                target.enter(scalars, which)
        if self._replays:
            for k, member in enumerate(self._chosen()):
                replay = self._replays[member]
                if replay is not None:
                    replay.enter(self.group.positions, self._result(k)[:count])

    def of(self, index: int) -> dict[int, Any] | None:
        """Return a parameter's numbers: position among its piece's scalars -> number; None if it takes no part."""
        k = self._member.get(index)
        if k is not None and self._members is not None:
            place = int(np.searchsorted(self._members, k))
            k = place if place < len(self._members) and self._members[place] == k else None
        return None if k is None else dict(zip(self.group.positions, self._result(k), strict=False))

    def commit(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Write the members' Python numbers. Return what is to be written to tensors: their positions, and the numbers."""
        positions, numbers = [], []
        places = zip(self.group.writes, self._written, strict=True)
        for k, (write, at) in enumerate(places, len(self.group.positions)):
            values = [result[k] for result in self._results]
            if at is None:
                for n, member in enumerate(self._chosen()):
                    put(self.entries[member], write, values[0 if self._which is None else self._which[n]])
                continue
            chosen = at if self._members is None else at[self._members]
            written = np.array(values, dtype=np.float64)
            positions.append(chosen)
            numbers.append(np.full(len(chosen), written[0]) if self._which is None else written[self._which])
        return positions, numbers
