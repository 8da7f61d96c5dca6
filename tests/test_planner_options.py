"""The options of planning: what is refused, and when plans are due."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import SOON, Small, Training

import baoc_compile
from baoc_compile import OptionError
from baoc_compile.state.planner_options import PlannerOptions

BAD = [
    ({"warmup_steps": -1}, "warmup_steps"),
    ({"warmup_steps": 2.5}, "warmup_steps"),
    ({"warmup_steps": 5, "sample_steps": 5}, "warmup_steps"),
    ({"sample_steps": 1}, "sample_steps"),
    ({"replan_every": 3}, "replan_every"),
    ({"replan_at": 7}, "replan_at"),
    ({"replan_at": [0]}, "replan_at"),
    ({"sample_bytes": 10}, "sample_bytes"),
    ({"risk": "guess"}, "risk"),
    ({"hysteresis": 1.0}, "hysteresis"),
    ({"allow": "dropped"}, "allow"),
    ({"allow": {"dropping"}}, "allow"),
    ({"allow": [3]}, "allow"),
    ({"allow": True}, "allow"),
    ({"time_budget": "fast"}, "time_budget"),
    ({"time_budget": 3}, "time_budget"),
    ({"warmup": 3}, "warmup"),
]


@pytest.mark.parametrize("options, name", BAD, ids=lambda v: str(v))
def test_wrong_options_are_named(options, name):
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(OptionError, match=name):
        baoc_compile.prepare(optimizer, memory_budget="20%", **options)
    assert not optimizer.state


def test_wrong_groupings_are_named():
    training = Training(memory_budget="20%", blocks={"embedding.weight": "a"}, **SOON)
    with pytest.raises(OptionError, match="blocks"):
        training.step(6)


@given(warmup=st.integers(0, 40), sample=st.integers(3, 12), every=st.integers(0, 30), step=st.integers(0, 200))
def test_plans_are_never_due_before_they_can_be_sampled(warmup, sample, every, step):
    try:
        planning = PlannerOptions.parse({"warmup_steps": warmup, "sample_steps": sample, "replan_every": every})
    except OptionError:
        assert 0 < warmup <= sample or 0 < every <= sample
        return
    due = planning.next_after(step)
    assert due is None or due > step + sample
    if warmup == 0 or (step >= warmup and not every):
        assert due is None
    if every and warmup:
        assert due is not None and due <= max(step, warmup) + 2 * every + sample
