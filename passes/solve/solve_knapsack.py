"""Solver: find the least cost of a knapsack, exactly or with a certified bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baoc_compile.passes.solve.instance import Knapsack
from baoc_compile.passes.solve.relax import relax
from baoc_compile.passes.solve.search_labels import search_labels

LABELS = 1_500_000  # most labels that one search makes
AHEAD = (4.0, 1.0, 16.0)  # `ahead` of the searches up to the first, second and third that runs out of labels: to prove
# that a small reach was searched completely, to find a good choice, and to prove that this choice is the best
FIRST = 8  # candidates that the first search decides on
GROWTH = 1.5  # growth of the reach from one search to the next


@dataclass(frozen=True)
class Solution:
    """The result of `solve_knapsack`.

    choice: the best choice found; None if nothing fits, or if nothing that fits was found.
    bound: a lower bound on the cost of every choice; infinite if nothing fits.
    is_exact: whether no choice costs less, up to rounding.
    """

    choice: np.ndarray | None
    bound: float
    is_exact: bool


def solve_knapsack(knapsack: Knapsack, accepts: Callable[[np.ndarray], bool]) -> Solution:
    """Find the choice of least cost that `accepts` admits.

    Weights may be rounded down, so `accepts` has the last word on a choice that is within the budgets.

    Choices within a small reach of the relaxation's bound are searched first, then those within larger ones. The first
    choice found is the best there is. If that takes too many labels, searches go on below the gap of the best known
    choice.
    """
    relaxation = relax(knapsack)
    if relaxation is None:
        return Solution(None, np.inf, False)
    choice, gap = None, np.inf
    if relaxation.choice is not None and accepts(relaxation.choice):
        choice, gap = relaxation.choice, relaxation.cost - relaxation.bound
    finite = np.where(knapsack.kept, relaxation.reduced, 0.0)
    everything = float(finite.max(1, initial=0.0).sum() + relaxation.prices.sum()) + relaxation.noise
    reach, proven, limited = min(max(_first_reach(finite), relaxation.noise), everything), 0.0, 0
    while gap > proven + relaxation.noise and limited < len(AHEAD):
        reach = min(reach, gap)
        found = search_labels(knapsack, relaxation, reach, LABELS, AHEAD[limited], accepts)
        proven = max(proven, found.proven)
        if found.choice is not None:
            choice, gap = found.choice, found.gap
        if found.is_complete and choice is None and reach >= everything:
            return Solution(None, np.inf, False)
        limited += not found.is_complete
        reach = min(gap if limited else GROWTH * reach, everything)
    bound = knapsack.fixed_cost + relaxation.bound + min(gap, proven) - relaxation.noise
    return Solution(choice, bound, choice is not None and gap <= proven + relaxation.noise)


def _first_reach(reduced: np.ndarray) -> float:
    """Return the reach that leaves `FIRST` candidates to decide on; infinite if no reduced cost is positive."""
    values = np.sort(reduced[reduced > 0.0])
    return float(values[min(FIRST, len(values)) - 1]) if len(values) else np.inf
