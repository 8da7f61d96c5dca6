"""Frontier: the least risk for every number of bytes, without a time budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from baoc_compile.core.allocation import Allocation, Candidate
from baoc_compile.passes.solve.instance import Instance

POINTS = 500  # most points that are returned
LABELS = 2_000_000  # most labels that are made; beyond, only the hull is returned


def frontier(items: Sequence[Sequence[Candidate]]) -> tuple[Allocation, ...]:
    """Return allocations of rising size and falling risk, each with the least risk for its size.

    A dynamic program over (bytes, risk) labels finds all of them if it needs few labels. Otherwise the answer has those
    on the lower convex hull, each of which is optimal too: start with every block's smallest candidate and take the
    steps along the blocks' own hulls in order of risk saved per byte (Sinha & Zoltners 1979). If there are more than
    POINTS, an evenly spread selection is returned, first and last included.

    Raises ValueError for an item that has no finite candidates.
    """
    table = Instance.of(items)
    choices = _all(table)
    if choices is None:
        choices = _hull(table)
    some = np.unique(np.linspace(0, len(choices) - 1, min(len(choices), POINTS)).round().astype(int))
    points: list[Allocation] = []
    for k in some:
        point = Allocation.of(items, table.original(choices[k]), math.inf)
        if not points or point.risk < points[-1].risk:
            points.append(point)
    return tuple(points)


def _all(table: Instance) -> np.ndarray | None:
    """Return the choices (points, blocks) of the whole frontier; None if that takes too many labels."""
    size_bytes, risk = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    made = 0
    for i in range(len(table.exists)):
        options = np.flatnonzero(table.exists[i])
        made += len(risk) * len(options)
        if made > LABELS:
            return None
        size_bytes = (size_bytes[:, None] + table.size_bytes[i, options]).ravel()
        risk = (risk[:, None] + table.risk[i, options]).ravel()
        order = np.lexsort((risk, size_bytes))
        least = np.minimum.accumulate(risk[order])
        order = order[np.append(True, least[1:] < least[:-1])]
        size_bytes, risk = size_bytes[order], risk[order]
        history.append((order // len(options), options[order % len(options)]))
    choices = np.empty((len(risk), len(history)), np.int64)
    label = np.arange(len(risk))
    for i, (parent, option) in reversed(list(enumerate(history))):
        choices[:, i], label = option[label], parent[label]
    return choices


def _hull(table: Instance) -> np.ndarray:
    """Return the choices (points, blocks) along the lower convex hull of the frontier."""
    steps, first = [], []
    for i in range(len(table.exists)):
        corners = _corners(table.size_bytes[i].tolist(), table.risk[i].tolist())
        first.append(corners[0])
        rate = -math.inf
        for k, (a, b) in enumerate(itertools.pairwise(corners)):
            saved = table.risk[i, b] - table.risk[i, a]
            rate = max(rate, saved / int(table.size_bytes[i, b] - table.size_bytes[i, a]))
            steps.append((rate, i, k, b))
    choices = np.tile(np.array(first, np.int32), (len(steps) + 1, 1))
    for point, (_, i, _, candidate) in enumerate(sorted(steps), start=1):
        choices[point:, i] = candidate
    return choices


def _corners(size_bytes: list[int], risk: list[float]) -> list[int]:
    """Return the candidates on a block's lower convex hull, from the smallest to the least risky one."""
    corners: list[int] = []
    for j in sorted(range(len(risk)), key=lambda j: (size_bytes[j], risk[j])):
        if corners and risk[j] >= risk[corners[-1]]:
            continue
        while len(corners) > 1:
            a, b = corners[-2:]
            whole = Fraction(risk[j]) - Fraction(risk[a])
            if (Fraction(risk[b]) - Fraction(risk[a])) * (size_bytes[j] - size_bytes[a]) < whole * (
                size_bytes[b] - size_bytes[a]
            ):
                break
            corners.pop()
        corners.append(j)
    return corners
