"""Rewrite: bind the numbers of a step to the places where the optimizer keeps them and to the launches that take them.

Every number is computed once for all parameters for which it is the same: those of a group whose state has equal numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.launch.fused_update import BoundLaunch
from baoc_compile.kernels.launch.survey import Distinct, HostNumbers, Parameters
from baoc_compile.passes.capture.group_numbers import GroupedNumbers, NumberGroup
from baoc_compile.passes.numbers.expressions import Expression, Source
from baoc_compile.passes.numbers.number_function import NumberFunction
from baoc_compile.passes.rewrite.bind_launches import Bound
from baoc_compile.passes.rewrite.places import entry_at, put, put_shared, reader_of
from baoc_compile.passes.rewrite.replay import Replay
from baoc_compile.passes.rules.extract_rules import Bounds, RuleClass


class GuardFailed(Exception):
    """The numbers are not those for which the step was recorded."""


class OutOfBounds(Exception):
    """A number left the interval that a proof assumes.

    signature: of the pieces; position: of the scalar; value: the number.
    """

    def __init__(self, signature: Hashable, position: int, value: float):
        super().__init__(signature, position, value)
        self.signature, self.position, self.value = signature, position, value


@dataclass
class _Target:
    """Where a group's scalars go in one launch.

    members: positions of those members of the group that the launch steps.
    rows: the rows of these members; a slice if they are all rows of the launch.
    columns: columns of the launch's numbers.
    values: which of the group's values they get.
    """

    launch: BoundLaunch
    members: np.ndarray
    rows: Any
    columns: np.ndarray
    values: list[int]


@dataclass
class _Group:
    """A number group, bound.

    shared: the positions of the function's shared sources among the shared values.
    positions: for each of its own sources, the members' positions among the host numbers; None for a Python number.
    is_integer: for each of these, whether it is a tensor of integers.
    tensors: for each of these, the host numbers of the members.
    entries: the state of each member.
    """

    group: NumberGroup
    indices: np.ndarray
    shared: list[int]
    positions: list[np.ndarray | None]
    is_integer: list[bool]
    entries: list[dict[Any, Any]]
    tensors: list[Distinct | None] = field(default_factory=list)
    targets: list[_Target] = field(default_factory=list)
    replays: list[Replay | None] = field(default_factory=list)
    bounds: list[tuple[int, float, float]] = field(default_factory=list)
    signature: Hashable = None
    written: list[np.ndarray | None] = field(default_factory=list)


@dataclass
class _Computed:
    """The numbers of a group in one step.

    members: positions of the members that take the step; None for all.
    results: what the group's function returned for each set of distinct own numbers.
    which: for each of these members, which result is its own; None if there is one for all.
    """

    group: _Group
    members: np.ndarray | None
    results: list[tuple[Any, ...]]
    which: np.ndarray | None

    @property
    def chosen(self) -> Sequence[int]:
        """The positions of the members that take the step."""
        return range(len(self.group.indices)) if self.members is None else self.members.tolist()

    def result(self, k: int) -> tuple[Any, ...]:
        """Return the numbers of the k-th of these members."""
        return self.results[0 if self.which is None else int(self.which[k])]


class BoundNumbers:
    """The numbers of a step, as the host reads, computes and writes them.

    Raises KeyError or IndexError when made if the optimizer lacks a number that the step reads.
    """

    def __init__(self, numbers: GroupedNumbers, classes: list[RuleClass], bound: Bound, table: ParameterTable):
        self.numbers = numbers
        self._tensors: list[Tensor] = []
        self._position: dict[int, int] = {}
        shared: dict[Source, int] = {}
        for source in numbers.shared.shared:
            shared.setdefault(source, len(shared))
        replays = {r.indices[0]: r for r in bound.replays}
        bounds = {piece.signature: c.bounds for c in classes if c.rule is not None for piece in c.members}
        self._groups = [self._group(g, shared, table, bound, replays, bounds) for g in numbers.groups]
        self._read_shared = reader_of(list(shared))
        self._count = len(numbers.shared.shared)
        self._host = HostNumbers(self._tensors)
        for group in self._groups:
            group.tensors = [None if at is None else Distinct(self._host.values, at) for at in group.positions]
        self._pending: list[_Computed] = []
        self._shared_values: tuple[Any, ...] = ()

    def _group(
        self,
        group: NumberGroup,
        shared: dict[Source, int],
        table: ParameterTable,
        bound: Bound,
        replays: dict[int, Replay],
        bounds: dict[Hashable, list[Bounds]],
    ) -> _Group:
        entries = [table.state(i) for i in group.members]
        is_integer = [s.is_tensor and not entry_at(entries[0], s.path).is_floating_point() for s in group.function.own]
        places = [shared.setdefault(source, len(shared)) for source in group.function.shared]
        positions = [
            self._positions([entry_at(e, s.path) for e in entries]) if s.is_tensor else None for s in group.function.own
        ]
        made = _Group(group, np.array(group.members), places, positions, is_integer, entries)
        piece = group.pieces[0]
        if piece is not None:
            made.signature = piece.signature
            made.replays = [replays.get(i) for i in group.members]
            of = bounds.get(piece.signature, [])
            made.bounds = [
                (k, *of[p]) for k, p in enumerate(group.positions) if p < len(of) and of[p] != (-np.inf, np.inf)
            ]
            made.targets = self._targets(group, bound)
        for write in group.writes:
            is_tensor = write.dtype is not None
            made.written.append(
                self._positions([entry_at(e, write.source.path) for e in entries]) if is_tensor else None
            )
        return made

    def _positions(self, tensors: Sequence[Tensor]) -> np.ndarray:
        for tensor in tensors:
            if id(tensor) not in self._position:
                self._position[id(tensor)] = len(self._tensors)
                self._tensors.append(tensor)
        return np.array([self._position[id(t)] for t in tensors], dtype=np.int64)

    @staticmethod
    def _targets(group: NumberGroup, bound: Bound) -> list[_Target]:
        value_at = {position: k for k, position in enumerate(group.positions)}
        names_of: dict[BoundLaunch, dict[str, int]] = {}
        places: dict[BoundLaunch, list[tuple[int, int]]] = defaultdict(list)
        for member, index in enumerate(group.members):
            for launch, row, names in bound.rows.get(index, ()):
                names_of.setdefault(launch, names)
                places[launch].append((row, member))
        found = []
        for launch, names in names_of.items():
            names = {name: p for name, p in names.items() if name in launch.column}
            columns = np.array([launch.column[name] for name in names], dtype=np.int64)
            rows, members = np.array(sorted(places[launch]), dtype=np.int64).T
            is_whole = len(rows) == len(launch.indices)
            values = [value_at[p] for p in names.values()]
            found.append(_Target(launch, members, slice(None) if is_whole else rows[:, None], columns, values))
        return found

    # a step

    def compute(self, optimizer: Any, seen: Parameters) -> None:
        """Compute the step's numbers and enter them in the launches. Nothing of the optimizer changes.

        seen: which parameters have a gradient.

        Raises GuardFailed, and OutOfBounds.
        """
        shared = self._read_shared(optimizer)
        (self._shared_values,) = _called(self.numbers.shared, shared[: self._count], ((),))
        self._host.read()
        pending = []
        for group in self._groups:
            members = None
            if not seen.all_present:
                members = np.flatnonzero(seen.present[group.indices])
                if not len(members):
                    continue
                members = None if len(members) == len(group.indices) else members
            rows, which = self._distinct(group, members)
            results = _called(group.group.function, [shared[k] for k in group.shared], rows)
            for k, low, high in group.bounds:
                for result in results:
                    if not low <= result[k] <= high:
                        raise OutOfBounds(group.signature, group.group.positions[k], result[k])
            pending.append(_Computed(group, members, results, which))
        self._pending = pending
        for computed in pending:
            self._enter(computed)

    @staticmethod
    def _distinct(group: _Group, members: np.ndarray | None) -> tuple[Sequence[Sequence[Any]], np.ndarray | None]:
        """Return the distinct rows of a group's members, and which of them each has; None if there is one for all."""
        if not group.tensors:
            return ((),), None
        columns: list[list[Any]] = []
        for source, at, is_integer in zip(group.group.function.own, group.tensors, group.is_integer, strict=True):
            if at is not None:
                numbers, which = at.find(members)
                numbers = list(map(int, numbers)) if is_integer else numbers  # integer tensors are read as doubles
                if len(group.tensors) == 1:
                    return [(number,) for number in numbers], which
                count = len(group.entries if members is None else members)
                columns.append(numbers * count if which is None else [numbers[k] for k in which.tolist()])
            else:
                entries = group.entries if members is None else [group.entries[m] for m in members.tolist()]
                key, *more = source.path
                columns.append([entry_at(e, source.path) for e in entries] if more else [e[key] for e in entries])
        number: dict[tuple[Any, ...], int] = {}
        rows = [number.setdefault(own, len(number)) for own in zip(*columns, strict=False)]
        return list(number), np.array(rows, dtype=np.int64) if len(number) > 1 else None

    @staticmethod
    def _enter(computed: _Computed) -> None:
        """Enter a group's numbers in the launches and replays that take them."""
        group, members, results, which = computed.group, computed.members, computed.results, computed.which
        count = len(group.group.positions)
        if group.targets:
            scalars = np.array([result[:count] for result in results], dtype=np.float64)
            of = which
            if which is not None and members is not None:  # the others aren't launched, and get any numbers
                of = np.zeros(len(group.indices), dtype=np.int64)
                of[members] = which
            for target in group.targets:
                numbers = scalars[:, target.values]
                own = numbers[0] if of is None else numbers[of[target.members]]
                target.launch.enter(target.rows, target.columns, own)
        if any(group.replays):
            for k, member in enumerate(computed.chosen):
                replay = group.replays[member]
                if replay is not None:
                    replay.enter(group.group.positions, computed.result(k)[:count])

    def of(self, index: int) -> dict[int, Any]:
        """Return the numbers of this step for one parameter: position among its piece's scalars -> number."""
        for computed in self._pending:
            members = computed.group.indices if computed.members is None else computed.group.indices[computed.members]
            for k in np.nonzero(members == index)[0].tolist():
                return dict(zip(computed.group.group.positions, computed.result(k), strict=False))
        return {}

    @property
    def of_prelude(self) -> dict[Expression, Any]:
        """The numbers of this step that the prelude takes."""
        return dict(zip(self.numbers.prelude, self._shared_values[len(self.numbers.shared_writes) :], strict=True))

    def commit(self, optimizer: Any) -> None:
        """Write what the step changes of the optimizer's numbers, after the launches."""
        positions: list[np.ndarray] = []
        written: list[np.ndarray] = []
        for computed in self._pending:
            group, which = computed.group, computed.which
            for k, (write, at) in enumerate(
                zip(group.group.writes, group.written, strict=True), len(group.group.positions)
            ):
                values = [result[k] for result in computed.results]
                if at is not None:
                    chosen = at if computed.members is None else at[computed.members]
                    positions.append(chosen)
                    numbers = np.array(values, dtype=np.float64)
                    written.append(np.full(len(chosen), numbers[0]) if which is None else numbers[which])
                    continue
                for n, member in enumerate(computed.chosen):
                    put(group.entries[member], write, values[0 if which is None else which[n]])
        if positions:
            at = np.concatenate(positions) if len(positions) > 1 else positions[0]
            self._host.write(at, np.concatenate(written) if len(written) > 1 else written[0])
        for write, value in zip(self.numbers.shared_writes, self._shared_values, strict=False):
            put_shared(optimizer, write, value)


def _called(function: NumberFunction, shared: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return the function's values. Raises GuardFailed if a guard fails, or where the step itself would fail."""
    try:
        found = function(shared, rows)
    # a function of math outside its domain, or numbers of another kind
    except (ArithmeticError, ValueError, TypeError) as error:
        raise GuardFailed(str(error)) from error
    if found is None:
        raise GuardFailed
    return found
