"""Reports, planning ahead of a run, and budgets that are resolved to the device."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import SOON, Small, Training

import baoc_compile
from baoc_compile import BudgetError, OptionError, Profile, StateError, state_bytes
from baoc_compile.core.budget import MemoryBudget, TimeBudget
from baoc_compile.passes.plan.solve_plan import solve_profile, uniform_points
from baoc_compile.report import COLUMNS
from baoc_compile.runtime import device_memory


@pytest.fixture(scope="module")
def planned() -> Training:
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    return training


def test_a_report_says_what_was_decided_for_every_block(planned):
    report = baoc_compile.report(planned.optimizer)
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in report.rows()}
    assert set(rows) == {b.name for b in report.solution.profile.blocks}
    assert rows["head 200x48"]["elements"] == f"{200 * 48:,}"
    total = sum(int(row["bytes"].replace(",", "")) for row in rows.values())
    assert total + report.solution.profile.fixed_bytes == state_bytes(planned.optimizer) == report.state_bytes
    text = str(report)
    assert f"{report.state_bytes:,} of at most {report.solution.budget_bytes:,} bytes" in text
    assert "optimal" in text
    assert "slots migrated" in text
    for name in ("head 200x48", "embedding 200x48"):
        parameter = {"head 200x48": "head.weight", "embedding 200x48": "embedding.weight"}[name]
        shown = dict(item.split("=") for item in rows[name]["configuration"].split())
        assert shown == planned.plan()[parameter]


def test_a_report_in_a_terminal_and_as_a_plot(planned, tmp_path):
    from rich.console import Console

    report = baoc_compile.report(planned.optimizer)
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(report)
    assert "head 200x48" in console.export_text()
    report.plot(tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_before_the_first_plan():
    training = Training(memory_budget="20%", **SOON)
    training.step(1)
    text = str(baoc_compile.report(training.optimizer))
    assert "nothing was sampled" in text
    assert f"now {state_bytes(training.optimizer):,}" in text


def test_no_report_of_what_plans_nothing():
    with pytest.raises(StateError, match="memory_budget"):
        baoc_compile.report(Training(plan="8bit").optimizer)
    with pytest.raises(StateError, match="memory_budget"):
        baoc_compile.report(torch.optim.AdamW(Small().parameters()))


# ahead of a run


@pytest.fixture(scope="module")
def profiled() -> Profile:
    training = Training(plan="fp32")
    training.step(2)
    return baoc_compile.profile(training.optimizer, training.step, sample_steps=4)


def test_profiling_changes_nothing():
    plain, watched = Training(plan="8bit"), Training(plan="8bit")
    plain.step(8)
    watched.step(3)
    baoc_compile.profile(watched.optimizer, watched.step, sample_steps=4)
    assert watched.steps == plain.steps
    assert watched.bits() == plain.bits()
    assert watched.plan() == plain.plan()


@pytest.mark.parametrize("budget", ["60%", "20%", "5%", "1 B/param"])
def test_a_solved_plan_fits_and_can_be_prepared(profiled, budget):
    plan = baoc_compile.solve(profiled, budget, seed=3)
    fixed = profiled.fixed_bytes
    limit = MemoryBudget.parse(budget).in_bytes(profiled.full_bytes - fixed, profiled.numel, fixed)
    solution = solve_profile(profiled, MemoryBudget.parse(budget))
    assert plan.certificate == solution.allocation.certificate
    # the solver looks at so many labels at most, and which these are depends on the measured times
    assert solution.allocation.risk <= 1.05 * solution.allocation.lower_bound
    uniform = [risk for _, size, risk in uniform_points(profiled) if size <= limit]
    assert solution.allocation.risk <= min(uniform, default=math.inf)
    training = Training(plan=plan.to_json())
    training.step(2)
    assert state_bytes(training.optimizer) <= limit
    assert training.session.plan().seed == 3
    assert training.configurator is None


def drops(candidates) -> bool:
    return any("dropped" in c.codecs.values() for c in candidates)


def test_momentum_is_dropped_only_where_nothing_else_fits(profiled):
    of_block = [min(c.size_bytes for c in cs if not drops([c])) for cs in profiled.candidates]
    least = profiled.fixed_bytes + sum(of_block)
    assert not drops(solve_profile(profiled, MemoryBudget.parse(least)).chosen)
    assert drops(solve_profile(profiled, MemoryBudget.parse(least - 1)).chosen)
    start = Training(memory_budget=least - 1, warmup_steps=0)
    start.step(1)
    assert any("dropped" in slots.values() for slots in start.plan().values())


def test_dropping_is_allowed_on_request():
    """What is allowed is judged by its risk alone."""
    training = Training(plan="fp32")
    training.step(2)
    profile = baoc_compile.profile(training.optimizer, training.step, sample_steps=4, allow={"dropped"})
    assert any(drops([c]) and not c.gate for cs in profile.candidates for c in cs)


def test_more_memory_is_less_risk(profiled):
    risks = [solve_profile(profiled, MemoryBudget.parse(f"{n}%")).allocation.risk for n in (3, 5, 10, 20, 40, 80)]
    assert risks == sorted(risks, reverse=True)
    assert risks[0] > risks[-1]


def test_a_budget_that_cannot_be_met_names_one_that_can(profiled):
    with pytest.raises(BudgetError, match="memory_budget") as refused:
        baoc_compile.solve(profiled, 40)
    smallest = int(str(refused.value).split()[-1])
    assert baoc_compile.solve(profiled, smallest).certificate == "optimal"
    with pytest.raises(BudgetError):
        baoc_compile.solve(profiled, smallest - 1)


def test_a_time_budget_on_top(profiled):
    free = baoc_compile.solve(profiled, "20%", time_budget="100 s")
    assert free.parameters == baoc_compile.solve(profiled, "20%").parameters


@pytest.mark.parametrize("launches", [1, 100])
@pytest.mark.parametrize("memory", ["20%", "60%"])
def test_a_time_budget_that_cannot_be_met_names_one_that_can(profiled, memory, launches):
    """Whatever it is, launches included: what is left for the blocks alone may even be negative.

    With dear launches, the fastest candidates of all blocks together are not the fastest plan.
    """
    profiled = replace(
        profiled,
        candidates=tuple(
            tuple(replace(c, launch_ns=c.launch_ns * launches) for c in candidates)
            for candidates in profiled.candidates
        ),
    )
    with pytest.raises(BudgetError, match="time_budget: 1 ns") as refused:
        baoc_compile.solve(profiled, memory, time_budget="1 ns")
    assert "-" not in str(refused.value)
    least = int(str(refused.value).split()[-2])
    assert baoc_compile.solve(profiled, memory, time_budget=f"{least} ns").parameters
    for tight in (0.999 * least, 0.9 * least):
        with pytest.raises(BudgetError, match=f"raise it to {least} ns"):
            baoc_compile.solve(profiled, memory, time_budget=f"{tight} ns")


def test_a_profile_can_be_kept(profiled):
    loaded = Profile.from_dict(json.loads(json.dumps(profiled.to_dict())))
    assert loaded.blocks == profiled.blocks
    assert loaded.candidates == profiled.candidates
    assert baoc_compile.solve(loaded, "20%") == baoc_compile.solve(profiled, "20%")


def test_wrong_calls_are_named(profiled):
    with pytest.raises(OptionError, match="fit"):
        baoc_compile.solve(profiled, "fit")
    training = Training(plan="fp32")
    with pytest.raises(StateError, match="profile"):
        baoc_compile.profile(training.optimizer, training.step)
    training.step(1)
    with pytest.raises(OptionError, match="sample_steps"):
        baoc_compile.profile(training.optimizer, training.step, sample_steps=1)
    with pytest.raises(OptionError, match="train_step"):
        baoc_compile.profile(training.optimizer, None)
    with pytest.raises(StateError, match="train_step"):
        baoc_compile.profile(training.optimizer, lambda: None)
    training.step(1)
    assert training.configurator is None


# time budgets as they are written


@pytest.mark.parametrize(
    "text, ns", [("2 ms", 2e6), ("800us", 8e5), ("1.5 s", 1.5e9), ("5 ns", 5.0), ("120%", 1.2e6), ("80 µs", 8e4)]
)
def test_a_time_budget_in_ns(text, ns):
    assert TimeBudget.parse(text).in_ns(full_ns=1e6) == pytest.approx(ns)


@given(text=st.text(alphabet="0123456789.eE+- %munsµ", max_size=10))
def test_any_text_is_a_time_or_an_option_error(text):
    try:
        assert TimeBudget.parse(text).in_ns(1e6) > 0
    except OptionError as error:
        assert "time_budget" in str(error)


# what the device has left


def test_state_fits_what_is_left(monkeypatch):
    full = state_bytes(Training(plan="fp32").optimizer)
    left = full // 3

    def host(device):
        return 100 * full, left + 5 * full + full // 2, full // 2  # total, free (5 % is the margin), peak beyond now

    monkeypatch.setattr(device_memory, "_on_host", host)
    training = Training(memory_budget="fit", **SOON)
    assert not training.optimizer.state
    training.step(1)
    assert training.session.request.budget.in_bytes(0, 0) == left
    assert 0 < state_bytes(training.optimizer) <= left
    training.step(6)
    assert state_bytes(training.optimizer) <= left
    assert training.configurator.solution.budget_bytes == left


def test_nothing_left_is_an_error(monkeypatch):
    monkeypatch.setattr(device_memory, "_on_host", lambda device: (1000, 100, 80))
    training = Training(memory_budget="fit")
    with pytest.raises(Exception, match=r"fit.*leaves nothing"):
        training.step(1)


def test_this_host_says_what_it_has_left():
    left = device_memory.bytes_left(torch.device("cpu"), 0)
    assert 0 < left < 1 << 50
    assert device_memory.bytes_left(torch.device("cpu"), 10**9) > left
    with pytest.raises(OptionError, match="bytes"):
        device_memory.bytes_left(torch.device("meta"), 0)
