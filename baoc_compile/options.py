"""The options of `torch.compile(..., backend="baoc", options={...})`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from baoc_compile.budget import MemoryBudget
from baoc_compile.errors import OptionError
from baoc_compile.plan import Plan, as_plan


@dataclass(frozen=True)
class Options:
    """`memory_budget`: a limit on optimizer state (default "28%"; see `MemoryBudget`).
    `plan`: a Plan, its JSON, or one format for all; overrides the budget.
    `seed`: of the stochastic rounding.
    `inner_backend`: what compiles every graph that is not an elementwise optimizer step (default "inductor").
    """

    memory_budget: MemoryBudget | None = None
    plan: Plan | None = None
    seed: int = 0
    inner_backend: Any = "inductor"

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> Options:
        """Raises OptionError for unknown names and wrong values, PlanError for a bad plan."""
        given = dict(given or {})
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise OptionError(f'unknown option {unknown[0]!r} of backend "baoc"; known are {", ".join(sorted(known))}')
        if given.get("memory_budget") is not None:
            given["memory_budget"] = MemoryBudget.parse(given["memory_budget"])
        if given.get("plan") is not None:
            given["plan"] = as_plan(given["plan"])
        if not isinstance(given.get("seed", 0), int):
            raise OptionError(f"seed: expected an integer, got {given['seed']!r}")
        return cls(**given)
