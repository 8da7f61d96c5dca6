"""Instances: the knapsack as arrays, reduced to what a choice depends on, with bytes and times as integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from baoc_compile.core.allocation import Candidate


@dataclass(frozen=True)
class Instance:
    """The candidates as arrays (blocks, candidates), sorted, so that the order in which they were listed has no effect.

    size_bytes: int64, the bytes of each candidate.
    time_ns: float64, the time of each candidate in ns.
    risk: float64, the risk of each candidate in nats.
    exists: bool; False where a row with fewer candidates is filled up.
    blocks: row -> block.
    candidates: row, column -> candidate, as listed.
    """

    size_bytes: np.ndarray
    time_ns: np.ndarray
    risk: np.ndarray
    exists: np.ndarray
    blocks: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, items: Sequence[Sequence[Candidate]]) -> Instance:
        """Build the arrays from the candidates of every block.

        Raises ValueError for a block without candidates, or with a risk or time that is not finite.
        """
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
        """Return the total bytes of a choice."""
        return sum(self.size_bytes[np.arange(len(choice)), choice].tolist())

    def time_of(self, choice: np.ndarray) -> float:
        """Return the total time of a choice in ns."""
        return math.fsum(self.time_ns[np.arange(len(choice)), choice])

    def original(self, choice: np.ndarray) -> list[int]:
        """Return the candidate of every block, numbered as listed."""
        found = {i: names[k] for i, names, k in zip(self.blocks, self.candidates, choice, strict=True)}
        return [found[i] for i in range(len(found))]


@dataclass(frozen=True)
class Knapsack:
    """Choose one j per block i with least sum of cost[i, j], and sum of weights[r, i, j] <= budgets[r] for every r.

    The least cost of every block is 0, and so is its least weight of every kind. The budgets are what is left to spend.

    cost: (blocks, candidates), float64.
    weights: (kinds, blocks, candidates), int64.
    budgets: (kinds,), int64.
    kept: (blocks, candidates), bool; True where a candidate exists, is not dominated and is affordable.
    fixed_cost: the sum of the blocks' least costs, which was subtracted.
    """

    cost: np.ndarray
    weights: np.ndarray
    budgets: np.ndarray
    kept: np.ndarray
    fixed_cost: float = 0.0

    @classmethod
    def of(
        cls, cost: np.ndarray, weights: Sequence[np.ndarray], budgets: Sequence[int], exists: np.ndarray
    ) -> Knapsack | None:
        """Build a reduced knapsack; None if a budget is below the sum of the blocks' least weights.

        Every weight is a multiple of the greatest common divisor of all weights of its kind. Dividing by it, and
        rounding the budget down, loses nothing and tightens the relaxation.

        Raises ValueError if the weights of all blocks together are too large for 62 bits.
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
    """Return whether each candidate is dominated by another one of its block.

    The other one is no worse in everything, and better in something or listed earlier.
    """
    no_worse = np.ones((*cost.shape, cost.shape[1]), bool)  # [i, a, b]: a is no worse than b
    for values in (cost, *weights):
        no_worse &= values[:, :, None] <= values[:, None, :]
    earlier = np.triu(np.ones(no_worse.shape[1:], bool), 1)
    return (no_worse & (earlier | ~no_worse.transpose(0, 2, 1))).any(1)


def whole_times(times_ns: np.ndarray, budget_ns: float, exists: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Return times and their budget as whole multiples of a power of two, and which candidates are affordable at all.

    Multiples are rounded down, and added and compared without error. They lose nothing if a binary fraction of 61
    digits holds the sum; otherwise, rounding down admits a little too much. So does half of the budget's last bit,
    which is added because math.fsum rounds to nearest. An answer is therefore checked with math.fsum.
    """
    least = np.where(exists, times_ns, np.inf).min(1)
    left = math.fsum([budget_ns, *-least])
    doubt = 1e-9 * abs(left) + 1e-15 * (abs(budget_ns) + math.fsum(abs(least)))
    exists = exists & (times_ns - least[:, None] <= left + doubt)
    times_ns = np.where(exists, times_ns, 0.0)
    shift = 61 - math.frexp(math.fsum([abs(budget_ns), *abs(times_ns).max(1, initial=0.0)]))[1]
    budget = (Fraction(budget_ns) + Fraction(math.ulp(budget_ns)) / 2) * Fraction(2) ** shift
    return np.floor(np.ldexp(times_ns, shift)).astype(np.int64), math.floor(budget), exists
