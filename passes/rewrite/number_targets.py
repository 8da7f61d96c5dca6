"""Where the numbers of a group of parameters go: rows and columns of the launches that step them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from baoc_compile.kernels.launch.fused_update import BoundLaunch
from baoc_compile.passes.capture.group_numbers import NumberGroup
from baoc_compile.passes.rewrite.bind_launches import Bound


@dataclass
class Target:
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

    def enter(self, values: np.ndarray, which: np.ndarray | None) -> None:
        """Enter a group's values in the launch.

        values: float64 `[distinct, values]`; which: for each member of the group, the row that it gets; None if there is one.
        """
        numbers = values[:, self.values]
        self.launch.enter(self.rows, self.columns, numbers[0] if which is None else numbers[which[self.members]])


def targets_of(group: NumberGroup, bound: Bound) -> list[Target]:
    """Return where a group's scalars go."""
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
        found.append(Target(launch, members, slice(None) if is_whole else rows[:, None], columns, values))
    return found
