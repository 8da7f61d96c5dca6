"""Rewrite: bind the numbers of a step to the places where the optimizer keeps them and to the launches that take them.

Every number is computed once for all parameters for which it is the same: those of a group whose state has equal numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.launch.fused_update import BoundLaunch
from baoc_compile.kernels.launch.survey import PRESENT, HostNumbers
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

    rows: row of each member of the group; -1 for members of other launches.
    columns: columns of the launch's numbers.
    values: which of the group's values they get.
    whole: whether the members are all rows of the launch.
    """

    launch: BoundLaunch
    rows: np.ndarray
    columns: np.ndarray
    values: list[int]
    whole: bool


@dataclass
class _Group:
    """A number group, bound.

    own: for each source of the function, how to read it: positions among the host numbers, the key of a Python number, or
        the position among the shared values.
    entries: the state of each member.
    """

    group: NumberGroup
    indices: np.ndarray
    own: list[tuple[str, Any]]
    entries: list[dict[Any, Any]]
    targets: list[_Target] = field(default_factory=list)
    replays: list[Replay | None] = field(default_factory=list)
    bounds: list[tuple[int, float, float]] = field(default_factory=list)
    signature: Hashable = None
    written: list[np.ndarray | None] = field(default_factory=list)


class BoundNumbers:
    """The numbers of a step, as the host reads, computes and writes them.

    Raises KeyError or IndexError when made if the optimizer lacks a number that the step reads.
    """

    def __init__(self, numbers: GroupedNumbers, classes: list[RuleClass], bound: Bound, table: ParameterTable):
        self.numbers = numbers
        self._tensors: list[Tensor] = []
        self._position: dict[int, int] = {}
        shared: dict[Source, int] = {}
        for source in numbers.shared.sources:
            shared.setdefault(source, len(shared))
        replays = {r.indices[0]: r for r in bound.replays}
        bounds = {piece.signature: c.bounds for c in classes if c.rule is not None for piece in c.members}
        self._groups = [self._group(g, shared, table, bound, replays, bounds) for g in numbers.groups]
        self._read_shared = reader_of(list(shared))
        self._count = len(numbers.shared.sources)
        self._host = HostNumbers(self._tensors)
        self._pending: list[tuple[_Group, np.ndarray | None, tuple[Any, ...]]] = []
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
        first = group.members[0]
        entries = [table.state(i) for i in group.members]
        own: list[tuple[str, Any]] = []
        for source in group.function.sources:
            if source.kind == "state" and source.parameter == first:
                if source.is_tensor:
                    own.append(("tensor", self._positions([entry_at(e, source.path) for e in entries])))
                else:
                    own.append(("python", source.path))
            else:
                own.append(("shared", shared.setdefault(source, len(shared))))
        made = _Group(group, np.array(group.members), own, entries)
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
            tensors = None if write.dtype is None else [entry_at(e, write.source.path) for e in entries]
            made.written.append(None if tensors is None else self._positions(tensors))
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
        rows_of: dict[BoundLaunch, np.ndarray] = {}
        for member, index in enumerate(group.members):
            for launch, row, names in bound.rows.get(index, ()):
                names_of.setdefault(launch, names)
                rows_of.setdefault(launch, np.full(len(group.members), -1, dtype=np.int64))[member] = row
        found = []
        for launch, rows in rows_of.items():
            names = {name: p for name, p in names_of[launch].items() if name in launch.column}
            columns = np.array([launch.column[name] for name in names], dtype=np.int64)
            whole = len(rows[rows >= 0]) == len(launch.indices)
            found.append(_Target(launch, rows, columns, [value_at[p] for p in names.values()], whole))
        return found

    # a step

    def compute(self, optimizer: Any, flags: np.ndarray) -> None:
        """Compute the step's numbers and enter them in the launches. Nothing of the optimizer changes.

        flags: which parameters have a gradient; see `survey.Parameters`.

        Raises GuardFailed, and OutOfBounds.
        """
        shared = self._read_shared(optimizer)
        found = _called(self.numbers.shared, shared[: self._count])
        self._shared_values = found
        values = self._host.read()
        pending = []
        for group in self._groups:
            present = (flags[group.indices] & PRESENT).astype(bool)
            if not present.any():
                continue
            members = None if present.all() else np.nonzero(present)[0]
            for some, arguments in self._distinct(group, members, shared, values):
                result = _called(group.group.function, arguments)
                for k, low, high in group.bounds:
                    if not low <= result[k] <= high:
                        raise OutOfBounds(group.signature, group.group.positions[k], result[k])
                pending.append((group, some, result))
        self._pending = pending
        for group, some, result in pending:
            self._enter(group, some, result)

    def _distinct(
        self, group: _Group, members: np.ndarray | None, shared: Sequence[Any], values: np.ndarray
    ) -> list[tuple[np.ndarray | None, list[Any]]]:
        """Return (members, arguments of the group's function) for every set of members whose own numbers are equal."""
        columns: list[Any] = []
        for kind, at in group.own:
            if kind == "tensor":
                column = values[at if members is None else at[members]]
                columns.append(column)
            elif kind == "python":
                entries = group.entries if members is None else [group.entries[m] for m in members.tolist()]
                key = at[0]
                columns.append([e[key] for e in entries] if len(at) == 1 else [entry_at(e, at) for e in entries])
        if all(_is_constant(c) for c in columns):
            own = [c[0].item() if isinstance(c, np.ndarray) else c[0] for c in columns]
            return [(members, self._arguments(group, own, shared))]
        lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns]
        by_numbers: dict[tuple[Any, ...], list[int]] = {}
        for position, own_numbers in enumerate(zip(*lists, strict=True)):
            by_numbers.setdefault(own_numbers, []).append(position)
        found: list[tuple[np.ndarray | None, list[Any]]] = []
        for own_numbers, positions in by_numbers.items():
            some = np.array(positions, dtype=np.int64)
            chosen = some if members is None else members[some]
            found.append((chosen, self._arguments(group, list(own_numbers), shared)))
        return found

    def _arguments(self, group: _Group, own: list[Any], shared: Sequence[Any]) -> list[Any]:
        taken = iter(own)
        found = []
        for (kind, at), source in zip(group.own, group.group.function.sources, strict=True):
            if kind == "shared":
                found.append(shared[at])
                continue
            value = next(taken)
            # integer tensors are read as doubles
            found.append(int(value) if kind == "tensor" and self._is_integer(group, source) else value)
        return found

    def _is_integer(self, group: _Group, source: Source) -> bool:
        return not entry_at(group.entries[0], source.path).is_floating_point()

    @staticmethod
    def _enter(group: _Group, some: np.ndarray | None, result: tuple[Any, ...]) -> None:
        for target in group.targets:
            numbers = [result[k] for k in target.values]
            if some is None and target.whole:
                target.launch.enter(slice(None), target.columns, numbers)
                continue
            rows = target.rows if some is None else target.rows[some]
            rows = rows[rows >= 0]
            if len(rows):
                target.launch.enter(rows[:, None], target.columns, numbers)
        chosen = range(len(group.replays)) if some is None else some.tolist()
        for member in chosen if any(group.replays) else ():
            replay = group.replays[member]
            if replay is not None:
                replay.enter(group.group.positions, result[: len(group.group.positions)])

    def of(self, index: int) -> dict[int, Any]:
        """Return the numbers of this step for one parameter: position among its piece's scalars -> number."""
        for group, some, result in self._pending:
            members = group.indices if some is None else group.indices[some]
            if index in members:
                return dict(zip(group.group.positions, result, strict=False))
        return {}

    @property
    def of_prelude(self) -> dict[Expression, Any]:
        """The numbers of this step that the prelude takes."""
        return dict(zip(self.numbers.prelude, self._shared_values[len(self.numbers.shared_writes) :], strict=True))

    def commit(self, optimizer: Any) -> None:
        """Write what the step changes of the optimizer's numbers, after the launches."""
        positions: list[np.ndarray] = []
        written: list[np.ndarray] = []
        for group, some, result in self._pending:
            values = result[len(group.group.positions) :]
            for write, at, value in zip(group.group.writes, group.written, values, strict=True):
                if at is not None:
                    chosen = at if some is None else at[some]
                    positions.append(chosen)
                    written.append(np.full(len(chosen), float(value)))
                    continue
                entries = group.entries if some is None else [group.entries[m] for m in some.tolist()]
                for entry in entries:
                    put(entry, write, value)
        if positions:
            at = np.concatenate(positions) if len(positions) > 1 else positions[0]
            self._host.write(at, np.concatenate(written) if len(written) > 1 else written[0])
        for write, value in zip(self.numbers.shared_writes, self._shared_values, strict=False):
            put_shared(optimizer, write, value)


def _called(function: NumberFunction, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the function's values. Raises GuardFailed if a guard fails, or where the step itself would fail."""
    try:
        found = function(values)
    except (
        ArithmeticError,
        ValueError,
        TypeError,
    ) as error:  # a function of math outside its domain, or numbers of another kind
        raise GuardFailed(str(error)) from error
    if found is None:
        raise GuardFailed
    return found


def _is_constant(column: Any) -> bool:
    if isinstance(column, np.ndarray):
        return bool((column == column[0]).all())
    first = column[0]
    return all(value == first for value in column) if len(column) > 1 else True
