"""The configurator: it samples, solves and migrates while training runs, and never leaves its budget."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import decoded
from small_training import SOON, Training

import baoc_compile
from baoc_compile import BudgetError, StateTensor, state_bytes
from baoc_compile.core.budget import MemoryBudget
from baoc_compile.passes.migrate import migrate_state as migration
from baoc_compile.runtime import step_reader
from baoc_compile.state.entries import bytes_of


def test_a_plan_by_block_follows_the_warm_up():
    training = Training(memory_budget="20%", **SOON)
    uniform = training.plan()
    training.step(5)
    assert training.plan() == uniform
    assert not training.configurator.solution
    training.step(1)
    solution = training.configurator.solution
    assert training.plan() != uniform
    assert state_bytes(training.optimizer) == solution.allocation.size_bytes <= solution.budget_bytes
    assert solution.allocation.is_exact
    assert len({tuple(slots.items()) for slots in training.plan().values()}) > 1
    before = [p.detach().clone() for p in training.model.parameters()]
    training.step(2)
    assert all(not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
    assert any("slots migrated" in line for line in training.configurator.history)


def test_decisions_sit_on_the_nodes_of_the_rewritten_graph():
    training = Training(memory_budget="20%", **SOON)
    training.step(8)
    graph = baoc_compile.inspect(training.optimizer).graphs["rewritten"].graph
    launches = [n.meta["baoc"] for n in graph.nodes if "baoc" in n.meta and not n.meta["baoc"].graph.folds]
    names = [name for launch in launches for name in launch.parameters]
    assert sorted(names) == sorted(training.plan())
    for launch in launches:
        chosen = {key: codec.name for key, codec in launch.graph.configuration.items()}
        assert all(training.plan()[name] == chosen for name in launch.parameters)
    blocks = {b.name for b in training.configurator.solution.profile.blocks}
    assert {block for launch in launches for block in launch.blocks} == blocks
    assert "block 'head 200x48'" in str(baoc_compile.inspect(training.optimizer))


OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "RMSprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr, momentum=0.9),
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
}


@settings(max_examples=3)
@given(share=st.floats(0.03, 0.9), width=st.sampled_from([32, 48]), kind=st.sampled_from(sorted(OPTIMIZERS)))
def test_state_stays_within_its_budget_at_every_moment(share, width, kind):
    """Also while it migrates, but for one chunk: what is stored then, and what is being made, is counted together."""
    torch._dynamo.reset()
    full = state_bytes(Training(OPTIMIZERS[kind], width, plan="fp32").optimizer)
    limit, chunk = int(share * full), 1024
    try:
        training = Training(OPTIMIZERS[kind], width, memory_budget=limit, replan_every=6, hysteresis=0.0, **SOON)
    except BudgetError as error:
        accepted = int(str(error).split()[-1])
        assert limit < accepted < full
        Training(OPTIMIZERS[kind], width, memory_budget=accepted, **SOON)
        return
    used: list[int] = []
    stored, moved_away = migration.stored, migration.moved_away
    away: list[torch.Tensor] = []

    def watched_stored(parameter, value, *arguments):
        new = stored(parameter, value, *arguments)
        absent = bytes_of(value) if any(value is a for a in away) else 0
        used.append(state_bytes(training.optimizer) - absent + bytes_of(new))
        return new

    def watched_move(value):
        away.append(moved_away(value))
        return away[-1]

    with (
        mock.patch.object(migration, "stored", watched_stored),
        mock.patch.object(migration, "moved_away", watched_move),
        mock.patch.object(migration, "CHUNK_BYTES", chunk),
    ):
        for _ in range(13):
            training.step()
            assert state_bytes(training.optimizer) <= limit
    assert used or all("kept the plan" in line for line in training.configurator.history)
    assert max(used, default=0) <= limit + chunk


def test_what_is_migrated_is_freed_before_what_comes_next_is_made():
    training = Training(memory_budget="20%", **SOON)
    training.step(5)

    def parts():
        values = [v for e in training.optimizer.state.values() for v in e.values()]
        return [t for v in values for t in (v.parts.values() if isinstance(v, StateTensor) else [v])]

    old = [weakref.ref(part) for part in parts()]
    alive: list[int] = []
    stored = migration.stored

    def watched(*arguments):
        held = {id(part) for part in parts()}
        alive.append(sum(r() is not None and id(r()) not in held for r in old))
        return stored(*arguments)

    with mock.patch.object(migration, "stored", watched):
        training.step(1)
    assert len(alive) > 3
    assert max(alive) == 0, "parts that the optimizer no longer has are gone while the next slot migrates"


def test_values_are_inherited():
    """Migration decodes and encodes: what a slot holds before and after agrees within both codecs' errors."""
    training = Training(memory_budget="20%", **SOON)
    training.step(5)
    seen = {}
    adopt = baoc_compile.runtime.configurator.migrate_state

    def watched(session, table, **options):
        def values():
            return {
                (i, k): v.decode().clone() if isinstance(v, StateTensor) else v.clone()
                for i in range(len(table.parameters))
                for k, v in table.state(i).items()
            }

        before = values()
        changed = adopt(session, table, **options)
        seen.update(changed=changed, before=before, after=values())
        return changed

    with mock.patch.object(baoc_compile.runtime.configurator, "migrate_state", watched):
        training.step(1)
    assert seen["changed"]
    dropped = {
        (i, k)
        for i, stored in training.session.storage.parameters.items()
        for k, codec in stored.codecs.items()
        if codec.mechanism != "rounding"
    }
    for key, old in seen["before"].items():
        new = seen["after"][key]
        if key not in dropped and old.ndim:
            assert (new - old).norm() <= 0.35 * old.norm(), key
    assert any(not torch.equal(old, seen["after"][key]) for key, old in seen["before"].items())


