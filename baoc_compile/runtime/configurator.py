"""Configurator: sample gradients while training runs, solve for a plan, migrate the state.

    steps   0 ............ warmup - sample ........... warmup ........................ next plan
            starting plan    gradients are sampled    solve, migrate                  (replan_every, replan_at)

All work happens between launches of the step. Steps that do not sample cost nothing.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from baoc_compile.core.budget import MemoryBudget, TimeBudget
from baoc_compile.core.errors import BudgetError
from baoc_compile.core.profile import Profile
from baoc_compile.core.rule import UpdateRule
from baoc_compile.passes.blocks.group_blocks import group_blocks
from baoc_compile.passes.migrate.migrate_state import migrate_state
from baoc_compile.passes.plan.make_profile import Planned, make_profile
from baoc_compile.passes.plan.solve_plan import Solution, solve_profile
from baoc_compile.passes.risk.gradient_stream import GradientStream
from baoc_compile.passes.risk.sample_gradients import GradientSampler, default_buffer_bytes
from baoc_compile.runtime.checkpoint import keep_in_checkpoints
from baoc_compile.runtime.compile_lock import compile_lock
from baoc_compile.runtime.distributed.pooled_streams import pooled_streams
from baoc_compile.runtime.distributed.ranks import Ranks, warn_of_others
from baoc_compile.runtime.session import Session, known_session
from baoc_compile.state.planner_options import PlannerOptions

log = logging.getLogger("baoc")


@dataclass
class Configurator:
    """The configurator of one optimizer.

    session: the optimizer's session.
    planner: when plans are made, and from what.
    steps: steps so far.
    due: the step after which the next plan is solved; None if none will be.
    sampler: collects gradients; None outside a sampling window.
    solution: the plan that was solved last, adopted or not.
    history: every decision, with its reason.
    decides: False to profile without changing the plan.
    solve: returns a solution, given a profile and the budgets.
    measures_time: whether to time every candidate even without a time budget.
    profile: the last profile.
    seconds: time spent on sampling, solving and migrating, in seconds.
    clock: returns the time in seconds.
    """

    session: Session
    planner: PlannerOptions
    steps: int = 0
    due: int | None = None
    sampler: GradientSampler | None = None
    solution: Solution | None = None
    history: list[str] = field(default_factory=list)
    decides: bool = True
    solve: Callable[[Profile, MemoryBudget, TimeBudget | None], Solution] = solve_profile
    measures_time: bool = False
    profile: Profile | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"sampling": 0.0, "solving": 0.0, "migrating": 0.0})
    clock: Callable[[], float] = time.perf_counter
    _resumed: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.due = self.planner.next_after(0)

    @property
    def is_sampling(self) -> bool:
        """Whether the next step is sampled."""
        return self.due is not None and self.steps >= self.due - self.planner.sample_steps - 1

    def step(self, own: Any, run: Callable[[], Any]) -> Any:
        """Run one step, `run`, with the sampling and planning that are due around it. Return its result."""
        if not self.is_sampling:
            self.steps += 1
            return run()
        self.begin_step(own)
        with self.observing(own.bound):
            result = run()
        self.end_step(own)
        return result

    # a step that runs in parts

    def begin_step(self, own: Any) -> None:
        """Begin a step."""
        if not self.is_sampling:
            return
        with self._timed("sampling"):
            if self.sampler is None:
                self.sampler = self._new_sampler(own.rules)
            self.sampler.begin_step()

    @contextmanager
    def observing(self, bound: Any) -> Iterator[None]:
        """Sample what runs within this context: a bound step, or one for some of the parameters."""
        sampler = self.sampler
        if sampler is None or not self.is_sampling:
            yield
            return

        def observe(launch: Any, present: Any) -> None:
            with self._timed("sampling"):
                sampler.observe(launch, present, bound.rules, bound.numbers_of)

        with bound.observed(observe):
            yield

    def end_step(self, own: Any) -> None:
        """End a step: plan anew if that is due."""
        if self.sampler is not None and self.is_sampling:
            with self._timed("sampling"):
                self.sampler.end_step()
        self.steps += 1
        if self.due is not None and self.steps >= self.due:
            self._plan(own)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = self.clock()
        try:
            yield
        finally:
            self.seconds[what] += self.clock() - begun

    def _new_sampler(self, rules: Mapping[int, UpdateRule]) -> GradientSampler:
        table = self.session.table()
        ready = {i: rule for i, rule in rules.items() if all(s.key in table.state(i) for s in rule.slots)}
        size = self.planner.sample_bytes or default_buffer_bytes(table.parameters)
        planned = Planned(self.session.storage, table, ready)
        blocks = group_blocks(table, planned.must_agree(), self.session.roles(), self.planner.blocks)
        sampler = GradientSampler(table, ready, blocks, self.planner.sample_steps, self.session.storage.seed, size)
        unseen = [b.name for b in blocks if b.parameters[0] in ready and b.parameters[0] not in sampler.index]
        if unseen:
            self._note(
                f"sample_bytes: {size} bytes have no room for {len(unseen)} of {len(blocks)} blocks ({unseen[0]}, ...)"
            )
        if self._resumed is not None:
            sampler.load_state_dict(self._resumed)
            self._resumed = None
        return sampler

    def _plan(self, own: Any) -> None:
        with compile_lock():
            self._plan_anew(own)

    def _plan_anew(self, own: Any) -> None:
        sampler, self.sampler = self.sampler, None
        assert sampler is not None
        self.due = self.planner.next_after(self.steps)
        ranks = Ranks.of(self.session.table())
        with self._timed("solving"):
            if not ranks.is_alone:
                ranks.compare({"the steps taken": str(self.steps), "the plan in force": self.session.plan().to_json()})
            streams = pooled_streams(ranks, sampler)
            self.profile, solution, reason = ranks.decided_by_first(lambda: self._decided(sampler.rules, streams))
            self.solution = solution or self.solution
        if reason:
            self._note(f"kept the plan: {reason}")
        if reason or solution is None:
            return
        with self._timed("migrating"):
            changed = self._migrate(own, solution)
        before, after = solution.kept().allocation.risk, solution.allocation.risk
        self._note(
            f"{changed} slots migrated; {solution.allocation.size_bytes} of {solution.budget_bytes} bytes; risk {before:.3g} -> "
            f"{after:.3g} nats per window; {solution.allocation.certificate}"
        )

    def _decided(
        self, rules: Mapping[int, UpdateRule], streams: Mapping[int, GradientStream]
    ) -> tuple[Profile, Solution | None, str]:
        """Return a profile, the plan that it is solved for, and why the plan in force is kept; empty if it is not."""
        profile, budget = self.profile_now(rules, streams), self.session.request.budget
        if not self.decides or budget is None:
            return profile, None, ""
        try:
            solution = self.solve(profile, budget, self.planner.time_budget)
        except BudgetError as error:
            return profile, None, str(error)
        return profile, solution, self._reason_to_keep(solution)

    def profile_now(
        self, rules: Mapping[int, UpdateRule], streams: Mapping[int, GradientStream] = MappingProxyType({})
    ) -> Profile:
        """Return a profile from the given streams; without streams, risks are the order of `Codec.expected_harm`.

        rules: the rules of the parameters that may be planned, by index.
        """
        planned = Planned(self.session.storage, self.session.table(), rules)
        blocks = group_blocks(planned.table, planned.must_agree(), self.session.roles(), self.planner.blocks)
        planner = self.planner
        return make_profile(
            planned,
            blocks,
            streams,
            seed=self.session.storage.seed,
            measure_time=self.measures_time or planner.time_budget is not None,
            risk=planner.risk,
            allow=planner.allow,
        )

    def _reason_to_keep(self, solution: Solution) -> str:
        """Return why a new plan is not worth a migration; empty if it is, or if the old plan does not fit the budgets."""
        kept = solution.kept()
        if kept.allocation.size_bytes > solution.budget_bytes or (
            solution.budget_ns is not None and kept.time_ns > solution.budget_ns
        ):
            return ""
        if any(c.excluded or c.gate for c in kept.chosen):
            return ""
        if all(a.codecs == b.codecs for a, b in zip(kept.chosen, solution.chosen, strict=True)):
            return "it is the best one"
        before = kept.allocation.risk
        gained, wanted = before - solution.allocation.risk, self.planner.hysteresis * abs(before)
        if gained <= wanted:
            return f"a new one would lower the risk by {gained:.3g} nats per window, less than {wanted:.3g}"
        return ""

    def _migrate(self, own: Any, solution: Solution) -> int:
        """Adopt the plan: first the storage, then the state, tensor by tensor, those that shrink first."""
        storage = solution.stored(self.session.storage)
        self.session.store(storage)
        own.release()
        gc.collect()  # graphs hold tensors in reference cycles
        return migrate_state(storage, self.session.table(), within_budget=True)

    def _note(self, text: str) -> None:
        self.history.append(f"step {self.steps}: {text}")
        log.info("%s", self.history[-1])

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the configurator's state as plain numbers, texts and tensors."""
        sampler = self.sampler.state_dict() if self.sampler is not None else self._resumed
        profile = self.profile.to_dict() if self.profile is not None else None
        return {
            "steps": self.steps,
            "due": self.due,
            "sampler": sampler,
            "history": list(self.history),
            "profile": profile,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, and solve the saved profile again under the budgets in force."""
        self.steps, self.due, self.history = state["steps"], state["due"], list(state["history"])
        self.sampler, self._resumed = None, state["sampler"]
        budget = self.session.request.budget
        if state["profile"] is not None and budget is not None:
            self.profile = Profile.from_dict(state["profile"])
            try:
                self.solution = self.solve(self.profile, budget, self.planner.time_budget)
            except BudgetError:
                self.solution = None


def configurator_of(optimizer: Any) -> Configurator | None:
    """Return the optimizer's configurator; None if it follows a named plan, or is unknown to baoc."""
    session = known_session(optimizer)
    found = session.configurator if session is not None else None
    return found if isinstance(found, Configurator) else None


def start_configurator(session: Session) -> None:
    """Give the optimizer a configurator if it has a budget rather than a named plan, and none yet."""
    keep_in_checkpoints(session)
    if session.configurator is None and session.request.budget is not None:
        session.configurator = Configurator(session, session.request.planner)
        if session.request.planner.warmup_steps or session.request.budget.is_deferred:
            warn_of_others(session.table())
        if session.resumed is not None:
            session.configurator.load_state_dict(session.resumed)
            session.resumed = None
