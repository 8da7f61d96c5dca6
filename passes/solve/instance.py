"""The knapsack as arrays, reduced: nothing that matters to a choice is left out, and bytes and times are integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from baoc_compile.core.allocation import Candidate


@dataclass(frozen=True)
class Instance:
    """The candidates as arrays (blocks, candidates), sorted, so that the order in which they are listed plays no role."""

    size_bytes: np.ndarray  # int64
    time_ns: np.ndarray
    risk: np.ndarray
    exists: np.ndarray  # bool: blocks with fewer candidates are filled up
    blocks: tuple[int, ...]  # row -> block
    candidates: tuple[tuple[int, ...], ...]  # row, column -> candidate

    @classmethod
    def of(cls, items: Sequence[Sequence[Candidate]]) -> Instance:
        rows = []
        for i, candidates in enumerate(items):
            if not candidates:
                raise ValueError(f"block {i} has no candidates")
            values = [(c.risk, c.size_bytes, c.time_ns, j) for j, c in enumerate(candidates)]
            if not all(math.isfinite(risk) and math.isfinite(time_ns) for risk, _, time_ns, _ in values):
                raise ValueError(f"block {i} has a candidate whose risk or time is not finite")
            rows.append((sorted(values), i))
        rows.sort(key=lambda row: [value[:3] for value in row[0]])
        width = max((len(values) for values, _ in rows), default=1)
        filled = [values + values[:1] * (width - len(values)) for values, _ in rows]
        shape = (len(rows), width)
        return cls(
            np.array([[v[1] for v in row] for row in filled], np.int64).reshape(shape),
            np.array([[v[2] for v in row] for row in filled], float).reshape(shape),
            np.array([[v[0] for v in row] for row in filled], float).reshape(shape),
            np.array([[k < len(values) for k in range(width)] for values, _ in rows], bool).reshape(shape),
            tuple(i for _, i in rows),
            tuple(tuple(v[3] for v in values) for values, _ in rows),
        )

    def bytes_of(self, choice: np.ndarray) -> int:
        return sum(self.size_bytes[np.arange(len(choice)), choice].tolist())

    def time_of(self, choice: np.ndarray) -> float:
        return math.fsum(self.time_ns[np.arange(len(choice)), choice])

    def original(self, choice: np.ndarray) -> list[int]:
        """The candidate of every block, as they were listed."""
        found = {i: names[k] for i, names, k in zip(self.blocks, self.candidates, choice, strict=True)}
        return [found[i] for i in range(len(found))]


@dataclass(frozen=True)
class Knapsack:
    """Choose one j per block i with least sum of cost[i, j], and sum of weights[r, i, j] <= budgets[r] for every r.

    Every block's least cost is 0, and so is its least weight of every kind; budgets are what is left to be given out.
    """

    cost: np.ndarray  # (blocks, candidates), float64
    weights: np.ndarray  # (kinds, blocks, candidates), int64
    budgets: np.ndarray  # (kinds,), int64
    kept: np.ndarray  # (blocks, candidates), bool: exists, is not dominated, and could be afforded
    fixed_cost: float = 0.0  # the sum of what was taken off the costs

    @classmethod
    def of(
        cls, cost: np.ndarray, weights: Sequence[np.ndarray], budgets: Sequence[int], exists: np.ndarray
    ) -> Knapsack | None:
        """None if a budget is below the sum of the blocks' least weights.

        A weight is a multiple of the greatest common divisor of all of them: dividing by it, and rounding the budget
        down, loses nothing and tightens the relaxation.
        """
        kept, rest, left = exists, [], []
        for weight, budget in zip(weights, budgets, strict=True):
            least = np.where(exists, weight, np.iinfo(np.int64).max).min(1)
            left.append(budget - sum(least.tolist()))
            rest.append(np.where(exists, weight - least[:, None], 0))
            if left[-1] < 0:
                return None
            kept = kept & (rest[-1] <= left[-1])
        if not kept.any(1).all():
            return None
        cost = np.where(kept, cost, np.inf)
        lowest = cost.min(1)
        cost = cost - lowest[:, None]
        kept = kept & ~_dominated(cost, rest)
        for r, weight in enumerate(rest):
            rest[r] = np.where(kept, weight, 0)
            if sum(rest[r].max(1).tolist()) >= 2**62:
                raise ValueError("the sizes or times of all blocks together are too large for 62 bits")
            divisor = max(int(np.gcd.reduce(rest[r], axis=None)), 1)
            rest[r] //= divisor
            left[r] = min(left[r] // divisor, 2**62)
        shape = (len(rest), *cost.shape)
        return cls(cost, np.array(rest, np.int64).reshape(shape), np.array(left, np.int64), kept, math.fsum(lowest))


def _dominated(cost: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Is another candidate of the block no worse in everything, and better in something or earlier in the list?"""
    no_worse = np.ones((*cost.shape, cost.shape[1]), bool)  # [i, a, b]: a is no worse than b
    for values in (cost, *weights):
        no_worse &= values[:, :, None] <= values[:, None, :]
    earlier = np.triu(np.ones(no_worse.shape[1:], bool), 1)
    return (no_worse & (earlier | ~no_worse.transpose(0, 2, 1))).any(1)


def whole_times(times_ns: np.ndarray, budget_ns: float, exists: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Times and their budget as multiples, rounded down, of a power of two, and which candidates are affordable at all.

    So they are added and compared without error, and nothing is lost if a binary fraction of 61 digits holds the sum.
    Otherwise, and because math.fsum rounds to nearest (half its last bit is added to the budget), they admit a little
    too much: an answer is checked with math.fsum.
    """
    least = np.where(exists, times_ns, np.inf).min(1)
    left = math.fsum([budget_ns, *-least])
    doubt = 1e-9 * abs(left) + 1e-15 * (abs(budget_ns) + math.fsum(abs(least)))
    exists = exists & (times_ns - least[:, None] <= left + doubt)
    times_ns = np.where(exists, times_ns, 0.0)
    shift = 61 - math.frexp(math.fsum([abs(budget_ns), *abs(times_ns).max(1, initial=0.0)]))[1]
    budget = (Fraction(budget_ns) + Fraction(math.ulp(budget_ns)) / 2) * Fraction(2) ** shift
    return np.floor(np.ldexp(times_ns, shift)).astype(np.int64), math.floor(budget), exists
