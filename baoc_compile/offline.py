"""Planning ahead of a run: `profile` some steps of training, `solve` for any budget, `prepare(optimizer, plan=...)`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from baoc_compile.core.budget import MemoryBudget, TimeBudget
from baoc_compile.core.errors import OptionError, StateError
from baoc_compile.core.profile import Profile
from baoc_compile.passes.plan.solve_plan import solve_profile
from baoc_compile.runtime.configurator import Configurator
from baoc_compile.runtime.session import known_session
from baoc_compile.state.plan import Plan
from baoc_compile.state.planner_options import PlannerOptions


def profile(
    optimizer: Any,
    train_step: Callable[[], Any],
    *,
    sample_steps: int = 24,
    sample_bytes: int | None = None,
    blocks: Any = None,
    risk: str = "shadow",
    allow: Collection[str] = (),
    measure_time: bool = False,
) -> Profile:
    """Train `sample_steps` + 1 steps and return the profile that they give.

    optimizer: a prepared optimizer whose step has run at least once. Full precision (`plan="fp32"`) shows most.
    train_step: trains one step, and calls the optimizer's step once.
    sample_steps, sample_bytes, blocks, risk, allow: as in `PlannerOptions`.
    measure_time: whether to time every candidate on this device; by default time is estimated from bytes moved.

    Training goes on as it would have without profiling, and the plan in force stays.

    Raises OptionError, and StateError if `train_step` does not call the step of this optimizer.
    """
    options = {
        "sample_steps": sample_steps,
        "sample_bytes": sample_bytes,
        "blocks": blocks,
        "risk": risk,
        "allow": allow,
    }
    planning = PlannerOptions.parse(
        {**options, "warmup_steps": sample_steps + 1 if isinstance(sample_steps, int) else 0}
    )
    session = known_session(optimizer)
    if session is None or session.own is None or session.own.bound is None:
        raise StateError("profile: call the step of the prepared optimizer once before, then profile")
    if not callable(train_step):
        raise OptionError(f"train_step: expected a function that trains one step, got {train_step!r}")
    usual, watching = session.configurator, Configurator(session, planning, decides=False, measures_time=measure_time)
    session.configurator = watching
    try:
        for _ in range(sample_steps + 1):
            train_step()
    finally:
        session.configurator = usual
    if watching.profile is None:
        raise StateError(
            f"profile: {watching.steps} steps were seen in {sample_steps + 1} calls of train_step; it has to call the "
            "optimizer's step once in each"
        )
    return watching.profile


def solve(profile: Profile, memory_budget: str | int, *, time_budget: str | None = None, seed: int = 0) -> Plan:
    """Return the plan of least risk within the budgets, with its certificate.

    profile: what `profile` returned.
    memory_budget: as in `prepare`, but not "fit"; see `MemoryBudget`.
    time_budget: "2 ms", or "120%" of the step in full precision; see `TimeBudget`.
    seed: seed of the plan's stochastic rounding.

    Raises OptionError, and BudgetError that names the smallest budget that can be met.
    """
    memory = MemoryBudget.parse(memory_budget)
    if memory.is_deferred:
        raise OptionError('memory_budget: "fit" needs a device; solve takes "15%", "2 B/param", "512 MiB" or bytes')
    time = TimeBudget.parse(time_budget) if time_budget is not None else None
    return solve_profile(profile, memory, time).plan(Plan(seed=seed, memory_budget=memory.text))
