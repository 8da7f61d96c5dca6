"""Bound: the linear relaxation of a knapsack, solved through its Lagrangian dual.

For prices p >= 0 of the weights, L(p) = sum_i min_j (cost_ij + sum_r p_r weight_rij) - sum_r p_r budget_r is a lower
bound of the optimum, and max L is the optimum of the linear relaxation (Sinha & Zoltners 1979 for one budget; Kellerer,
Pferschy & Pisinger, Knapsack Problems, 2004, ch. 11). What a choice costs above L(p) is the sum of its reduced costs,
cost_ij + p weight_ij - min_j (...), plus p times what it leaves of the budgets: small for every near-optimal choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from baoc_compile.passes.solve.instance import Knapsack

STEPS = 100  # of the search along one price; it needs about ten
ROUNDING = 2.0**-50  # of a sum of a few products, relative to the sum of their magnitudes


@dataclass(frozen=True)
class Relaxation:
    prices: np.ndarray  # (kinds,): of the whole budget of that kind
    reduced: np.ndarray  # (blocks, candidates): reduced costs, infinite where a candidate is not kept
    bound: float
    noise: float  # how far rounding may carry the bound, or a sum of reduced costs
    choice: np.ndarray | None  # the best one within the budgets that was met on the way
    cost: float  # of `choice`; infinite without one


def relax(knapsack: Knapsack) -> Relaxation | None:
    """None if not even fractions of candidates fit the budgets."""
    rows, first = np.arange(len(knapsack.cost)), knapsack.kept.argmax(1)
    shares = knapsack.weights / np.maximum(knapsack.budgets, 1)[:, None, None]
    terms = np.concatenate([knapsack.cost[None], shares])
    # what is not kept becomes a copy of the first candidate that is
    terms = np.where(knapsack.kept, terms, terms[:, rows, first][:, :, None])
    dual = _Dual(terms)
    solved = dual.minimize(np.eye(len(terms))[0], len(knapsack.budgets))
    if solved is None:
        return None
    prices = solved[0][1:]
    priced = np.tensordot(solved[0], terms, 1)
    least = priced.min(1)
    noise = ROUNDING * float(priced.max(1).sum() + prices.sum())
    reduced = np.where(knapsack.kept, priced - least[:, None], np.inf)
    choice, cost = dual.choice, dual.cost
    if choice is not None:
        choice = np.where(knapsack.kept[rows, choice], choice, first)
        if (knapsack.weights[:, rows, choice].sum(1) > knapsack.budgets).any():
            choice, cost = None, np.inf
    return Relaxation(prices, reduced, float(least.sum() - prices.sum()), noise, choice, cost)


@dataclass
class _Dual:
    terms: np.ndarray  # (1 + kinds, blocks, candidates): costs, then weights as fractions of their budgets
    choice: np.ndarray | None = field(default=None, init=False)
    cost: float = field(default=np.inf, init=False)

    def minimize(self, prices: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Least prices @ totals of a fractional choice with totals[1..kinds] at most 1: (all prices, totals).

        Along one price the dual is concave and piecewise linear, and every fractional choice is a line above it. The
        price where the line of a choice that takes too much crosses that of one that takes too little is tried next,
        until no choice lies below the crossing. Then a mixture of the two is optimal.
        """
        if kinds == 0:
            return prices, self._totals(np.tensordot(prices, self.terms, 1).argmin(1))
        free = prices.copy()
        free[kinds] = 0.0
        solved = self.minimize(free, kinds - 1)
        if solved is None or solved[1][kinds] <= 1.0:
            return solved
        least = self.minimize(np.eye(len(self.terms))[kinds], kinds - 1)
        if least is None or least[1][kinds] > 1.0:
            return None
        (found, above), below = solved, least[1]
        for _ in range(STEPS):
            trial = free.copy()
            trial[kinds] = max(0.0, free @ (below - above) / (above[kinds] - below[kinds]))
            solved = self.minimize(trial, kinds - 1)
            assert solved is not None
            found, totals = solved
            if trial @ totals >= trial @ above - ROUNDING * (trial @ (abs(above) + abs(below))):
                break
            above, below = (totals, below) if totals[kinds] > 1.0 else (above, totals)
        part = (1.0 - below[kinds]) / (above[kinds] - below[kinds])
        return found, part * above + (1.0 - part) * below

    def _totals(self, choice: np.ndarray) -> np.ndarray:
        totals = self.terms[:, np.arange(len(choice)), choice].sum(1)
        if totals[0] < self.cost and (totals[1:] <= 1.0).all():
            self.choice, self.cost = choice, float(totals[0])
        return totals
