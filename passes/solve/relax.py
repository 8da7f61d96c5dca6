"""Bound: the linear relaxation of a knapsack, solved through its Lagrangian dual.

For prices p >= 0 of the weights, L(p) = sum_i min_j (cost_ij + sum_r p_r weight_rij) - sum_r p_r budget_r is a lower
bound on the optimum, and max L is the optimum of the linear relaxation (Sinha & Zoltners 1979 for one budget; Kellerer,
Pferschy & Pisinger, Knapsack Problems, 2004, ch. 11). The cost of a choice exceeds L(p) by the sum of its reduced
costs, cost_ij + p weight_ij - min_j (...), plus p times what it leaves of the budgets. This excess is small for every
near-optimal choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from baoc_compile.passes.solve.instance import Knapsack

STEPS = 100  # most steps of the search along one price, which needs about ten
ROUNDING = 2.0**-50  # rounding error of a sum of a few products, relative to the sum of magnitudes


@dataclass(frozen=True)
class Relaxation:
    """The solution of the linear relaxation.

    prices: (kinds,), the price of the whole budget of each kind.
    reduced: (blocks, candidates), the reduced costs; infinite where a candidate is not kept.
    bound: L(prices), a lower bound on the least cost.
    noise: how far rounding may carry the bound, or a sum of reduced costs.
    choice: the best choice within the budgets that the search met; None if it met none.
    cost: the cost of `choice`; infinite without one.
    """

    prices: np.ndarray
    reduced: np.ndarray
    bound: float
    noise: float
    choice: np.ndarray | None
    cost: float


def relax(knapsack: Knapsack) -> Relaxation | None:
    """Solve the linear relaxation. Return None if not even fractions of candidates fit the budgets."""
    rows, first = np.arange(len(knapsack.cost)), knapsack.kept.argmax(1)
    shares = knapsack.weights / np.maximum(knapsack.budgets, 1)[:, None, None]
    terms = np.concatenate([knapsack.cost[None], shares])
    # candidates that are not kept become copies of the first one that is
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
    """The search for the best prices.

    terms: (1 + kinds, blocks, candidates), the costs, then the weights as fractions of their budgets.
    choice: the best choice within the budgets so far; None if there is none.
    cost: the cost of `choice`; infinite without one.
    """

    terms: np.ndarray
    choice: np.ndarray | None = field(default=None, init=False)
    cost: float = field(default=np.inf, init=False)

    def minimize(self, prices: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Minimize prices @ totals over fractional choices with totals[1..kinds] at most 1.

        Return all prices, and the totals of that choice.

        Along one price the dual is concave and piecewise linear, and every fractional choice is a line above it. The
        next price to try is where the line of a choice that takes too much crosses that of one that takes too little,
        until no choice lies below the crossing. Then a mixture of the two is optimal. None means that no fractional
        choice fits.
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
        """Return the totals of a choice. Keep the choice if it is the best one within the budgets."""
        totals = self.terms[:, np.arange(len(choice)), choice].sum(1)
        if totals[0] < self.cost and (totals[1:] <= 1.0).all():
            self.choice, self.cost = choice, float(totals[0])
        return totals
