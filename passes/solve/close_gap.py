"""Gap search: close what the tangents of `couple.py` leave between the best known plan and the lower bound.

At any share s and prices p >= 0 of the limited resources, the risk of a plan exceeds the lower bound L(s, p) of
`couple.py` by

    sum_i (reduced cost)_i + p (what is left of the budgets) + (x - s joint)^2 / joint,      x = sum_i interaction_i

Every term is at least 0, so only few plans can beat the best known one. The search builds them block by block. It drops
a partial plan if some (s, p) shows that the plan cannot become better than the best known one, or if another partial
plan is no worse in all respects. If too many remain, those with the least bounds go on; the least bound of the others
limits the bound of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from baoc_compile.core.allocation import Allocation, Candidate, joint_interaction

Items = Sequence[Sequence[Candidate]]

MOST = 4000  # partial plans that go on from one stage
MOST_IN_ALL = 40_000  # the same over all stages, which share it equally
CHUNK = 256  # partial plans that are compared at once
ROUNDING = 2.0**-44  # rounding error of a sum, relative to the sum of magnitudes


@dataclass(frozen=True)
class Prices:
    """Where a lower bound is taken.

    share: s, the share of the joint interaction.
    per_byte: the price of memory, in nats per byte.
    per_ns: the price of time, in nats per ns.
    """

    share: float
    per_byte: float
    per_ns: float


def close_gap(
    items: Items, known: Allocation, several: Sequence[Prices], budget_bytes: int, budget_ns: float | None = None
) -> Allocation:
    """Return the best plan found, `known` or a better one, with the lower bound that the search proves.

    items: the candidates of every block.
    known: the best known plan.
    several: where lower bounds are taken.
    """
    joint = joint_interaction(items)
    budgets = np.array([budget_bytes, math.inf if budget_ns is None else budget_ns])
    # by block, (4, candidates): bytes, time, risk, interaction
    values = [np.array([[c.size_bytes, c.time_ns, c.risk, c.interaction] for c in block]).T for block in items]
    weights = np.array([[p.per_byte, p.per_ns, 1.0, 2.0 * p.share] for p in several])
    costs = [weights @ v for v in values]  # by block, (prices, candidates)
    middles = np.array([p.share * joint for p in several])
    paid = weights[:, :2] @ np.where(weights[:, :2].any(0), budgets, 0.0)
    bounds = sum(c.min(1) for c in costs) - paid - middles**2 / joint
    noise = ROUNDING * float((paid + middles + sum(np.abs(c).max(1) for c in costs)).max())

    order = sorted(range(len(items)), key=lambda i: -float(np.ptp(costs[i], axis=1).max()))
    most = min(MOST, max(MOST_IN_ALL // len(items), 1))
    sums, above, dropped = np.zeros((4, 1)), bounds[:, None], math.inf
    history: list[np.ndarray] = []
    for i, rest in zip(order, _to_come([values[i] for i in order]), strict=True):
        above = (above[:, :, None] + (costs[i] - costs[i].min(1, keepdims=True))[:, None, :]).reshape(len(several), -1)
        sums = (sums[:, :, None] + values[i][:, None, :]).reshape(4, -1)
        misses = np.maximum(sums[3] + rest[2] - middles[:, None], middles[:, None] - sums[3] - rest[3])
        least = (above + np.maximum(misses, 0.0) ** 2 / joint).max(0)
        fits = (sums[:2] + rest[:2, None] <= budgets[:, None] * (1.0 + ROUNDING)).all(0)
        some, left_1 = _first(np.flatnonzero(fits & (least <= known.risk + noise)), least, 2 * most)
        some, left_2 = _first(some[_undominated(sums[:, some])], least, most)
        dropped = min(dropped, left_1, left_2)
        history.append(some)
        sums, above = sums[:, some], above[:, some]
    best, risks = known, sums[2] + sums[3] ** 2 / joint
    for label in np.argsort(risks, kind="stable"):
        if risks[label] > best.risk + noise:
            break
        trial = Allocation.of(items, _choice(items, order, history, int(label)), math.inf)
        if trial.risk < best.risk and trial.fits(budget_bytes, budget_ns):
            best = trial
    proven = min(best.risk, dropped - noise)
    return replace(best, lower_bound=min(max(known.lower_bound, proven), best.risk))


def _to_come(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return, by stage, sums over the blocks after it.

    They are the least bytes, time and interaction, and the largest interaction.
    """
    ends = [np.array([v[0].min(), v[1].min(), v[3].min(), v[3].max()]) for v in values]
    sums = np.cumsum([np.zeros(4), *ends[:0:-1]], axis=0)
    return list(sums[::-1])


def _first(some: np.ndarray, least: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """Return the `most` members of `some` with the smallest `least`, in the same order.

    Also return the smallest `least` of the others.
    """
    if len(some) <= most:
        return some, math.inf
    by_least = some[np.argsort(least[some], kind="stable")]
    return np.sort(by_least[:most]), float(least[by_least[most]])


def _undominated(sums: np.ndarray) -> np.ndarray:
    """Return the partial plans that no other one dominates.

    One plan dominates another if it is no more in all rows and less in one. Of equal plans one stays.
    """
    order = np.lexsort(sums[::-1])
    sums = sums[:, order]
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), CHUNK):
        part = np.arange(start, min(start + CHUNK, len(order)))
        part = part[~_no_more(sums[:, kept], sums[:, part]).any(0)]
        among = np.triu(_no_more(sums[:, part], sums[:, part]), 1)
        kept = np.concatenate([kept, part[~among.any(0)]])
    return np.sort(order[kept])


def _no_more(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return `[j, k]`: whether column j of a is no more than column k of b in any row."""
    found = np.ones((a.shape[1], b.shape[1]), bool)
    for x, y in zip(a, b, strict=True):
        found &= x[:, None] <= y[None, :]
    return found


def _choice(items: Items, order: Sequence[int], history: Sequence[np.ndarray], label: int) -> list[int]:
    """Trace one label back to the candidate of every block."""
    choice = [0] * len(items)
    for i, some in zip(order[::-1], history[::-1], strict=True):
        label, choice[i] = divmod(int(some[label]), len(items[i]))
    return choice
