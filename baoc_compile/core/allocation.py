"""Candidates for blocks, and an allocation: one candidate per block, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Gaps from this percentage on are given in nats: a ratio to a risk near 0 says little.
MOST_PERCENT = 10.0
#: Risks that differ by at most this fraction count as equal.
EQUAL = 1e-12


@dataclass(frozen=True)
class Candidate:
    """One configuration that a block may get.

    configuration: its label.
    size_bytes: bytes of the state of all the block's parameters.
    time_ns: predicted time of the step over the block, in nanoseconds.
    risk: expected damage to the loss by this block alone, in nats per window; may be negative.
    interaction: what the block adds to the joint displacement, in nats; see `passes/solve/couple.py`.
    """

    configuration: str
    size_bytes: int
    time_ns: float
    risk: float
    interaction: float = 0.0


def joint_interaction(items: Sequence[Sequence[Candidate]]) -> float:
    """Return the sum over blocks of the largest interaction among the block's candidates, in nats."""
    return math.fsum(max((c.interaction for c in block), default=0.0) for block in items)


def total_risk(items: Sequence[Sequence[Candidate]], chosen: Sequence[Candidate]) -> float:
    """Return the risk of one chosen candidate per block, in nats: sum_i risk_i + (sum_i interaction_i)^2 / joint.

    items: the candidates of every block, which determine `joint` (see `joint_interaction`).
    chosen: one candidate per block.
    """
    risk, together = math.fsum(c.risk for c in chosen), math.fsum(c.interaction for c in chosen)
    return risk + together * together / joint_interaction(items) if together else risk


@dataclass(frozen=True)
class Allocation:
    """One candidate per block, and how far the choice may be from the best one.

    choice: by block, the index of its candidate.
    size_bytes: bytes of state, summed over blocks.
    time_ns: predicted time of the step, summed over blocks, in nanoseconds.
    risk: total risk in nats; see `total_risk`.
    lower_bound: no choice within the same budgets has a smaller risk than this, in nats.
    """

    choice: tuple[int, ...]  # by block: the index of its candidate
    size_bytes: int
    time_ns: float
    risk: float
    lower_bound: float

    @classmethod
    def of(cls, items: Sequence[Sequence[Candidate]], choice: Sequence[int], lower_bound: float) -> Allocation:
        """Return the allocation that `choice` makes of the blocks' candidates; its risk caps the lower bound."""
        chosen = [candidates[j] for candidates, j in zip(items, choice, strict=True)]
        risk = total_risk(items, chosen)
        size_bytes, time_ns = sum(c.size_bytes for c in chosen), math.fsum(c.time_ns for c in chosen)
        return cls(tuple(int(j) for j in choice), size_bytes, time_ns, risk, min(lower_bound, risk))

    def fits(self, budget_bytes: int, budget_ns: float | None) -> bool:
        """Return whether the allocation meets both budgets; `budget_ns` None means no time budget."""
        return self.size_bytes <= budget_bytes and (budget_ns is None or self.time_ns <= budget_ns)

    @property
    def gap(self) -> float:
        """Risk minus lower bound, in nats."""
        return self.risk - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap as a fraction of the larger magnitude of risk and lower bound; 0 without a gap."""
        return self.gap / max(abs(self.risk), abs(self.lower_bound)) if self.gap else 0.0

    @property
    def is_exact(self) -> bool:
        """Whether the choice is optimal, up to rounding."""
        return self.relative_gap <= EQUAL

    @property
    def certificate(self) -> str:
        """Optimality in words: "optimal", or the largest distance from the optimum that is possible."""
        if self.is_exact:
            return "optimal"
        percent = 100 * self.relative_gap
        gap = f"{percent:.2g} %" if percent < MOST_PERCENT else f"{self.gap:.2g} nats"
        return f"within {gap} of the optimum (risk {self.risk:.6g}, lower bound {self.lower_bound:.6g})"

    def __str__(self) -> str:
        blocks = "1 block" if len(self.choice) == 1 else f"{len(self.choice)} blocks"
        sums = f"{self.size_bytes} bytes, {self.time_ns:.0f} ns, risk {self.risk:.4g} nats"
        return f"{blocks}, {sums}: {self.certificate}"