def test_a_new_plan_needs_no_new_reading_of_the_step():
    """A migration binds the step to its new state: the step is not recorded again, and torch compiles nothing."""
    training = Training(memory_budget="20%", replan_every=6, hysteresis=0.0, width=32, **SOON)
    training.step(2)
    own, budgets = training.session.own, ["20%", "40%"]
    readings, frames = list(own.readings), torch._dynamo.utils.counters["frames"]["total"]
    bound_before: list[Any] = []
    with mock.patch.object(step_reader, "read_step", side_effect=AssertionError("it was read again")):
        for k in range(6):
            budget = MemoryBudget.parse(budgets[k % 2])
            training.session.request = replace(training.session.request, memory_budget=budget)
            training.step(4 if k == 0 else 5)
            assert len(training.configurator.history) == k + 1
            assert "slots migrated" in training.configurator.history[-1]
            assert own.bound is None, "what was bound to the old state is gone"
            training.step(1)
            assert own.bound is not None and not any(own.bound is old for old in bound_before)
            assert own.bound.reading in readings
            bound_before.append(own.bound)
    assert state_bytes(training.optimizer) <= training.configurator.solution.budget_bytes
    assert own.readings == readings and not own.refused
    assert torch._dynamo.utils.counters["frames"]["total"] == frames


def test_the_same_seed_gives_the_same_plan_and_bits():
    runs = [Training(memory_budget="12%", **SOON) for _ in range(2)]
    for run in runs:
        run.step(8)
    assert runs[0].plan() == runs[1].plan()
    assert runs[0].bits() == runs[1].bits()


@pytest.mark.parametrize("size", [1 << 18, 1 << 20])
def test_samples_stay_within_their_buffer(size):
    training = Training(memory_budget="20%", sample_bytes=size, **SOON)
    training.step(5)
    assert training.configurator.is_sampling
    assert 0 < training.configurator.sampler.nbytes <= size
    training.step(1)
    assert training.configurator.solution.profile.sampled_bytes <= size
    assert training.configurator.sampler is None, "nothing is kept afterwards"


def test_blocks_without_room_for_samples_are_named():
    training = Training(memory_budget="20%", sample_bytes=1 << 16, warmup_steps=40, sample_steps=36)
    training.step(40)
    assert "sample_bytes" in training.configurator.history[0]
    assert training.configurator.solution is not None


def test_a_plan_that_is_hardly_better_is_not_taken():
    training = Training(memory_budget="20%", replan_every=6, **SOON)
    training.step(6)
    plan = training.plan()
    training.configurator.planner = replace(training.configurator.planner, hysteresis=1e6)  # of risks of any sign
    training.step(6)
    assert "kept the plan" in training.configurator.history[-1]
    assert training.plan() == plan


def test_who_names_a_plan_is_left_alone():
    assert Training(plan="8bit").configurator is None
    training = Training(memory_budget="28%", warmup_steps=0)
    uniform = training.plan()
    training.step(3)
    assert training.configurator.due is None
    assert training.plan() == uniform


def test_a_proxy_risk_and_blocks_of_ones_own():
    def halves(name, parameter):
        return "vectors" if parameter.ndim < 2 else "matrices"

    training = Training(memory_budget="20%", risk="proxy", blocks=halves, **SOON)
    training.step(6)
    blocks = training.configurator.solution.profile.blocks
    assert {b.role for b in blocks} == {"vectors", "matrices"}
    assert sorted(i for b in blocks for i in b.parameters) == list(range(len(list(training.model.parameters()))))


def test_parameters_without_gradients_keep_what_they_have():
    """State is made for all parameters that require gradients, and is planned with the others; no step changes it."""
    training = Training(memory_budget="20%", **SOON)
    idle, frozen = torch.nn.Parameter(torch.randn(80, 64)), torch.nn.Parameter(torch.randn(80, 64), False)
    before = [p.detach().clone() for p in (idle, frozen)]
    training.optimizer.add_param_group({"params": [idle, frozen]})
    training.step(7)
    assert training.configurator.solution is not None
    assert state_bytes(training.optimizer) <= training.configurator.solution.budget_bytes
    assert not training.optimizer.state.get(frozen)
    state = training.optimizer.state[idle]
    assert sorted(state) == ["exp_avg", "exp_avg_sq", "step"]
    assert all(not decoded(value).any() for value in state.values()), "it begins at 0, and stays there"
    assert all(map(torch.equal, before, (idle, frozen)))


def test_a_time_budget_changes_the_plan():
    slow, fast = (Training(memory_budget="60%", time_budget=t, **SOON) for t in ("1000%", "1 ns"))
    slow.step(6)
    assert slow.configurator.solution.time_ns <= slow.configurator.solution.budget_ns
    fast.step(6)
    assert "time_budget" in fast.configurator.history[-1]
    assert "kept the plan" in fast.configurator.history[-1]


def test_planning_keeps_nothing_alive():
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    model = weakref.ref(training.model)
    del training
    torch._dynamo.reset()
    gc.collect()
    assert model() is None
