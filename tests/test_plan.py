"""Plans survive JSON; whatever is not a plan is refused by a PlanError that names the field."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import baoc_compile
from baoc_compile import Plan, PlanError, StateTensor
from baoc_compile.kernels.codecs.catalogue import CODECS, FORMATS
from baoc_compile.state.plan import ParameterPlan, as_plan

slots = st.text(min_size=1, max_size=12)
codecs = st.sampled_from(sorted(CODECS))
entries = st.builds(
    ParameterPlan,
    name=st.text(max_size=20),
    shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    slots=st.dictionaries(slots, codecs, max_size=3),
)
plans = st.builds(
    Plan,
    default=st.dictionaries(slots | st.just("*"), codecs | st.sampled_from(sorted(FORMATS)), max_size=3),
    parameters=st.dictionaries(st.integers(0, 10**6), entries, max_size=4),
    seed=st.integers(-(2**63), 2**63),
    memory_budget=st.sampled_from(["", "28%", "2.2 B/param"]),
)


@given(plan=plans)
def test_json_round_trip(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert as_plan(plan.to_json()) == plan
    assert as_plan(plan) is plan


@given(plan=plans)
def test_a_plan_is_frozen(plan):
    with pytest.raises(AttributeError):
        plan.seed = 1


GOOD = {
    "format": "baoc-plan",
    "version": 5,
    "seed": 0,
    "memory_budget": "28%",
    "certificate": "optimal",
    "default": {"*": "8bit"},
    "parameters": [{"index": 0, "name": "w", "shape": [3, 4], "slots": {"exp_avg": "bf16"}, "block": "head"}],
}

#: The same as earlier versions wrote it.
GOOD_4 = {
    **GOOD,
    "version": 4,
    "update_scale": 1.0,
    "parameters": [
        {"index": 0, "name": "w", "shape": [3, 4], "slots": {"exp_avg": "bf16"}, "update_scale": 1.0, "block": "head"}
    ],
}
GOOD_3 = {
    "format": "baoc-plan",
    "version": 3,
    "seed": 0,
    "memory_budget": "28%",
    "gain": 1.0,
    "certificate": "optimal",
    "default": {"*": "8bit"},
    "parameters": [{"index": 0, "name": "w", "shape": [3, 4], "slots": {"exp_avg": "bf16"}, "gain": 1.0}],
}


def test_plans_of_earlier_versions_are_read():
    oldest, old, new = (Plan.from_json(json.dumps(good)) for good in (GOOD_3, GOOD_4, GOOD))
    assert old == new
    assert oldest.parameters[0].block == ""
    assert dataclasses.replace(oldest, parameters={}) == dataclasses.replace(new, parameters={})
    with pytest.raises(PlanError, match="gain"):
        Plan.from_json(json.dumps({**GOOD_3, "version": 5}))


@pytest.mark.parametrize("good, scale", [(GOOD_3, "gain"), (GOOD_4, "update_scale")])
def test_factors_on_updates_are_refused(good, scale):
    with pytest.raises(PlanError, match=rf"^{scale}: 0\.5 .*learning rate"):
        Plan.from_json(json.dumps({**good, scale: 0.5}))
    with pytest.raises(PlanError, match=rf"parameters\[0\]\.{scale}: 0\.5"):
        Plan.from_json(json.dumps({**good, "parameters": [{**good["parameters"][0], scale: 0.5}]}))


BAD_TOP = {
    "format": ["torch-plan", 3, None],
    "version": [0, 2, 6, "4", None, [4], True],
    "certificate": [1, None, ["optimal"]],
    "seed": ["x", 1.5, None, [0], True],
    "memory_budget": [5, None, ["28%"]],
    "default": ["bf16", None, [], {"*": "bf17"}, {"*": 3}, {"*": None}, {"*": ["bf16"]}, {"*": {}}],
    "parameters": [None, 3, {}, [3], ["w"], [None]],
}
BAD_ENTRY = {
    "index": ["x", None, 1.5, -1, [0], True],
    "name": [3, None, ["w"]],
    "shape": ["12", 3, None, [1.5], ["a"], [-1], [[3]], [None]],
    "slots": [None, 3, [], "bf16", {"exp_avg": "bf17"}, {"exp_avg": 3}, {"exp_avg": ["bf16"]}, {"exp_avg": None}],
}


def cases(bad):
    return [pytest.param(field, value, id=f"{field}={json.dumps(value)}") for field in bad for value in bad[field]]


@pytest.mark.parametrize("field, value", cases(BAD_TOP))
def test_a_malformed_field_is_named(field, value):
    with pytest.raises(PlanError, match=field):
        Plan.from_json(json.dumps({**GOOD, field: value}))


@pytest.mark.parametrize("field, value", cases(BAD_ENTRY))
def test_a_malformed_field_of_a_parameter_is_named(field, value):
    data = copy.deepcopy(GOOD)
    data["parameters"][0][field] = value
    with pytest.raises(PlanError, match=field):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field):
    with pytest.raises(PlanError, match=field):
        Plan.from_json(json.dumps({key: value for key, value in GOOD.items() if key != field}))


@pytest.mark.parametrize("field", GOOD["parameters"][0])
def test_a_missing_field_of_a_parameter_is_named(field):
    data = copy.deepcopy(GOOD)
    del data["parameters"][0][field]
    with pytest.raises(PlanError, match=field):
        Plan.from_json(json.dumps(data))


def test_the_good_plan_is_good_and_unknown_fields_and_repeated_parameters_are_refused():
    assert Plan.from_json(json.dumps(GOOD)).parameters[0] == ParameterPlan("w", (3, 4), {"exp_avg": "bf16"}, "head")
    with pytest.raises(PlanError, match="colour"):
        Plan.from_json(json.dumps({**GOOD, "colour": 1}))
    with pytest.raises(PlanError, match="index"):
        Plan.from_json(json.dumps({**GOOD, "parameters": GOOD["parameters"] * 2}))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"baoc-plan"', "{}"])
def test_what_is_not_a_plan_is_refused(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


@pytest.mark.parametrize("formats", ["bf17", "", {"*": "bf17"}, {"exp_avg": 3}, {"exp_avg": None}, {3: "bf16"}])
def test_uniform_refuses_unknown_formats(formats):
    with pytest.raises(PlanError):
        Plan.uniform(formats)


@pytest.mark.parametrize("value", [3, None, ["bf16"], object()])
def test_as_plan_refuses_other_types(value):
    with pytest.raises(PlanError, match="plan"):
        as_plan(value)


def prepared(plan, shape=(64, 64)):
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = torch.optim.AdamW([parameter])
    baoc_compile.prepare(optimizer, plan=plan)
    return optimizer.state[parameter]


def stored_as(value: torch.Tensor) -> str:
    return value.codec.name if isinstance(value, StateTensor) else str(value.dtype)


@pytest.mark.parametrize(
    "plan, exp_avg, exp_avg_sq",
    [
        (Plan.uniform("fp32"), "torch.float32", "torch.float32"),
        (Plan.uniform("bf16"), "bf16", "bf16"),
        (Plan.uniform("8bit"), "e2m5", "e3m5"),
        (Plan.uniform({"exp_avg": "8bit", "*": "bf16"}), "e2m5", "bf16"),
        (Plan.uniform({"exp_avg_sq": "e3m5"}), "torch.float32", "e3m5"),
        ("8bit", "e2m5", "e3m5"),
        (Plan.uniform("8bit").to_json(), "e2m5", "e3m5"),
        (Plan(parameters={0: ParameterPlan("w", (64, 64), {"exp_avg": "bf16"})}), "bf16", "torch.float32"),
    ],
)
def test_prepare_follows_the_plan(plan, exp_avg, exp_avg_sq):
    state = prepared(plan)
    assert (stored_as(state["exp_avg"]), stored_as(state["exp_avg_sq"])) == (exp_avg, exp_avg_sq)


def test_small_tensors_stay_in_full_precision_unless_named():
    assert stored_as(prepared("8bit", (4095,))["exp_avg"]) == "torch.float32"
    assert stored_as(prepared("8bit", (4096,))["exp_avg"]) == "e2m5"
    named = Plan(parameters={0: ParameterPlan("w", (10,), {"exp_avg": "e2m5"})})
    assert stored_as(prepared(named, (10,))["exp_avg"]) == "e2m5"


def test_a_plan_for_another_model_or_a_codec_that_cannot_hold_the_slot_is_refused():
    with pytest.raises(PlanError, match=r"\(64, 65\)"):
        prepared(Plan(parameters={0: ParameterPlan("w", (64, 65), {"exp_avg": "bf16"})}))
    with pytest.raises(PlanError, match="exp_avg"):
        prepared(Plan(parameters={0: ParameterPlan("w", (64, 64), {"exp_avg": "e3m5"})}))
