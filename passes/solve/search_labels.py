"""Search: find every choice whose gap is within `reach`, by labels, one block of the core after the other.

A label is dropped if no completion fits the budgets; if another label is no worse in cost and in all weights
(dominance); or if a Lagrangian bound on the blocks to come shows that its gap exceeds `reach`.

Prices that are good for all blocks are poor once the large ones are decided. Whenever labels become many, the
relaxation is therefore solved again for the blocks that the most promising label has yet to decide. The new prices
bound all labels from then on, as Benders' cuts do. The relaxation's choice completes the label, which may lower
`reach`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baoc_compile.passes.solve.instance import Knapsack
from baoc_compile.passes.solve.label_core import Core
from baoc_compile.passes.solve.relax import Relaxation

#: Labels at one stage that call for new prices; later, twice the number that the last new prices kept. More labels than
#: can go on call for new prices too.
MANY = 50
CUTS = 16  # most new prices at one stage
PAUSES = 32  # parts of a search; labels that cannot all go on call for new prices once in each
NARROWEST = 100  # labels of a stage that may always go on
NEIGHBOURS = 8  # with two weights, each label is compared for dominance with so many before it in order of weight
FINALISTS = 256  # most complete labels that are offered to `accepts`


@dataclass(frozen=True)
class Found:
    """The result of a search.

    choice: the best accepted choice with a gap below `reach`; None if there is none.
    gap: the cost of `choice` above the relaxation's bound; infinite without one.
    proven: a lower bound on the gap of every other choice.
    is_complete: whether nothing within `reach` was dropped.
    """

    choice: np.ndarray | None
    gap: float
    proven: float
    is_complete: bool


def search_labels(
    knapsack: Knapsack,
    relaxation: Relaxation,
    reach: float,
    limit: int,
    ahead: float,
    accepts: Callable[[np.ndarray], bool],
) -> Found:
    """Search for the best choice with a gap below `reach`.

    limit: the number of labels that the search may make.
    ahead: a stage may keep `ahead` times its part of the labels that are left.
    accepts: decides whether a choice within the integer budgets is within the true ones.

    Labels that find no room are dropped, worst first. `proven` is then their least bound, which is less than `reach`.
    """
    return _Search(Core(knapsack, relaxation, reach), reach, limit, ahead, accepts).run()


class _Search:
    """The state of one search."""

    def __init__(
        self, core: Core, reach: float, limit: int, ahead: float, accepts: Callable[[np.ndarray], bool]
    ) -> None:
        self.core, self.reach, self.limit, self.ahead, self.accepts = core, reach, limit, ahead, accepts
        self.best: np.ndarray | None = None
        self.history: list[tuple[np.ndarray, np.ndarray]] = []  # by stage: each label's parent and candidate
        self.dropped = np.inf  # least bound of the labels that were dropped for lack of room
        self.many, self.resume = MANY, 0

    def run(self) -> Found:
        core, made = self.core, 0
        cost, spent = np.zeros(1), core.start
        for stage, options in enumerate(core.options):
            i, after = core.blocks[stage], stage + 1
            total = cost[:, None] + core.relaxation.reduced[i, options]
            made += total.size
            parent, at = np.nonzero(total <= self.reach)
            cost, spent = total[parent, at], spent[:, parent] + core.change[:, i, options[at]]
            above, left = core.above(cost, spent), core.left(spent)
            bound = core.bound(above, left, after)
            order = np.flatnonzero((bound <= self.reach) & core.fits(spent, after))
            order = order[_undominated(above[order], spent[:, order])]
            self.history.append((parent[order], options[at][order]))
            room = int(self.ahead * max(self.limit - made, 0) / max(core.options_to_come[after], 1))
            kept = self._keep(above[order], spent[:, order], bound[order], after, max(room, NARROWEST))
            self.history[-1] = (self.history[-1][0][kept], self.history[-1][1][kept])
            cost, spent = cost[order[kept]], spent[:, order[kept]]
        self._finish(core.above(cost, spent), spent)
        gap = np.inf if self.best is None else self.reach
        return Found(self.best, gap, min(self.reach, self.dropped), self.dropped >= self.reach)

    def _keep(self, above: np.ndarray, spent: np.ndarray, bound: np.ndarray, after: int, room: int) -> np.ndarray:
        """Return the labels that go on, in the same order."""
        size = len(bound)
        if after < len(self.core.blocks) and (size > self.many or (size > room and after > self.resume)):
            self._cut(above, spent, bound, after)
            self.resume = after + len(self.core.blocks) // PAUSES
            self.many = max(2 * int((bound <= self.reach).sum()), MANY)
        kept = np.flatnonzero(bound <= self.reach)
        if len(kept) > room:
            kept = kept[np.argsort(bound[kept], kind="stable")]
            self.dropped = min(self.dropped, float(bound[kept[room]]))
            kept = np.sort(kept[:room])
        return kept

    def _cut(self, above: np.ndarray, spent: np.ndarray, bound: np.ndarray, after: int) -> None:
        """Raise `bound` by new prices, until they do not help the most promising label."""
        core, left = self.core, self.core.left(spent)
        for _ in range(CUTS):
            label = int(bound.argmin())
            known = bound[label]
            if known > self.reach:
                break
            relaxed = core.relax_rest(spent[:, label], after)
            if relaxed is None:
                bound[label] = np.inf
                continue
            prices, rest = relaxed
            if rest is not None:
                self._complete(label, rest)
            core.add_prices(prices)
            np.maximum(bound, core.bound(above, left, after, newest=1), out=bound)
            if bound[label] <= known + core.relaxation.noise:
                core.drop_newest_prices()
                break

    def _finish(self, gap: np.ndarray, spent: np.ndarray) -> None:
        """Complete the labels of the last stage in order of their gaps, until one is accepted."""
        fitting = np.flatnonzero(self.core.fits(spent, len(self.core.blocks)) & (gap < self.reach))
        fitting = fitting[np.argsort(gap[fitting], kind="stable")]
        for label in fitting[:FINALISTS]:
            known = self.reach
            self._complete(int(label), np.zeros(0, np.int64))
            if self.reach < known:
                return
            self.dropped = min(self.dropped, float(gap[label]))

    def _complete(self, label: int, rest: np.ndarray) -> None:
        """Complete a label with `rest` for the blocks to come, and keep the choice if it is the best."""
        core, decided = self.core, len(self.history)
        choice = core.base.copy()
        choice[core.blocks[decided:]] = rest
        for i, (parent, option) in zip(core.blocks[:decided][::-1], self.history[::-1], strict=True):
            choice[i], label = option[label], parent[label]
        cost = core.knapsack.cost[np.arange(len(choice)), choice].sum()
        gap = float(cost - core.relaxation.bound)
        if gap < self.reach and self.accepts(choice):
            self.best, self.reach = choice, gap


def _undominated(cost: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """Return the indices of labels in order of weight, without dominated ones.

    With one weight all dominated labels are left out, with two weights most of them.
    """
    order = np.lexsort((cost, *spent[::-1]))
    cost, spent = cost[order], spent[:, order]
    keep = np.ones(len(cost), bool)
    if len(spent) == 1:
        keep[1:] = cost[1:] < np.minimum.accumulate(cost)[:-1]
    else:
        for d in range(1, min(NEIGHBOURS, len(cost) - 1) + 1):
            keep[d:] &= (cost[:-d] > cost[d:]) | (spent[1:, :-d] > spent[1:, d:]).any(0)
    return order[keep]
