"""`with_budget`: the class is like the one that it was made from, and its instances are as `prepare` would have made them."""

from __future__ import annotations

import copy
import inspect
import pickle
from abc import ABCMeta

import pytest
import torch
from optimizers import Lion
from small_training import SOON, Small, bits

import baoc_compile
from baoc_compile import BudgetError, OptionError, Plan, PlanError, with_budget

AdamW = torch.optim.AdamW
KINDS = [AdamW, torch.optim.SGD, torch.optim.RMSprop, Lion]


def trained(optimizer, model, steps, first=0):
    for step in range(first, first + steps):
        tokens = torch.randint(200, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(tokens, (3 * tokens + 1) % 200).backward()
        optimizer.step()


def made(optimizer_class, **options):
    torch.manual_seed(0)
    model = Small()
    return optimizer_class(model.parameters(), lr=3e-3, **options), model


def same(optimizer, model, other_optimizer, other_model):
    """Whether weights and state are equal, bit by bit."""
    return bits(model, optimizer) == bits(other_model, other_optimizer)


@pytest.mark.parametrize("optimizer_class", KINDS, ids=lambda k: k.__name__)
def test_the_class_is_like_the_one_it_was_made_from(optimizer_class):
    budgeted = with_budget(optimizer_class, plan="8bit")
    assert issubclass(budgeted, optimizer_class)
    assert inspect.signature(budgeted) == inspect.signature(optimizer_class)
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(budgeted, n) for n in names] == [getattr(optimizer_class, n) for n in names]
    assert "baoc_compile.with_budget(" in repr(budgeted) and "plan='8bit'" in repr(budgeted)


def test_the_same_call_gives_the_same_class():
    assert with_budget(AdamW, "15%") is with_budget(AdamW, memory_budget="15%", seed=None)
    assert with_budget(AdamW, "15%") is not with_budget(AdamW, "16%")
    assert with_budget(AdamW, plan="8bit") is with_budget(AdamW, plan=Plan.uniform("8bit"))
    assert with_budget(with_budget(AdamW, "15%"), "15%") is with_budget(AdamW, "15%")


def test_options_are_those_of_the_moment():
    plan = {"*": "8bit"}
    budgeted = with_budget(AdamW, plan=plan)
    plan["*"] = "no such format"
    optimizer, model = made(budgeted)
    assert baoc_compile.state_bytes(optimizer) < 0.3 * 8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "options", [{"memory_budget": "15%"}, {"plan": "8bit"}, {"plan": Plan.uniform("bf16", seed=3)}]
)
def test_class_and_instances_can_be_pickled_and_copied(options):
    budgeted = with_budget(AdamW, **options)
    assert all(pickle.loads(pickle.dumps(budgeted, protocol)) is budgeted for protocol in range(2, 6))
    assert copy.deepcopy(budgeted) is budgeted
    optimizer, model = made(budgeted)
    trained(optimizer, model, 2)
    for other, its_model in (pickle.loads(pickle.dumps((optimizer, model))), copy.deepcopy((optimizer, model))):
        assert type(other) is budgeted
        trained(other, its_model, 2, first=2)
        again, of_again = copy.deepcopy((optimizer, model))
        trained(again, of_again, 2, first=2)
        assert same(again, of_again, other, its_model)


class Written(with_budget(AdamW, plan="8bit")):
    """A subclass that somebody has written."""


def test_a_subclass_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(Written)) is Written
    assert repr(Written) == f"<class '{__name__}.Written'>"


def test_a_class_with_a_metaclass_of_its_own():
    class Abstract(AdamW, metaclass=ABCMeta):
        pass

    budgeted = with_budget(Abstract, plan="8bit")
    assert isinstance(budgeted, ABCMeta) and isinstance(made(budgeted)[0], Abstract)


