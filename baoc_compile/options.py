"""The options of `torch.compile(..., backend="baoc", options={...})`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from baoc_compile.core.budget import MemoryBudget
from baoc_compile.core.errors import OptionError
from baoc_compile.core.planner_options import PlannerOptions
from baoc_compile.state.plan import Plan, as_plan


@dataclass(frozen=True)
class Options:
    """`memory_budget`: a limit on optimizer state (default "28%"; see `MemoryBudget`).
    `plan`: a Plan, its JSON, or one format for all; overrides the budget.
    `seed`: of the stochastic rounding, and of what is sampled.
    `planning`: how and when plans are made; its fields are options too (see `PlannerOptions`).
    `inner_backend`: what compiles every graph that is not an elementwise optimizer step (default "inductor").
    """

    memory_budget: MemoryBudget | None = None
    plan: Plan | None = None
    seed: int = 0
    planning: PlannerOptions = field(default_factory=PlannerOptions)
    inner_backend: Any = "inductor"

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> Options:
        """Raises OptionError for unknown names and wrong values, PlanError for a bad plan."""
        given = dict(given or {})
        known = {f.name for f in fields(cls)} - {"planning"} | PlannerOptions.names()
        unknown = sorted(set(given) - known)
        if unknown:
            raise OptionError(f'unknown option {unknown[0]!r} of backend "baoc"; known are {", ".join(sorted(known))}')
        if given.get("memory_budget") is not None:
            given["memory_budget"] = MemoryBudget.parse(given["memory_budget"])
        if given.get("plan") is not None:
            given["plan"] = as_plan(given["plan"])
        if not isinstance(given.get("seed", 0), int) or isinstance(given.get("seed", 0), bool):
            raise OptionError(f"seed: expected an integer, got {given['seed']!r}")
        planning = {name: given.pop(name) for name in PlannerOptions.names() & set(given)}
        return cls(**given, planning=PlannerOptions.parse(planning))
