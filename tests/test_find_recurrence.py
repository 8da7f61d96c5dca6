"""Which slots are linear recurrences, s' = decay * s + increment, is read from the rule and is right in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optimizers import CASES, rule_of
from torch import Tensor, fx

from baoc_compile.core.rule import RuleOutput, UpdateRule
from baoc_compile.passes.rules.find_recurrence import NoRecurrence, Recurrence, find_recurrence

REFUSED = {
    ("ASGD", "ax"): "is a copy of something else",
    ("Adam-amsgrad", "max_exp_avg_sq"): "maximum",
    ("Adamax", "exp_inf"): "maximum",
    ("Adadelta", "acc_delta"): "old value",
    ("Rprop", "prev"): "old value",
    ("Rprop", "step_size"): "not a linear recurrence",
    ("Lion", "exp_avg"): "old value",
}
SLOTS = [(name, key) for name, case in CASES.items() for key in case.slots]


class Made(torch.optim.Optimizer):
    """One slot whose new value, and the update from (old, new, gradient), are given as functions."""

    def __init__(self, new: Callable[[Tensor, Tensor], Tensor], update: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__([torch.nn.Parameter(torch.zeros(3, 4))], {"new": new, "update": update})

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        (p,) = group["params"]
        state = self.state[p]
        if not state:
            state["s"] = torch.zeros_like(p)
        new = group["new"](state["s"], p.grad)
        p.sub_(group["update"](state["s"], new, p.grad))
        if new is not state["s"]:
            state["s"] = new


def recurrence_of(rule: UpdateRule, key: str) -> Recurrence:
    return find_recurrence(rule.gm, rule.inputs, rule.outputs, key)


def evaluated(graph: fx.Graph, values: dict[str, Tensor]) -> tuple:
    """The graph's outputs, in the type of `values`."""
    module = fx.GraphModule(torch.nn.Module(), graph)
    return module(*(values[node.target] for node in graph.nodes if node.op == "placeholder"))


def assert_reproduced(rule: UpdateRule, key: str) -> Recurrence:
    """decay * s + increment is what the rule computes, for random inputs; neither depends on s."""
    found = recurrence_of(rule, key)
    slot = next(i for i in rule.inputs if i.kind == "slot" and i.key == key).name
    position = rule.outputs.index(RuleOutput("new", slot))
    assert not found.reads(slot)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for i in rule.inputs:
            shape = () if i.kind in ("scalar", "counter") else (5, 7)
            value = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.25
            values[i.name] = value if i.name == slot or i.kind != "grad" else value - 0.75
        exact = evaluated(rule.gm.graph, values)[position]
        decay, increment = evaluated(found.graph, values)
        assert torch.as_tensor(decay).ndim == 0
        assert exact.isfinite().sum() > 30, "hardly any is the root of a negative number"
        torch.testing.assert_close(decay * values[slot] + increment, exact, rtol=1e-13, atol=1e-13, equal_nan=True)
    return found


@pytest.mark.parametrize(("name", "key"), [slot for slot in SLOTS if slot not in REFUSED])
def test_every_recurrence_of_an_optimizer_is_reproduced(name, key):
    rule = rule_of(CASES[name].make([torch.nn.Parameter(torch.zeros(3, 4))], **CASES[name].options))
    assert_reproduced(rule, key)
    assert rule.slot(key).why_not_shared == ""


@pytest.mark.parametrize(("name", "key"), REFUSED)
def test_other_slots_refuse_by_name(name, key):
    rule = rule_of(CASES[name].make([torch.nn.Parameter(torch.zeros(3, 4))], **CASES[name].options))
    reason = rule.slot(key).why_not_shared
    assert repr(key) in reason and REFUSED[name, key] in reason
    with pytest.raises(NoRecurrence, match=REFUSED[name, key]):
        recurrence_of(rule, key)


LINEAR = {
    "moving average": lambda s, g: 0.9 * s + 0.1 * g,
    "nested": lambda s, g: 0.5 * (0.9 * (s + g) - 0.1 * g * g) + (s - g) / 4,
    "divided": lambda s, g: s / 3 + g,
    "divided as a whole": lambda s, g: (s + g.abs()) / 1.5,
    "on both sides": lambda s, g: (0.6 * s + g) - 0.1 * s,
    "subtracted": lambda s, g: g - 0.9 * s,
    "subtracted from a number": lambda s, g: 1 - (0.5 * s - g),
    "negated": lambda s, g: -(0.5 * s - g),
    "lerp": lambda s, g: s.lerp(g, 0.1),
    "lerp to it": lambda s, g: g.lerp(s, 0.7),
    "lerp within": lambda s, g: (0.5 * s + g).lerp(s - g * g, 0.25),
    "addcmul": lambda s, g: (0.99 * s).addcmul(g, g, value=0.01),
    "in place": lambda s, g: s.mul_(0.9).add_(g, alpha=0.1),
    "sum": lambda s, g: s + g * g,
    "increment in any form": lambda s, g: 0.5 * s + torch.where(g > 0, g.tanh(), g * g),
}


@pytest.mark.parametrize("form", LINEAR)
def test_every_linear_form_is_found(form):
    rule = rule_of(Made(LINEAR[form], lambda old, new, g: new))
    assert_reproduced(rule, "s")


def test_a_decay_of_one_is_known_as_a_number():
    """An Adagrad's sum: dropping needs to know, as its steady state is t times the increment."""
    assert recurrence_of(rule_of(Made(LINEAR["sum"], lambda old, new, g: new)), "s").decay == 1.0
    slot = rule_of(Made(LINEAR["sum"], lambda old, new, g: new)).slot("s")
    assert slot.why_not_shared == "" and "counts no steps" in slot.why_not_dropped


NEW = lambda old, new, g: new  # noqa: E731
NOT_LINEAR = {
    "decay by element": (lambda s, g: s * g.abs() + g, NEW, "mul of the old one"),
    "chosen": (lambda s, g: torch.where(g > 0, s, g), NEW, "where of the old one"),
    "chosen by it": (lambda s, g: torch.where(s > 0, 0.9 * s, s) + g, NEW, "of the old one"),
    "squared": (lambda s, g: s * s + g, NEW, "mul of the old one"),
    "root": (lambda s, g: s.abs().sqrt() + g, NEW, "of the old one"),
    "in a denominator": (lambda s, g: g / (s + 1), NEW, "div of the old one"),
    "lerp by element": (lambda s, g: s.lerp(g, g.abs()), NEW, "lerp of the old one"),
    "never written": (lambda s, g: s, lambda old, new, g: old + g, "never written|not driven"),
    "without gradient": (lambda s, g: 0.9 * s, lambda old, new, g: new + g, "not driven by the gradient"),
    "old value used": (lambda s, g: 0.9 * s + g, lambda old, new, g: old + g, "old value"),
}


@pytest.mark.parametrize("form", NOT_LINEAR)
def test_other_forms_refuse_and_say_why(form):
    new, update, reason = NOT_LINEAR[form]
    rule = rule_of(Made(new, update))
    with pytest.raises(NoRecurrence, match=reason):
        recurrence_of(rule, "s")
    assert rule.slot("s").why_not_shared.startswith("'s' ")
