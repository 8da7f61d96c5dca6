"""Optimal levels of a one-dimensional quantizer for a histogram, by exact dynamic programming.

Gefen (arXiv 2606.13894) learns all levels of a codebook from a histogram by exact dynamic programming, in 5-18 s for
256 levels of 4096 bins. Both costs here, of stochastic and of nearest rounding, satisfy the Monge condition

    C(a, c) + C(b, d) <= C(b, c) + C(a, d)    for a <= b <= c <= d,

so the best predecessor of a node moves only right as the node does. Divide and conquer then needs O(n log n) per layer
(Wu 1991; Gronlund et al., arXiv 1701.07204); here all subproblems of one depth are solved at once. The best predecessor
also moves only right from layer to layer (Yao 1980), which saves more than half of the search at 256 levels of 4096
points.

A level that must be used makes every step across it infinitely expensive. This preserves the condition and only bounds
the predecessors, so neither the recursion nor the number of subproblems changes.

Costs come from prefix sums about a point near the mean. They are off by about 1e-16 of total weight * range^2: choices
that matter less than this are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Cost = Callable[[Indices, Indices, Indices], Floats]


def _cheapest_path(nodes: int, steps: int, cost: Cost, earliest: Indices) -> Indices:
    """Return the cheapest path from node 0 to the last node in exactly `steps` steps, each to a later node.

    cost(a, b, repeats): costs of the steps from a to np.repeat(b, repeats).
    earliest[b]: the first node from which b may be reached; ascending.
    """
    top = 1 << max(nodes - 1, 1).bit_length()
    best = np.full((steps + 1, top + 1), nodes)  # right sentinels; column 0 is the left sentinel
    best[:, 0] = 0
    best[0, :nodes] = earliest
    total = np.full(nodes, np.inf)
    total[0] = 0.0
    for layer in range(1, steps + 1):
        reached = np.full(nodes, np.inf)
        stride = top // 2
        while stride:
            b = np.arange(stride, nodes, 2 * stride)
            high = np.minimum(best[layer, b + stride], b - 1)
            low = np.minimum(np.maximum(best[layer, b - stride], best[layer - 1, b]), high)
            repeats = high - low + 1
            ends = np.cumsum(repeats)
            starts = ends - repeats
            a = np.arange(ends[-1]) + np.repeat(low - starts, repeats)
            candidates = total[a] + cost(a, b, repeats)
            reached[b] = np.minimum.reduceat(candidates, starts)
            hits = np.flatnonzero(candidates == np.repeat(reached[b], repeats))
            best[layer, b] = a[hits[np.searchsorted(hits, starts)]]
            stride //= 2
        total = reached
    path = np.empty(steps + 1, dtype=np.intp)
    path[steps] = nodes - 1
    for layer in range(steps, 0, -1):
        path[layer - 1] = best[layer, path[layer]]
    return path


def _histogram(points: ArrayLike, weights: ArrayLike, count: int) -> tuple[Floats, Floats, Floats]:
    """Check points and weights; return them, and the points relative to the first one at or above the mean."""
    x, w = np.asarray(points, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or x.shape != w.shape or not (np.isfinite(x).all() and np.isfinite(w).all()):
        raise ValueError("points and weights must be finite and of the same length")
    if (np.diff(x) <= 0.0).any() or (w < 0.0).any():
        raise ValueError("points must ascend and weights must not be negative")
    if not 1 <= count <= len(x):
        raise ValueError(f"cannot choose count={count} levels from {len(x)} points")
    mean = w @ x / w.sum() if w.any() else x[0]
    return x, w, x - x[min(np.searchsorted(x, mean), len(x) - 1)]


def stochastic_levels(points: ArrayLike, weights: ArrayLike, count: int, fixed: Sequence[float] = ()) -> Floats:
    """Return the `count` points that, as levels, minimize the expected squared error of stochastic rounding.

    The error is sum_i w_i (x_i - lower_i)(upper_i - x_i) over the neighbouring levels. The first point, the last and
    those in `fixed` are always levels. Levels off the points are no better: between two points the error is linear in a
    level. Over (a, b): C = (a + b) sum wx - sum wxx - ab sum w, whose mixed second difference is -sum w.

    Raises ValueError for a bad histogram, for `fixed` levels that are no points, and for more of them than `count`.
    """
    x, w, z = _histogram(points, weights, count)
    needed = np.unique(np.concatenate([x[[0, -1]], np.asarray(fixed, dtype=np.float64)]))
    if not np.isin(needed, x).all():
        raise ValueError(f"fixed levels must be points: {needed[~np.isin(needed, x)].tolist()}")
    if count < len(needed):
        raise ValueError(f"count={count} levels cannot hold both ends and all of fixed: {len(needed)}")
    kept = np.searchsorted(x, needed)
    earliest = kept[np.maximum(np.searchsorted(kept, np.arange(len(x))) - 1, 0)]
    s0, s1, s2 = np.cumsum([w, w * z, w * z * z], axis=1)

    def cost(a: Indices, b: Indices, repeats: Indices) -> Floats:
        lower, upper = z[a], np.repeat(z[b], repeats)
        first = np.repeat(s1[b], repeats) - s1[a]
        second = np.repeat(s2[b], repeats) - s2[a]
        return (lower + upper) * first - second - lower * upper * (np.repeat(s0[b], repeats) - s0[a])

    return x[_cheapest_path(len(x), count - 1, cost, earliest)]


def nearest_levels(points: ArrayLike, weights: ArrayLike, count: int) -> Floats:
    """Return the `count` levels that minimize the squared error of rounding to nearest: weighted k-means on a line.

    The levels are the means of contiguous, nonempty clusters; C = sum wxx - (sum wx)^2 / sum w. A cluster without
    weight has its level midway. Raises ValueError for a bad histogram.
    """
    x, w, z = _histogram(points, weights, count)
    s0, s1, s2 = np.pad(np.cumsum([w, w * z, w * z * z], axis=1), ((0, 0), (1, 0)))

    def cost(a: Indices, b: Indices, repeats: Indices) -> Floats:
        mass = np.repeat(s0[b], repeats) - s0[a]
        first = np.repeat(s1[b], repeats) - s1[a]
        second = np.repeat(s2[b], repeats) - s2[a]
        return second - first * first / np.where(mass > 0.0, mass, 1.0)

    edges = _cheapest_path(len(x) + 1, count, cost, np.zeros(len(x) + 1, dtype=np.intp))
    starts, low, high = edges[:-1], x[edges[:-1]], x[edges[1:] - 1]
    mass = np.add.reduceat(w, starts)
    beyond = np.add.reduceat(w * (x - np.repeat(low, np.diff(edges))), starts)
    middle = np.where(mass > 0.0, beyond / np.where(mass > 0.0, mass, 1.0), 0.5 * (high - low))
    return np.minimum(low + middle, high)


def _neighbours(points: Floats, levels: Floats) -> tuple[Floats, Floats]:
    """Return the levels below and above every point; beyond the ends, the end level twice."""
    inside = np.clip(points, levels[0], levels[-1])
    return levels[np.searchsorted(levels, inside, side="right") - 1], levels[np.searchsorted(levels, inside)]


def _mean(errors: Floats, weights: ArrayLike) -> float:
    mass = float(np.sum(weights))
    return float(np.dot(errors, weights)) / mass if mass > 0.0 else 0.0


def stochastic_error(points: ArrayLike, weights: ArrayLike, levels: ArrayLike) -> float:
    """Return the weighted mean squared error of stochastic rounding to ascending levels, clipping beyond the ends."""
    x = np.asarray(points, dtype=np.float64)
    lower, upper = _neighbours(x, np.asarray(levels, dtype=np.float64))
    return _mean(np.abs((x - lower) * (upper - x)), weights)


def nearest_error(points: ArrayLike, weights: ArrayLike, levels: ArrayLike) -> float:
    """Return the weighted mean squared error of rounding to the nearest of ascending levels."""
    x = np.asarray(points, dtype=np.float64)
    lower, upper = _neighbours(x, np.asarray(levels, dtype=np.float64))
    return _mean(np.minimum((x - lower) ** 2, (upper - x) ** 2), weights)
