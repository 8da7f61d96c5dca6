"""Search: every choice whose gap is within `reach`, by labels, one block of the core after the other.

A label is dropped if no completion fits the budgets; if another one is no worse in cost and in all weights (dominance);
or if its gap exceeds `reach` by a Lagrangian bound of what is to come. Prices that are good for all blocks are poor
once the large ones are decided. So whenever labels become many, the relaxation is solved again for the blocks that the
most promising label has before it. Its prices bound all labels from then on, as Benders' cuts do, and its choice
completes that label, which may lower `reach`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baoc_compile.passes.solve.instance import Knapsack
from baoc_compile.passes.solve.label_core import Core
from baoc_compile.passes.solve.relax import Relaxation

MANY = 50  # labels at one stage call for new prices; then twice as many as those did not drop; or more than can go on
CUTS = 16  # new prices at one stage
PAUSES = 32  # in a search, before too many labels call for new prices again
NARROWEST = 100  # labels of a stage that may go on in any case
NEIGHBOURS = 8  # labels, in order of weight, with which a label is compared for dominance if there are two weights
FINALISTS = 256  # complete labels that are offered to `accepts`


@dataclass(frozen=True)
class Found:
    choice: np.ndarray | None  # the best accepted one with a gap below `reach`
    gap: float  # its cost above the relaxation's bound; infinite without a choice
    proven: float  # no other choice has a smaller gap
    is_complete: bool  # nothing within `reach` was dropped


def search_labels(
    knapsack: Knapsack,
    relaxation: Relaxation,
    reach: float,
    limit: int,
    ahead: float,
    accepts: Callable[[np.ndarray], bool],
) -> Found:
    """`limit`: of labels made; a stage may keep `ahead` times its part of those left. Others are dropped, worst first.

    Then `proven` is the least bound of those, which is less than `reach`.
    """
    return _Search(Core(knapsack, relaxation, reach), reach, limit, ahead, accepts).run()


class _Search:
    def __init__(
        self, core: Core, reach: float, limit: int, ahead: float, accepts: Callable[[np.ndarray], bool]
    ) -> None:
        self.core, self.reach, self.limit, self.ahead, self.accepts = core, reach, limit, ahead, accepts
        self.best: np.ndarray | None = None
        self.history: list[tuple[np.ndarray, np.ndarray]] = []  # by stage: each label's parent, and its candidate
        self.dropped = np.inf  # the least bound of a label that was dropped for lack of room
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
        """The labels that go on, in the same order."""
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
        """Raises `bound` by new prices, until they do not help the most promising label."""
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
        fitting = np.flatnonzero(self.core.fits(spent, len(self.core.blocks)) & (gap < self.reach))
        fitting = fitting[np.argsort(gap[fitting], kind="stable")]
        for label in fitting[:FINALISTS]:
            known = self.reach
            self._complete(int(label), np.zeros(0, np.int64))
            if self.reach < known:
                return
            self.dropped = min(self.dropped, float(gap[label]))

    def _complete(self, label: int, rest: np.ndarray) -> None:
        """Takes a label with `rest` for the blocks to come as the best choice, if it is one."""
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
    """Indices in order of weight. With one weight all dominated labels are left out, with two weights most."""
    order = np.lexsort((cost, *spent[::-1]))
    cost, spent = cost[order], spent[:, order]
    keep = np.ones(len(cost), bool)
    if len(spent) == 1:
        keep[1:] = cost[1:] < np.minimum.accumulate(cost)[:-1]
    else:
        for d in range(1, min(NEIGHBOURS, len(cost) - 1) + 1):
            keep[d:] &= (cost[:-d] > cost[d:]) | (spent[1:, :-d] > spent[1:, d:]).any(0)
    return order[keep]
