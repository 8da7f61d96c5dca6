"""Core: the blocks that a search has to decide on, and bounds on what a choice for the first of them leads to.

The cost of a choice is the relaxation's bound plus its gap. The gap is the sum of its reduced costs + prices * (unspent
shares of the budgets). In a choice whose gap is within `reach`, no reduced cost exceeds `reach`. This settles most
blocks; the others are the core (Pisinger 1995, A minimal algorithm for the multiple-choice knapsack problem).
"""

from __future__ import annotations

import itertools

import numpy as np

from baoc_compile.passes.solve.instance import Knapsack
from baoc_compile.passes.solve.relax import Relaxation, relax


class Core:
    """The core of a knapsack: its undecided blocks by falling weight, so that late ones only fill what is left.

    The base of a block is its candidate of reduced cost 0. A label is a choice for the blocks before a stage. The
    methods describe labels by these arrays:

    spent: (kinds, labels), what a label spends if all blocks to come stay at their base.
    cost: (labels,), the sum of a label's reduced costs.
    above: (labels,), a label's gap if all blocks to come stay at their base.
    """

    def __init__(self, knapsack: Knapsack, relaxation: Relaxation, reach: float) -> None:
        rows, self.allowed = np.arange(len(knapsack.cost)), relaxation.reduced <= reach
        self.knapsack, self.relaxation = knapsack, relaxation
        self.scale = np.maximum(knapsack.budgets, 1)[:, None]
        self.base = relaxation.reduced.argmin(1)
        base_weights = knapsack.weights[:, rows, self.base]
        self.change = knapsack.weights - base_weights[:, :, None]
        self.start = base_weights.sum(1)[:, None]
        shares = np.where(self.allowed, self.change / self.scale[:, :, None], 0.0)
        weight = np.tensordot(relaxation.prices, abs(shares).max(2), 1)
        blocks = np.flatnonzero(self.allowed.sum(1) > 1)
        self.blocks = blocks[np.argsort(-weight[blocks], kind="stable")]
        self.options = [np.flatnonzero(self.allowed[i]) for i in self.blocks]
        self.options_to_come = _sums_from(self.allowed[self.blocks].sum(1))

        least = np.where(self.allowed, self.change, np.iinfo(np.int64).max).min(2)
        self._least_to_come = _sums_from(least[:, self.blocks])
        self._base_to_come = _sums_from(base_weights[:, self.blocks])
        self._reduced = np.where(self.allowed, relaxation.reduced, np.inf)[self.blocks]
        self._shares = shares[:, self.blocks]
        self._prices: list[np.ndarray] = []
        self._to_come: list[np.ndarray] = []  # by prices, then stage: the least cost of the blocks from there on
        for on in itertools.product((0.0, 1.0), repeat=len(relaxation.prices)):
            self.add_prices(relaxation.prices * on)

    def above(self, cost: np.ndarray, spent: np.ndarray) -> np.ndarray:
        """Return the gap of each label if all blocks to come stay at their base."""
        return cost + self.relaxation.prices @ self.left(spent)

    def left(self, spent: np.ndarray) -> np.ndarray:
        """Return the unspent share of each budget; negative if the budget is overdrawn."""
        return 1.0 - spent / self.scale

    def fits(self, spent: np.ndarray, stage: int) -> np.ndarray:
        """Return whether the blocks from `stage` on can still bring each kind of weight within its budget."""
        return (spent + self._least_to_come[:, stage, None] <= self.knapsack.budgets[:, None]).all(0)

    def bound(self, above: np.ndarray, left: np.ndarray, stage: int, newest: int = 0) -> np.ndarray:
        """Return a lower bound on the gap of every completion of each label.

        It is the largest Lagrangian bound at all prices, or at the `newest` ones.
        """
        bound = np.full(len(above), -np.inf)
        for prices, to_come in zip(self._prices[-newest:], self._to_come[-newest:], strict=True):
            np.maximum(bound, above - prices @ left + to_come[stage], out=bound)
        return bound

    def add_prices(self, prices: np.ndarray) -> None:
        """Add prices at which `bound` evaluates labels."""
        values = self._reduced + np.tensordot(prices - self.relaxation.prices, self._shares, 1)
        self._prices.append(prices)
        self._to_come.append(_sums_from(values.min(1)))

    def drop_newest_prices(self) -> None:
        """Remove the prices that were added last."""
        del self._prices[-1], self._to_come[-1]

    def relax_rest(self, spent: np.ndarray, stage: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return the best prices for the blocks from `stage` on and a choice for them, given one label's `spent`.

        The answer is None if nothing fits. The choice is None if the relaxation met none within the budgets.
        """
        rest = self.blocks[stage:]
        room = self.knapsack.budgets - spent + self._base_to_come[:, stage]
        relaxed = relax(
            Knapsack(self.knapsack.cost[rest], self.knapsack.weights[:, rest], room, self.allowed[rest], 0.0)
        )
        if relaxed is None:
            return None
        return relaxed.prices * self.knapsack.budgets / np.maximum(room, 1), relaxed.choice


def _sums_from(values: np.ndarray) -> np.ndarray:
    """Return the sums along the last axis from each index to the end, followed by 0."""
    padding = [(0, 0)] * (values.ndim - 1) + [(0, 1)]
    return np.pad(values[..., ::-1].cumsum(-1)[..., ::-1], padding)
