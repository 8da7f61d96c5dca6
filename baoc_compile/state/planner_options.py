"""Options of the configurator: when plans are made, from which samples, and by which risk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from baoc_compile.core.budget import TimeBudget
from baoc_compile.core.errors import OptionError

RISKS = ("shadow", "proxy")
LAST_RESORTS = ("dropped",)


@dataclass(frozen=True)
class PlannerOptions:
    """How and when plans are made.

    time_budget: limit on the time of the optimizer step ("2 ms", or "120%" of the step in full precision); see
        `TimeBudget`.
    warmup_steps: steps before the first plan is solved; 0 keeps the starting plan for good.
    sample_steps: steps whose gradients are sampled before a plan is solved.
    replan_every: steps between later plans; 0 for none.
    replan_at: further steps after which a plan is solved, such as just before the learning rate falls.
    sample_bytes: host memory for samples; by default the larger of 16 MiB and 2 % of the parameters' bytes.
    blocks: the user's own grouping of parameters: a function (name, parameter) -> label, or a mapping name -> label.
    risk: "shadow", measured by shadow runs; or "proxy", a sum of metrics after BAOC (our reconstruction).
    allow: {"dropped"} lets a plan drop momentum where that is expected to harm least. Without it, momentum is dropped only
        where no other plan meets the budget.
    hysteresis: fraction in [0, 1) by which a new plan must lower the predicted risk to replace one that fits.
    """

    time_budget: TimeBudget | None = None
    warmup_steps: int = 400
    sample_steps: int = 24
    replan_every: int = 0
    replan_at: tuple[int, ...] = ()
    sample_bytes: int | None = None
    blocks: Any = None
    risk: str = "shadow"
    allow: frozenset[str] = frozenset()
    hysteresis: float = 0.1

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of all options."""
        return {f.name for f in fields(cls)}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> PlannerOptions:
        """Return the options in `given`; None counts as not given.

        Raises OptionError, which names the option.
        """
        given = {k: v for k, v in given.items() if v is not None}
        if "time_budget" in given and not isinstance(given["time_budget"], TimeBudget):
            given["time_budget"] = TimeBudget.parse(given["time_budget"])
        for name, least in (("warmup_steps", 0), ("sample_steps", 3), ("replan_every", 0), ("sample_bytes", 1 << 16)):
            if name in given:
                _whole(name, given[name], least)
        if "replan_at" in given:
            if isinstance(given["replan_at"], str) or not isinstance(given["replan_at"], Sequence):
                raise OptionError(f"replan_at: expected a list of step numbers, got {given['replan_at']!r}")
            given["replan_at"] = tuple(sorted(_whole("replan_at", step, 1) for step in given["replan_at"]))
        if given.get("risk", RISKS[0]) not in RISKS:
            raise OptionError(f"risk: {given['risk']!r} is none of {', '.join(RISKS)}")
        if "allow" in given:
            asked = given["allow"]
            if isinstance(asked, str) or not isinstance(asked, Collection) or not set(asked) <= set(LAST_RESORTS):
                raise OptionError(f"allow: expected a set of {', '.join(LAST_RESORTS)}, got {asked!r}")
            given["allow"] = frozenset(asked)
        value = given.get("hysteresis", 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
            raise OptionError(f"hysteresis: expected a number in [0, 1), got {value!r}")
        planning = cls(**given)
        if 0 < planning.warmup_steps <= planning.sample_steps:
            raise OptionError(
                f"warmup_steps: {planning.warmup_steps} leaves no room for sample_steps={planning.sample_steps}; make it "
                "larger, or 0 to plan nothing"
            )
        if 0 < planning.replan_every <= planning.sample_steps:
            raise OptionError(f"replan_every: must be 0 or more than sample_steps={planning.sample_steps}")
        return planning

    def next_after(self, step: int) -> int | None:
        """Return the first step after `step` at whose end a plan is due; None if there is none.

        Sampling takes `sample_steps` + 1 steps. Plans that would be due sooner are left out.
        """
        if not self.warmup_steps:
            return None
        due = {self.warmup_steps, *self.replan_at}
        if self.replan_every:
            due.add(self.warmup_steps + (max(step - self.warmup_steps, 0) // self.replan_every + 1) * self.replan_every)
            due.add(self.warmup_steps + (max(step - self.warmup_steps, 0) // self.replan_every + 2) * self.replan_every)
        return min((d for d in due if d - step > self.sample_steps), default=None)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return value
