"""Learn a codebook's levels from the normalized values of the slot that it stores.

If the values exist in full precision (when existing state is migrated), they are counted in a histogram. Later only
codes exist. Stochastic rounding splits a value over its two neighbouring levels in proportion to its nearness, so the
expected count of level k is the sum of a hat function around that level over all values. The density is read back as
the piecewise linear one with these counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.kernels.codecs.optimal_levels import Floats, stochastic_error, stochastic_levels

#: Lowest positive root that the initial 4-bit levels resolve, relative to the group's largest.
LOWEST_ROOT = 1 / 32

#: Elements that a histogram samples.
SAMPLE_ELEMENTS = 1 << 20

#: 8-bit roots always have this level, so tiny positive values read as at most this times the group's largest root.
LOWEST_ROOT_8 = 1 / 256

#: Fraction of values that may lie below the lowest level of a codebook without level 0.
BELOW_LOWEST = 0.01


class Leveled(Protocol):
    """What learning needs of a codec with levels. Levels are multiples of 1 / grid.

    bits: bits of a code.
    signed: whether levels lie in [-1, 1]; otherwise they are roots in [0, 1].
    count: number of levels.
    grid: grid steps per unit.
    """

    bits: int
    signed: bool
    count: int
    grid: int

    def as_entries(self, levels: np.ndarray) -> np.ndarray: ...


def learn_from_values(codec: Leveled, parts: Mapping[str, Tensor], value: Tensor) -> None:
    """Set the "levels" part from full-precision values; leave it if no group has a finite, nonzero largest value."""
    flat = value.detach().reshape(-1)[:SAMPLE_ELEMENTS].to(torch.float64)
    groups = torch.cat([flat, flat.new_zeros(-flat.numel() % GROUP_SIZE)]).view(-1, GROUP_SIZE)
    root = groups if codec.signed else groups.sqrt()
    largest = root.abs().amax(1, keepdim=True)
    x = (root / largest)[(largest > 0).expand_as(root) & largest.isfinite().expand_as(root)]
    if x.numel():
        weights = np.bincount(_grid_index(codec, x.cpu().numpy()), minlength=len(grid_points(codec))).astype(np.float64)
        parts["levels"].copy_(torch.from_numpy(codec.as_entries(best_levels(codec, weights))))


def grid_points(codec: Leveled) -> Floats:
    """Return the positions that levels may take."""
    return np.arange(-codec.grid if codec.signed else 0, codec.grid + 1) / codec.grid


def _grid_index(codec: Leveled, x: Floats) -> np.ndarray:
    return np.round(x * codec.grid).astype(np.int64) + (codec.grid if codec.signed else 0)


def best_levels(codec: Leveled, weights: Floats) -> Floats:
    """Return the levels of least expected error under `weights`, one per grid point.

    A signed codebook has a level 0. Levels of 8-bit roots include 0 and `LOWEST_ROOT_8`. Levels of 4-bit roots start
    where 1% of the positive values lie below, but at most at `LOWEST_ROOT`, so that values that shrink later are seen.
    """
    points = grid_points(codec)
    if codec.signed:
        return stochastic_levels(points, weights, codec.count, fixed=(0.0,))
    if codec.bits == 8:
        return stochastic_levels(points, weights, codec.count, fixed=(LOWEST_ROOT_8,))
    below = np.cumsum(weights[1:]) <= BELOW_LOWEST * weights[1:].sum()
    first = min(1 + int(below.sum()), int(LOWEST_ROOT * codec.grid))
    return stochastic_levels(points[first:], weights[first:], codec.count)


def density(codec: Leveled, codes: Tensor, levels: Floats) -> Floats:
    """Estimate weights of the grid points from the frequency of each code. `codes`: uint8, unpacked."""
    counts = np.bincount(codes.cpu().numpy(), minlength=256)[: codec.count].astype(np.float64)
    at = _grid_index(codec, levels)
    spans = np.gradient(at.astype(np.float64))
    zero = int(np.flatnonzero(levels == 0.0)[0]) if 0.0 in levels else -1
    weights = np.zeros(len(grid_points(codec)))
    for k in range(codec.count):
        mass = counts[k]
        if k == zero and k > 0:  # exact zeros are not part of the density around 0
            mass = min(mass, spans[k] * (counts[k - 1] / spans[k - 1] + counts[k + 1] / spans[k + 1]) / 2)
        elif k == 0 and levels[0] > 0.0:  # everything below: assumed to lie within a factor of 2
            weights[(at[0] + 1) // 2 : at[0] + 1] += mass / (at[0] // 2 + 1)
            continue
        elif k in (0, codec.count - 1):  # the largest element of each group
            weights[at[k]] += mass
            continue
        left, right = at[k] - at[k - 1], at[k + 1] - at[k]
        hat = np.concatenate([np.arange(1, left) / left, np.arange(right, 0, -1) / right])
        weights[at[k - 1] + 1 : at[k + 1]] += mass * hat / hat.sum()
    return weights


def expected_error(codec: Leveled, weights: Floats, levels: Floats) -> float:
    """Return the mean squared error of stochastic rounding to `levels`, with the group's largest value or root as 1."""
    return stochastic_error(grid_points(codec), weights, levels)


def least_error(codec: Leveled, weights: Floats) -> float:
    """Estimate the least `expected_error` of any levels without finding them.

    Bennett's integral with the optimal point density (Panter and Dite 1951), (sum p^(1/3))^3 / (6 count^2) for
    stochastic rounding, whose error is gap^2 / 6. Accurate for hundreds of levels. The ends of the grid are levels and
    cost nothing.
    """
    p = weights[1:-1] / max(weights.sum(), 1.0) * codec.grid
    return float((np.cbrt(p).sum() / codec.grid) ** 3 / (6 * codec.count**2))