@pytest.mark.parametrize("optimizer_class", KINDS, ids=lambda k: k.__name__)
def test_instances_are_as_if_prepared(optimizer_class):
    options = {"momentum": 0.9} if optimizer_class.__module__ in ("torch.optim.sgd", "torch.optim.rmsprop") else {}
    optimizer, model = made(with_budget(optimizer_class, "30%", **SOON), **options)
    prepared, of_prepared = made(optimizer_class, **options)
    baoc_compile.prepare(prepared, memory_budget="30%", **SOON)
    assert isinstance(optimizer, optimizer_class)
    assert baoc_compile.state_bytes(optimizer) == baoc_compile.state_bytes(prepared) > 0
    trained(optimizer, model, 9)
    trained(prepared, of_prepared, 9)
    assert same(optimizer, model, prepared, of_prepared)


@pytest.mark.parametrize("way", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_ways_to_compute_make_no_difference(way):
    optimizer, model = made(with_budget(AdamW, "15%"), **way)
    plain, of_plain = made(with_budget(AdamW, "15%"))
    trained(optimizer, model, 3)
    trained(plain, of_plain, 3)
    assert same(optimizer, model, plain, of_plain)


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_state_dict_resumes(cut):
    whole, of_whole = made(with_budget(AdamW, "15%", **SOON))
    trained(whole, of_whole, 9)
    first, model = made(with_budget(AdamW, "15%", **SOON))
    trained(first, model, cut)
    second, of_second = made(with_budget(AdamW, "15%", **SOON))
    of_second.load_state_dict(model.state_dict())
    second.load_state_dict(first.state_dict())
    trained(second, of_second, 9 - cut, first=cut)
    assert same(whole, of_whole, second, of_second)


def test_groups_and_added_groups():
    torch.manual_seed(0)
    tensors = [torch.nn.Parameter(torch.randn(100, 100)) for _ in range(3)]
    groups = [{"params": tensors[:1]}, {"params": tensors[1:2], "lr": 1e-2, "weight_decay": 0.0}]
    optimizer = with_budget(AdamW, plan="8bit")(groups, lr=1e-3)
    optimizer.add_param_group({"params": tensors[2:]})
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    optimizer.step()
    assert baoc_compile.state_bytes(optimizer) < 3 * 2.2 * 10_000


@pytest.mark.parametrize(
    ("given", "error", "names"),
    [
        ({"memory_budget": "x"}, OptionError, "memory_budget"),
        ({"plan": "7bit"}, PlanError, "7bit"),
        ({"warmup_steps": -1}, OptionError, "warmup_steps"),
        ({"no_such": 1}, OptionError, "no_such"),
        ({"model": torch.nn.Linear(2, 2)}, OptionError, "model"),
    ],
)
def test_bad_options_are_refused_when_the_class_is_made(given, error, names):
    with pytest.raises(error, match=names):
        with_budget(AdamW, **given)


def test_what_is_no_class_is_refused():
    for given in (made(AdamW)[0], "AdamW", dict):
        with pytest.raises(OptionError, match=r"optimizer_class: expected .*prepare\(optimizer"):
            with_budget(given, "15%")
    with pytest.raises(OptionError, match=r"optimizer_class: .* has options already"):
        with_budget(with_budget(AdamW, "15%"), "16%")


def test_what_only_an_instance_shows_is_refused_by_it():
    with pytest.raises(BudgetError):
        made(with_budget(AdamW, "100 B"))
    with pytest.raises(OptionError, match="differentiable"):
        made(with_budget(AdamW, "15%"), differentiable=True)


def test_a_model_can_be_named_later():
    optimizer, model = made(with_budget(AdamW, "15%"))
    before = baoc_compile.state_bytes(optimizer)
    baoc_compile.prepare(optimizer, model=model)
    assert baoc_compile.state_bytes(optimizer) == before
    trained(optimizer, model, 1)
    assert "head.weight" in {p.name for p in baoc_compile.inspect(optimizer).plan.parameters.values()}
