"""Solving: from a profile and budgets to a plan with its certificate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from baoc_compile.core.allocation import Allocation, Candidate, total_risk
from baoc_compile.core.budget import MemoryBudget, TimeBudget
from baoc_compile.core.errors import BudgetError
from baoc_compile.core.profile import BlockCandidate, Profile
from baoc_compile.core.storage import Storage, StoredParameter, StoredSlot
from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.passes.solve.allocate import fastest_choice
from baoc_compile.passes.solve.couple import allocate_coupled, coupled_frontier
from baoc_compile.state.plan import ParameterPlan, Plan


@dataclass(frozen=True)
class Solution:
    """What was chosen, from what, and how good it is.

    profile: what the choice was made from.
    allocation: the solver's answer, with its lower bound.
    chosen: the candidate of each block of the profile.
    budget_bytes: the limit on the whole state, in bytes.
    budget_ns: the limit on the whole step, in ns; None for no limit.
    """

    profile: Profile
    allocation: Allocation
    chosen: tuple[BlockCandidate, ...]
    budget_bytes: int
    budget_ns: float | None

    @property
    def time_ns(self) -> float:
        """The predicted time of the whole step, in ns."""
        return self.allocation.time_ns + launch_ns(self.chosen)

    def kept(self) -> Solution:
        """Return the solution that keeps the plan in force."""
        now = current_choice(self.profile)
        risk = risk_of(self.profile, now)
        allocation = Allocation(
            choice=self.profile.current,
            size_bytes=self.profile.fixed_bytes + sum(c.size_bytes for c in now),
            time_ns=math.fsum([self.profile.fixed_ns, *(c.time_ns for c in now)]),
            risk=risk,
            lower_bound=min(self.allocation.lower_bound, risk),
        )
        return replace(self, allocation=allocation, chosen=tuple(now))

    def stored(self, storage: Storage) -> Storage:
        """Return `storage` with the chosen configuration for every block's parameters."""
        changed = {}
        for block, candidate in zip(self.profile.blocks, self.chosen, strict=True):
            for i in block.parameters:
                slots = {key: StoredSlot(codec_named(name)) for key, name in candidate.codecs.items()}
                changed[i] = StoredParameter({**storage.of(i).slots, **slots}, block.name)
        return replace(storage.with_parameters(changed), certificate=self.allocation.certificate)

    def plan(self, base: Plan) -> Plan:
        """Return `base` with entries for every block's parameters."""
        parameters: dict[int, ParameterPlan] = dict(base.parameters)
        for block, candidate in zip(self.profile.blocks, self.chosen, strict=True):
            for i in block.parameters:
                kept = dict(parameters[i].slots) if i in parameters else {}
                slots = {**kept, **candidate.codecs}
                parameters[i] = ParameterPlan(self.profile.names[i], self.profile.shapes[i], slots, block=block.name)
        return replace(base, parameters=parameters, certificate=self.allocation.certificate)


def items_of(profile: Profile) -> list[list[Candidate]]:
    """Return what the solver chooses among: the allowed candidates of every block, and last, state that is not planned.

    Excluded candidates are left out. Gated ones stay.
    """
    items = [[_item(c) for c in candidates if _is_allowed(c)] for candidates in profile.candidates]
    return [*items, [Candidate("", profile.fixed_bytes, profile.fixed_ns, 0.0)]]


def _is_allowed(candidate: BlockCandidate) -> bool:
    return not candidate.excluded and math.isfinite(candidate.risk)


def _item(candidate: BlockCandidate) -> Candidate:
    return Candidate(candidate.label, candidate.size_bytes, candidate.time_ns, candidate.risk, candidate.interaction)


