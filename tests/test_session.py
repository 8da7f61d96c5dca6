"""A session goes with its optimizer: freed with it, copied and pickled with it, and right whatever happens to its groups."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from optimizers import Plain
from small_training import SOON, Small, Training
from torch import fx, nn

import baoc_compile
from baoc_compile import OptionError, Plan, PlanError, StateError, StateTensor, state_bytes
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.launch.fused_update import BoundLaunch, Launch
from baoc_compile.passes.recorder.recording import Recording
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.runtime.own_step import OwnStep
from baoc_compile.runtime.session import Session, known_session, session_of

SHAPES = ((96, 64), (70, 64), (65, 64))


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.full(shape, 0.5)) for shape in SHAPES]


def stepped(optimizer: Any, steps: int = 2, **options: Any) -> Any:
    """The compiled step, called a few times."""
    step = torch.compile(optimizer.step, backend="baoc", options=options or None)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        step()
    return step


def codecs(optimizer: Any) -> list[dict[str, str]]:
    storage = session_of(optimizer).storage
    return [
        {key: codec.name for key, codec in storage.of(i).codecs.items()}
        for i in range(sum(len(group["params"]) for group in optimizer.param_groups))
    ]


# lifetime


@pytest.mark.parametrize("make", [torch.optim.AdamW, Plain], ids=["torch", "plain"])
@pytest.mark.parametrize("prepared", [True, False])
def test_an_optimizer_is_freed_when_its_user_drops_it(make, prepared):
    """The optimizer at once; its tensors with the graphs that hold them, which are cycles. Nothing that torch keeps, until
    `torch._dynamo.reset`, holds a step."""
    optimizer = make(parameters())
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    step = stepped(optimizer, plan="8bit")
    first = optimizer.param_groups[0]["params"][0]
    alive = {
        "optimizer": weakref.ref(optimizer),
        "session": weakref.ref(session_of(optimizer)),
        "parameter": weakref.ref(first),
        "state": weakref.ref(next(v for v in optimizer.state[first].values() if v.ndim)),
    }
    gc.collect()
    gc.disable()
    try:
        del optimizer, step, first
        assert alive["optimizer"]() is None
    finally:
        gc.enable()
    gc.collect()
    assert [name for name, reference in alive.items() if reference() is not None] == []


OURS = (Session, OwnStep, BoundStep, Recording, ParameterTable, Launch, BoundLaunch, StateTensor, fx.GraphModule)


def test_many_optimizers_leave_nothing_behind():
    counted = []
    for k in range(6):
        stepped(torch.optim.SGD(parameters(), momentum=0.9), plan="8bit")
        torch._dynamo.reset()
        gc.collect()
        if k >= 3:
            found = [
                type(o).__name__ for o in gc.get_objects() if type(o) in OURS or type(o) in (nn.Parameter, torch.Tensor)
            ]
            counted.append(Counter(found))
    assert counted[0] == counted[1] == counted[2]


def test_a_step_that_outlives_its_optimizer_says_so():
    optimizer = torch.optim.AdamW(parameters())
    stepped(optimizer, plan="8bit")
    session, stepped_ones = session_of(optimizer), optimizer.param_groups[0]["params"]
    key, own = session.key, session.own
    handles = [weakref.ref(part) for part in (session, own, own.bound, *own.readings, *own.bound.bound.launches)]
    before = [p.detach().clone() for p in stepped_ones]
    del optimizer, session, own
    gc.collect()
    assert len(handles) >= 5 and not any(handle() for handle in handles)
    with pytest.raises(StateError, match="the optimizer of this step is gone"):
        torch.ops.baoc.step(stepped_ones, key)  # what a compiled function with `fullgraph=True` calls
    assert all(map(torch.equal, before, stepped_ones))


# copies


def copies() -> list[Any]:
    return [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda o: pickle.loads(pickle.dumps(o)), id="pickle"),
        pytest.param(lambda o: copy.deepcopy(pickle.loads(pickle.dumps(o))), id="copy of a pickle"),
    ]


@pytest.mark.parametrize("copied", copies())
@pytest.mark.parametrize("make", [torch.optim.AdamW, Plain], ids=["torch", "plain"])
@pytest.mark.parametrize("plan", ["fp32", "bf16"])
def test_a_copy_goes_on_with_the_same_plan_and_bits(copied, make, plan):
    optimizer = make(parameters())
    baoc_compile.prepare(optimizer, plan=plan, seed=11)
    stepped(optimizer)
    other = copied(optimizer)
    assert known_session(other) is not known_session(optimizer)
    assert known_session(other).plan() == known_session(optimizer).plan()
    assert known_session(other).plan().default == {"*": plan}
    stepped(optimizer)
    stepped(other)
    assert codecs(other) == codecs(optimizer)
    for a, b in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert a is not b and torch.equal(a, b)


def test_model_and_optimizer_copied_together_in_mid_run_end_alike():
    training = Training(memory_budget="20%", **SOON)
    training.step(3)
    other = Training(memory_budget="20%", **SOON)
    other.model, other.optimizer = copy.deepcopy((training.model, training.optimizer))
    other.compiled = torch.compile(other.optimizer.step, backend="baoc")
    other.steps = training.steps
    for one in (training, other):
        one.step(4)
    assert other.configurator.steps == training.configurator.steps
    assert any("slots migrated" in line for line in other.configurator.history)
    assert [dict(e.slots) for e in other.session.plan().parameters.values()] == [*training.plan().values()]
    assert other.bits() == training.bits()


def test_a_shallow_copy_has_a_session_of_its_own():
    optimizer = torch.optim.AdamW(parameters())
    baoc_compile.prepare(optimizer, plan="bf16")
    other = copy.copy(optimizer)
    assert session_of(other) is not session_of(optimizer)
    assert session_of(other).optimizer() is other and session_of(optimizer).optimizer() is optimizer
    assert codecs(other) == codecs(optimizer)


def test_a_grouping_that_cannot_be_pickled_is_left_out_of_pickles(caplog):
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    baoc_compile.prepare(optimizer, model=model, memory_budget="30%", blocks=lambda name, _: name)
    other = pickle.loads(pickle.dumps(optimizer))
    assert session_of(other).request.planner.blocks is None
    assert "blocks" in caplog.text


# what the user asked for


@pytest.mark.parametrize("plan", ["8bit", Plan.uniform("8bit", seed=5)], ids=["format", "plan"])
def test_a_seed_counts_beside_a_named_plan(plan):
    seeds = {}
    for seed in (None, 7):
        optimizer = torch.optim.AdamW(parameters())
        baoc_compile.prepare(optimizer, plan=plan, seed=seed)
        seeds[seed] = session_of(optimizer).plan().seed
    assert seeds == {None: 5 if isinstance(plan, Plan) else 0, 7: 7}


def test_two_different_wishes_are_refused():
    optimizer = torch.optim.AdamW(parameters())
    baoc_compile.prepare(optimizer, memory_budget="30%")
    for other in ({"memory_budget": "20%"}, {"plan": "8bit"}):
        with pytest.raises(OptionError, match=r"'30%' before, and now"):
            baoc_compile.prepare(optimizer, **other)
        with pytest.raises(Exception, match=r"'30%' before, and now"):
            stepped(optimizer, **other)
    baoc_compile.prepare(optimizer, memory_budget="30%")
    stepped(optimizer, memory_budget="30%")


def test_the_certificate_of_a_plan_is_kept():
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    certificate = training.configurator.solution.allocation.certificate
    assert certificate and baoc_compile.inspect(training.optimizer).plan.certificate == certificate
    named = Training(plan=baoc_compile.inspect(training.optimizer).plan.to_json())
    assert named.session.plan().certificate == certificate
    copied = copy.deepcopy(named.optimizer)
    assert session_of(copied).plan().certificate == certificate


def test_the_blocks_of_a_plan_are_kept():
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    blocks = [stored.block for stored in training.session.storage.parameters.values()]
    assert all(blocks)
    named = Training(plan=training.session.plan().to_json())
    named.step(1)
    assert [stored.block for stored in named.session.storage.parameters.values()] == blocks
    assert f"block {blocks[0]!r}" in str(baoc_compile.inspect(named.optimizer))


# parameters that come and go


def test_storage_follows_its_parameters():
    first, second, third = parameters()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], momentum=0.9)
    plan = Plan.uniform("fp32")
    entries = {
        i: baoc_compile.state.plan.ParameterPlan(str(i), SHAPES[i], {"momentum_buffer": name})
        for i, name in enumerate(("bf16", "e2m5"))
    }
    baoc_compile.prepare(optimizer, plan=Plan(plan.default, entries))
    optimizer.add_param_group({"params": [third]})
    stepped(optimizer)
    assert [c["momentum_buffer"] for c in codecs(optimizer)] == ["bf16", "e2m5", "fp32"]
    del optimizer.param_groups[0]  # `second` is number 0 now
    assert [c["momentum_buffer"] for c in codecs(optimizer)] == ["e2m5", "fp32"]
    stepped(optimizer)
    assert optimizer.state[second]["momentum_buffer"].codec.name == "e2m5"


def test_nothing_has_changed_when_prepare_refuses():
    optimizer = torch.optim.AdamW(parameters())
    wrong = Plan(parameters={0: baoc_compile.state.plan.ParameterPlan("w", (3,), {"exp_avg": "bf16"})})
    with pytest.raises(PlanError, match="another model"):
        baoc_compile.prepare(optimizer, model=nn.ParameterList(parameters()), plan=wrong)
    session = session_of(optimizer)
    assert not optimizer.state and not session.storage.parameters
    assert session.request == type(session.request)() and session.model is None
    baoc_compile.prepare(optimizer, memory_budget="30%")
    assert 0 < state_bytes(optimizer) <= 0.3 * 8.1 * sum(p.numel() for p in parameters())
