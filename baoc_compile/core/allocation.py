"""What an allocation is made from, and what it is: a candidate for every block, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PERCENT = 10.0  # a gap beside a risk near 0 is said in nats
EQUAL = 1e-12  # risks that differ by less than this fraction count as equal


@dataclass(frozen=True)
class Candidate:
    """One configuration that a block could get."""

    configuration: str
    size_bytes: int
    time_ns: float
    risk: float  # nats; may be negative
    interaction: float = 0.0  # nats, if all blocks are displaced as much; see `passes/solve/couple.py`


def joint_interaction(items: Sequence[Sequence[Candidate]]) -> float:
    """Of the blocks' candidates that interact most."""
    return math.fsum(max((c.interaction for c in block), default=0.0) for block in items)


def total_risk(items: Sequence[Sequence[Candidate]], chosen: Sequence[Candidate]) -> float:
    """sum_i risk_i + (sum_i interaction_i)^2 / joint"""
    risk, together = math.fsum(c.risk for c in chosen), math.fsum(c.interaction for c in chosen)
    return risk + together * together / joint_interaction(items) if together else risk


@dataclass(frozen=True)
class Allocation:
    """One candidate per block. No choice within the same budgets has a risk below `lower_bound`."""

    choice: tuple[int, ...]  # by block: the index of its candidate
    size_bytes: int
    time_ns: float
    risk: float
    lower_bound: float

    @classmethod
    def of(cls, items: Sequence[Sequence[Candidate]], choice: Sequence[int], lower_bound: float) -> Allocation:
        chosen = [candidates[j] for candidates, j in zip(items, choice, strict=True)]
        risk = total_risk(items, chosen)
        size_bytes, time_ns = sum(c.size_bytes for c in chosen), math.fsum(c.time_ns for c in chosen)
        return cls(tuple(int(j) for j in choice), size_bytes, time_ns, risk, min(lower_bound, risk))

    def fits(self, budget_bytes: int, budget_ns: float | None) -> bool:
        return self.size_bytes <= budget_bytes and (budget_ns is None or self.time_ns <= budget_ns)

    @property
    def gap(self) -> float:
        return self.risk - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap as a fraction of the risk's magnitude."""
        return self.gap / max(abs(self.risk), abs(self.lower_bound)) if self.gap else 0.0

    @property
    def is_exact(self) -> bool:
        return self.relative_gap <= EQUAL

    @property
    def certificate(self) -> str:
        if self.is_exact:
            return "optimal"
        percent = 100 * self.relative_gap
        gap = f"{percent:.2g} %" if percent < MOST_PERCENT else f"{self.gap:.2g} nats"
        return f"within {gap} of the optimum (risk {self.risk:.6g}, lower bound {self.lower_bound:.6g})"

    def __str__(self) -> str:
        blocks = "1 block" if len(self.choice) == 1 else f"{len(self.choice)} blocks"
        sums = f"{self.size_bytes} bytes, {self.time_ns:.0f} ns, risk {self.risk:.4g} nats"
        return f"{blocks}, {sums}: {self.certificate}"
