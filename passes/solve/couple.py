"""Coupling: blocks that are displaced together cost more than the sum of what each costs by itself.

The risk of a plan is not a sum over blocks, but

    sum_i risk_i + (sum_i interaction_i)^2 / joint,      joint = sum_i max_j interaction_ij

(see `assess_risk`). The second term is convex in one number, x = sum_i interaction_i. For every share s in 0 ... 1,

    x^2 / joint >= 2 s x - joint s^2,      with equality at s = x / joint.

The right side is a sum over blocks again: a knapsack. Each share gives a lower bound and a plan. At the best share, the
relaxed plan's own share of the joint interaction equals the share at which it was priced (the dual of a convex cost). A
search closes the gap between bound and plan (`close_gap.py`). It is affordable for few blocks; many blocks hardly need
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from baoc_compile.core.allocation import Allocation, Candidate, joint_interaction
from baoc_compile.passes.solve.allocate import allocate, relaxed
from baoc_compile.passes.solve.close_gap import Prices, close_gap
from baoc_compile.passes.solve.frontier import POINTS, frontier
from baoc_compile.passes.solve.settle_ties import settle_ties

Items = Sequence[Sequence[Candidate]]

HALVINGS = 10  # bisections of the range of shares
SOLVES = 3  # most knapsacks that are solved
SHARES = 9  # shares whose frontiers are merged
AROUND = (0.5, 0.75, 1.0, 1.25, 1.5)  # multiples of the best share, at which the search takes lower bounds


def allocate_coupled(items: Items, budget_bytes: int, budget_ns: float | None = None) -> Allocation:
    """Solve `allocate` with interactions: optimally, or with the lower bound that shares and search prove.

    Raises what `allocate` raises.
    """
    joint = joint_interaction(items)
    if joint == 0.0:
        return allocate(items, budget_bytes, budget_ns)
    best, bound, tried = None, -math.inf, set[float]()
    share = first = _best_share(items, joint, budget_bytes, budget_ns)
    while len(tried) < SOLVES and share not in tried:
        tried.add(share)
        found = allocate(_priced(items, share), budget_bytes, budget_ns)
        bound = max(bound, found.lower_bound - joint * share * share)
        own = _climbed(items, Allocation.of(items, found.choice, math.inf), budget_bytes, budget_ns)
        best = own if best is None or own.risk < best.risk else best
        share = _interaction(items, found.choice) / joint
    assert best is not None
    best = replace(best, lower_bound=min(bound, best.risk))
    if not best.is_exact:
        shares = [min(first * factor, 1.0) for factor in AROUND]
        best = close_gap(items, best, list(_prices(items, shares, budget_bytes, budget_ns)), budget_bytes, budget_ns)
    return settle_ties(items, best, budget_bytes, budget_ns)


def coupled_frontier(items: Items) -> tuple[Allocation, ...]:
    """Return `frontier` with interactions: the best points of the frontiers at a few shares, without a certificate."""
    if joint_interaction(items) == 0.0:
        return frontier(items)
    every = [p.choice for share in np.linspace(0.0, 1.0, SHARES) for p in frontier(_priced(items, float(share)))]
    points: list[Allocation] = []
    for point in sorted((Allocation.of(items, c, math.inf) for c in every), key=lambda p: (p.size_bytes, p.risk)):
        if not points or point.risk < points[-1].risk:
            points.append(point)
    some = np.unique(np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int))
    return tuple(points[k] for k in some)


def _climbed(items: Items, found: Allocation, budget_bytes: int, budget_ns: float | None) -> Allocation:
    """Improve a plan by the single move of a block that lowers the risk most, again and again while one does.

    At one price, equal blocks all move or none does. Often the best plan moves some of them.
    """
    while True:
        now = [block[j] for block, j in zip(items, found.choice, strict=True)]
        x, joint = math.fsum(c.interaction for c in now), joint_interaction(items)
        moves = []
        for i, (block, old) in enumerate(zip(items, now, strict=True)):
            for j, new in enumerate(block):
                fits = found.size_bytes + new.size_bytes - old.size_bytes <= budget_bytes and (
                    budget_ns is None or found.time_ns + new.time_ns - old.time_ns <= budget_ns
                )
                if fits:
                    moved = new.interaction - old.interaction
                    moves.append((new.risk - old.risk + moved * (2.0 * x + moved) / joint, i, j))
        if not moves:
            return found
        _, i, j = min(moves)
        trial = Allocation.of(items, [*found.choice[:i], j, *found.choice[i + 1 :]], math.inf)
        if trial.risk >= found.risk or not trial.fits(budget_bytes, budget_ns):
            return found
        found = trial


def _priced(items: Items, share: float) -> list[list[Candidate]]:
    """Return `items` with their interactions priced at `share` and added to the risks."""
    return [[replace(c, risk=c.risk + 2.0 * share * c.interaction, interaction=0.0) for c in block] for block in items]


def _prices(items: Items, shares: Sequence[float], budget_bytes: int, budget_ns: float | None) -> Iterator[Prices]:
    """Yield the prices of the relaxation at each of `shares`, where there is one."""
    for share in shares:
        found = relaxed(_priced(items, share), budget_bytes, budget_ns)
        if found is not None:
            yield Prices(share, found.per_byte, found.per_ns)


def _interaction(items: Items, choice: Sequence[int]) -> float:
    """Return x, the sum of the interactions of a choice."""
    return math.fsum(block[j].interaction for block, j in zip(items, choice, strict=True))


def _best_share(items: Items, joint: float, budget_bytes: int, budget_ns: float | None) -> float:
    """Find the best share by bisection on relaxed plans.

    Their share of the joint interaction falls as its price rises.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2.0
        found = relaxed(_priced(items, share), budget_bytes, budget_ns)
        if found is None:
            return 0.0
        if _interaction(items, found.choice) > share * joint:
            low = share
        else:
            high = share
    return (low + high) / 2.0
