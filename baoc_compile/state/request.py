"""Request: what the user asked for, in `prepare` or in the options of `torch.compile`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baoc_compile.core.budget import DEFAULT_BUDGET, MemoryBudget
from baoc_compile.core.errors import OptionError
from baoc_compile.state.plan import Plan, as_plan
from baoc_compile.state.planner_options import PlannerOptions


@dataclass(frozen=True)
class Request:
    """A memory budget or a plan, a seed, and how plans are made.

    memory_budget: limit on optimizer state; None if none was named.
    plan: the configuration itself, which overrides a budget; None if none was named.
    seed: seed of the stochastic rounding and of the sampling; None takes the plan's seed, or 0.
    planner: how and when plans are made.
    """

    memory_budget: MemoryBudget | None = None
    plan: Plan | None = None
    seed: int | None = None
    planner: PlannerOptions = field(default_factory=PlannerOptions)

    @classmethod
    def option_names(cls) -> set[str]:
        """Return the names of all options that `parse` knows."""
        return {"memory_budget", "plan", "seed"} | PlannerOptions.names()

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Request:
        """Return the request that these options make; None counts as not given.

        Raises OptionError, which names the option, and PlanError.
        """
        given = {name: value for name, value in given.items() if value is not None}
        unknown = sorted(set(given) - cls.option_names())
        if unknown:
            raise OptionError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(cls.option_names()))}")
        budget, plan, seed = (given.pop(name, None) for name in ("memory_budget", "plan", "seed"))
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise OptionError(f"seed: expected an integer, got {seed!r}")
        return cls(
            MemoryBudget.parse(budget) if budget is not None else None,
            as_plan(plan) if plan is not None else None,
            seed,
            PlannerOptions.parse(given),
        )

    @property
    def is_explicit(self) -> bool:
        """Whether the user named a plan or a memory budget."""
        return self.memory_budget is not None or self.plan is not None

    @property
    def budget(self) -> MemoryBudget | None:
        """The budget in force: the default if nothing was named, None under a named plan."""
        if self.plan is not None:
            return None
        return self.memory_budget or MemoryBudget.parse(DEFAULT_BUDGET)

    @property
    def seed_in_force(self) -> int:
        """The seed that was named, else the plan's, else 0."""
        if self.seed is not None:
            return self.seed
        return self.plan.seed if self.plan is not None else 0

    def or_else(self, later: Request, *, is_settled: bool) -> Request:
        """Return the request in force after `later` was made too.

        A named plan or budget stays. A later named one replaces a default. A later default counts only before anything
        `is_settled`, that is, before any storage is decided.
        Raises OptionError if both requests name a plan or budget, and not the same.
        """
        if self.is_explicit and later.is_explicit and self._named != later._named:
            raise OptionError(
                f"this optimizer was prepared for {self.wish} before, and now for {later.wish}: name the same, or make a new "
                "optimizer"
            )
        if self.is_explicit or (is_settled and not later.is_explicit):
            return self
        return later

    @property
    def _named(self) -> tuple[str | None, Plan | None]:
        return self.memory_budget.text if self.memory_budget is not None else None, self.plan

    @property
    def wish(self) -> str:
        """The plan or budget that was named, in words."""
        if self.plan is not None:
            default = ", ".join(f"{slot}: {choice}" for slot, choice in sorted(self.plan.default.items()))
            entries = f" and {len(self.plan.parameters)} entries" if self.plan.parameters else ""
            return f"the plan {{{default}}}{entries}"
        return f"the memory budget {self.budget.text!r}" if self.budget is not None else "nothing"
