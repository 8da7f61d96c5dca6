"""How and when plans are made: the options of the configurator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from baoc_compile.core.budget import TimeBudget
from baoc_compile.core.errors import OptionError

RISKS = ("shadow", "proxy")


@dataclass(frozen=True)
class PlannerOptions:
    """`time_budget`: a limit on the optimizer step's time ("2 ms", "120%" of what full precision takes); see `TimeBudget`.
    `warmup_steps`: the first plan is solved after so many steps; 0: never, the plan to start with stays.
    `sample_steps`: gradients are sampled during so many steps before a plan is solved.
    `replan_every`: solve again every so many steps; 0: never. `replan_at`: and after these steps, such as just before the
    learning rate is brought down.
    `sample_bytes`: host memory for samples; default the larger of 16 MiB and 2 % of the parameters' bytes.
    `blocks`: a grouping of the user's own, a function (name, parameter) -> label or a mapping name -> label.
    `risk`: "shadow" (measured), or "proxy" (a sum of metrics after BAOC, our reconstruction).
    `hysteresis`: a new plan must lower the predicted risk by this fraction to replace one that fits.
    """

    time_budget: TimeBudget | None = None
    warmup_steps: int = 400
    sample_steps: int = 24
    replan_every: int = 0
    replan_at: tuple[int, ...] = ()
    sample_bytes: int | None = None
    blocks: Any = None
    risk: str = "shadow"
    hysteresis: float = 0.1

    @classmethod
    def names(cls) -> set[str]:
        return {f.name for f in fields(cls)}

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> PlannerOptions:
        """From options that the user gave; None counts as not given. Raises OptionError that names the option."""
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
        """The first step after `step` steps at whose end a plan is due; None if none is. Sampling needs `sample_steps` + 1
        steps, so plans that would be due sooner than that are left out."""
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