def solve_profile(profile: Profile, memory_budget: MemoryBudget, time_budget: TimeBudget | None = None) -> Solution:
    """Return the plan of least risk within both budgets.

    Blocks share launches, so the time of launches is set aside from the time budget. The certificate is about the
    choice of the blocks within the rest. Where the rest is too small, the fastest plan is taken if it fits.

    Raises BudgetError that names the smallest budget that can be met.
    """
    budget_bytes = memory_budget.in_bytes(profile.full_bytes - profile.fixed_bytes, profile.numel, profile.fixed_bytes)
    budget_ns = time_budget.in_ns(profile.full_ns) if time_budget is not None else None
    allowed = [[c for c in candidates if _is_allowed(c)] for candidates in profile.candidates]

    def solution_of(allocation: Allocation) -> Solution:
        chosen = tuple(candidates[j] for candidates, j in zip(allowed, allocation.choice, strict=False))
        return Solution(profile, allocation, chosen, budget_bytes, budget_ns)

    items = items_of(profile)

    def within(limit_ns: float) -> tuple[Solution | None, float]:
        spared, bound = 0.0, -math.inf
        while True:
            try:
                allocation = allocate_coupled(items, budget_bytes, limit_ns - spared)
            except BudgetError:
                return None, bound
            bound = allocation.lower_bound if spared == 0.0 else bound
            solution = solution_of(allocation)
            if solution.time_ns <= limit_ns:
                return solution, bound
            spared = max(launch_ns(solution.chosen), spared * 1.05)

    if budget_ns is None:
        return solution_of(allocate_coupled(items, budget_bytes))
    found, bound = within(budget_ns)
    if found is not None:
        return found
    fastest = solution_of(Allocation.of(items, fastest_choice(items, budget_bytes), bound))
    if fastest.time_ns <= budget_ns:
        return fastest
    # The fastest blocks may need more launches than others: bisect between their time without launches and with them.
    refused, accepted = math.floor(fastest.time_ns - launch_ns(fastest.chosen)) - 1, math.ceil(fastest.time_ns)
    while accepted - refused > 1:
        middle = (refused + accepted) // 2
        refused, accepted = (refused, middle) if within(middle)[0] is not None else (middle, accepted)
    raise BudgetError(
        f"time_budget: {budget_ns:.0f} ns is too small for a memory budget of {budget_bytes} bytes, launches included; "
        f"raise it to {accepted} ns"
    )


def risk_of(profile: Profile, chosen: Sequence[BlockCandidate]) -> float:
    """Return the risk of a plan (see `couple.py`).

    `chosen` may also be part of a plan whose other blocks stay in full precision.
    """
    return total_risk(items_of(profile), [_item(c) for c in chosen])


def launch_ns(chosen: Sequence[BlockCandidate]) -> float:
    """Return the time of the programs' launches. A program that several blocks share is launched once."""
    return math.fsum({c.programs: c.launch_ns for c in chosen}.values())


def current_choice(profile: Profile) -> list[BlockCandidate]:
    """Return the candidates that are in force now, by block."""
    return [candidates[j] for candidates, j in zip(profile.candidates, profile.current, strict=True)]


def by_parameter(profile: Profile, chosen: Sequence[BlockCandidate]) -> Mapping[int, BlockCandidate]:
    """Return the chosen candidates by parameter index."""
    return {i: c for block, c in zip(profile.blocks, chosen, strict=True) for i in block.parameters}


def frontier_of(profile: Profile) -> list[tuple[int, float]]:
    """Return (bytes of state, risk) of the best plans for every memory budget, without a time budget."""
    return [(point.size_bytes, point.risk) for point in coupled_frontier(items_of(profile))]


def uniform_points(profile: Profile) -> list[tuple[str, int, float]]:
    """Return (codecs, bytes, risk) of one configuration for all blocks, for each candidate of the largest block.

    A block without that candidate takes its candidate of least risk with no more bytes per element, or
    its smallest one if none is that small.
    """
    sizes = [sum(math.prod(profile.shapes[i]) for i in b.parameters) for b in profile.blocks]
    if not sizes:
        return []
    allowed = [[c for c in cs if _is_allowed(c)] for cs in profile.candidates]
    points = []
    for model in allowed[sizes.index(max(sizes))]:
        density = model.size_bytes / max(sizes)
        chosen = []
        for numel, candidates in zip(sizes, allowed, strict=True):
            same = [c for c in candidates if c.codecs == model.codecs]
            fitting = [c for c in candidates if c.size_bytes <= density * numel]
            nearest = min(candidates, key=lambda c: c.size_bytes)
            chosen.append(same[0] if same else min(fitting, key=lambda c: c.risk, default=nearest))
        size = profile.fixed_bytes + sum(c.size_bytes for c in chosen)
        points.append(("/".join(model.codecs.values()), size, risk_of(profile, chosen)))
    return points
