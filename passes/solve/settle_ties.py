"""Ties: among choices of equal risk, prefer one with fewer distinct configurations, then one with fewer bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from baoc_compile.core.allocation import EQUAL, Allocation, Candidate

Items = Sequence[Sequence[Candidate]]


def settle_ties(items: Items, found: Allocation, budget_bytes: int, budget_ns: float | None) -> Allocation:
    """Give up one configuration after another, the rarest first, if its blocks can take others that are in use.

    The result stays within the budgets, and its risk at most a relative 1e-12 above that of `found`. It is not a
    minimum: blocks only move to candidates of their own, and no block gets worse so that another may get better.
    """
    most = found.risk + EQUAL * abs(found.risk)

    def allows(trial: Allocation) -> bool:
        return trial.risk <= most and trial.fits(budget_bytes, budget_ns)

    uses = Counter(candidates[j].configuration for candidates, j in zip(items, found.choice, strict=True))
    in_use = set(uses)
    for name in sorted(uses, key=lambda name: (uses[name], name)):
        choice = _without(items, found.choice, in_use - {name}, EQUAL * abs(found.risk))
        if choice is not None and allows(trial := Allocation.of(items, choice, found.lower_bound)):
            found, in_use = trial, in_use - {name}
    smaller = [_smaller(candidates, j, in_use) for candidates, j in zip(items, found.choice, strict=True)]
    trial = Allocation.of(items, smaller, found.lower_bound)
    return trial if allows(trial) else found


def _without(items: Items, choice: Sequence[int], names: set[str], tolerance: float) -> list[int] | None:
    """Return `choice` with every block whose configuration is not in `names` moved to its smallest one that is.

    The answer is None if a block has no candidate in `names` that costs no more.
    """
    result = []
    for candidates, j in zip(items, choice, strict=True):
        if candidates[j].configuration not in names:
            among = _no_worse(candidates, candidates[j], names, tolerance)
            if not among:
                return None
            j = min(among, key=lambda k: (candidates[k].size_bytes, candidates[k].time_ns, candidates[k].risk))
        result.append(j)
    return result


def _smaller(candidates: Sequence[Candidate], j: int, names: set[str]) -> int:
    """Return the smallest candidate that is no worse than candidate j in risk, interaction and time."""
    among = [k for k in _no_worse(candidates, candidates[j], names) if candidates[k].time_ns <= candidates[j].time_ns]
    return min(among, key=lambda k: (candidates[k].size_bytes, candidates[k].risk, k != j))


def _no_worse(candidates: Sequence[Candidate], chosen: Candidate, names: set[str], tolerance: float = 0.0) -> list[int]:
    """Return the candidates in `names` whose risk and interaction do not exceed those of `chosen`."""
    return [
        k
        for k, c in enumerate(candidates)
        if c.configuration in names and c.risk <= chosen.risk + tolerance and c.interaction <= chosen.interaction
    ]
