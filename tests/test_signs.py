"""Interval arithmetic over rules: every value that a rule computes lies in the interval that was derived for it.

NaN lies in every interval: it is stored as NaN whatever the codec. No claim is made about what comes of a division by 0,
whose sign would be that of a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from optimizers import CASES, rule_of
from random_optimizers import DrawnOptimizer, recipes
from torch import Tensor, fx

import baoc_compile
from baoc_compile.core.rule import UpdateRule
from baoc_compile.passes.rules import prove_signs as signs

aten = torch.ops.aten
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-30, 1e-45, -1e-38, 1e30, 3e38, -3e38, math.inf, -math.inf, math.nan]
LANES = 64


def values_in(interval: signs.Interval, generator: torch.Generator, is_element: bool) -> Tensor:
    """Values in an interval, its ends and special ones among them: float32 elements, or one float64 number."""
    low, high = interval
    drawn = torch.randn(LANES, generator=generator, dtype=torch.float64)
    drawn = drawn * 10.0 ** torch.randint(-3, 3, (LANES,), generator=generator)
    special = torch.tensor([*SPECIAL, low, high], dtype=torch.float64)
    drawn[: len(special)] = special
    drawn = drawn.float().double() if is_element else drawn
    drawn = torch.where((drawn >= low) & (drawn <= high) | drawn.isnan(), drawn, drawn.abs() % 1.0)
    drawn = torch.where((drawn >= low) & (drawn <= high) | drawn.isnan(), drawn, low if low > -math.inf else high)
    drawn = drawn[torch.randperm(LANES, generator=generator)]
    return drawn.float() if is_element else drawn[~drawn.isnan()][0]


def check_intervals(
    gm: fx.GraphModule, known: Mapping[str, signs.Interval], elements: set[str], seed: int
) -> dict[fx.Node, tuple[Tensor, Tensor]]:
    """Node -> its value, and where no claim is made about it."""
    intervals = signs._intervals(gm, dict(known))
    generator = torch.Generator().manual_seed(seed)
    found: dict[fx.Node, tuple[Tensor, Tensor]] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            value = values_in(known[node.target], generator, node.target in elements)
            found[node] = value, torch.zeros_like(value, dtype=torch.bool)
        elif node.op == "call_function":
            args = [found[a][0] if isinstance(a, fx.Node) else a for a in node.args]
            value = node.target(*args, **node.kwargs)
            free = torch.zeros_like(value, dtype=torch.bool)
            for operand in node.all_input_nodes:
                free = free | found[operand][1]
            found[node] = value, free | divides_by_zero(node, args)
        else:
            continue
        low, high = intervals[node]
        value, free = found[node]
        inside = (value.double() >= low) & (value.double() <= high) | value.isnan() | free
        assert inside.all(), f"{node.format_node()}: {value[~inside] if value.ndim else value} not in {low}..{high}"
    return found


def divides_by_zero(node: fx.Node, args: list[Any]) -> Any:
    name = node.target.overloadpacket.__name__
    if name == "div":
        return torch.as_tensor(args[1]) == 0
    if name in ("reciprocal", "rsqrt"):
        return args[0] == 0
    return (torch.as_tensor(args[0]) == 0) & (torch.as_tensor(args[1]) < 0) if name == "pow" else False


def check_rule(rule: UpdateRule, seed: int) -> None:
    """Slots that are proven to be >= 0 are when the step begins, and so are counters; then they are when it ends."""

    def known(rule_input: Any) -> signs.Interval:
        is_proven = rule_input.kind == "slot" and rule.slot(rule_input.key).nonnegative
        return signs.NONNEGATIVE if is_proven or rule_input.kind == "counter" else rule_input.bounds

    elements = {i.name for i in rule.inputs if i.kind in ("param", "grad", "slot")}
    found = check_intervals(rule.gm, {i.name: known(i) for i in rule.inputs}, elements, seed)
    (returned,) = rule.gm.graph.output_node().args
    for name, node in zip(rule.outputs, returned, strict=True):
        rule_input = next((i for i in rule.inputs if i.name == name), None)
        if rule_input is not None and rule_input.kind == "slot" and rule.slot(rule_input.key).nonnegative:
            value, free = found[node]
            assert ((value >= 0) | value.isnan() | free).all(), name


@pytest.mark.parametrize("name", CASES)
def test_known_optimizers(name):
    case = CASES[name]
    rule = rule_of(case.make([torch.nn.Parameter(torch.zeros(3, 4))], **case.options))
    for seed in range(10):
        check_rule(rule, seed)


@given(recipe=recipes(), seed=st.integers(0, 999))
def test_random_optimizers(recipe, seed):
    rule = rule_of(DrawnOptimizer([torch.nn.Parameter(torch.zeros(3, 4))], recipe))
    note(str(rule))
    check_rule(rule, seed)


UNARY = [aten.neg.default, aten.abs.default, aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default]
UNARY += [aten.exp.default, aten.sigmoid.default, aten.tanh.default, aten.sign.default, aten.floor.default]
BINARY = [
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
]
BINARY += [aten.pow.Tensor_Tensor, aten.add.Tensor, aten.sub.Tensor]
numbers = st.one_of(st.sampled_from([*SPECIAL[:-1], 0.1, 0.7, 2.0, 1e-60, 1e300]), st.floats(-3, 3))
INTERVALS = [signs.ANY, signs.NONNEGATIVE, (0.0, 1.0), (-math.inf, 0.0), (1.0, math.inf), (-1.0, 1.0)]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[fx.GraphModule, dict[str, signs.Interval], set[str]]:
    """Any operations that intervals are known of, over elements and numbers; their intervals; which are elements."""
    graph = fx.Graph()
    known = {f"x{i}": draw(st.sampled_from(INTERVALS)) for i in range(4)}
    nodes = [graph.placeholder(name) for name in known]
    values = st.deferred(lambda: st.sampled_from(nodes))
    for _ in range(draw(st.integers(1, 8))):
        arity = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 4]))
        if arity == 0:
            node = graph.call_function(aten.scalar_tensor.default, (draw(numbers),), {"dtype": torch.float64})
        elif arity == 1:
            node = graph.call_function(draw(st.sampled_from(UNARY)), (draw(values),))
        elif arity == 2:
            node = graph.call_function(draw(st.sampled_from(BINARY)), (draw(values), draw(values)))
            if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor) and draw(st.booleans()):
                node.args = (node.args[0], draw(numbers))
        elif arity == 3:
            condition = graph.call_function(aten.gt.Scalar, (draw(values), draw(numbers)))
            node = graph.call_function(aten.where.self, (condition, draw(values), draw(values)))
        else:
            node = graph.call_function(aten.pow.Tensor_Scalar, (draw(values), draw(numbers)))
        nodes.append(node)
    weight = draw(values)
    same = graph.call_function(aten._to_copy.default, (nodes[-1],), {"dtype": torch.float32})
    start, end = (graph.call_function(aten.mul.Tensor, (x, 1.0)) for x in (nodes[0], nodes[1]))
    weight = graph.call_function(aten._to_copy.default, (weight,), {"dtype": torch.float32})
    graph.call_function(aten.lerp.Tensor, (start, end, weight))
    graph.call_function(aten._to_copy.default, (same,), {"dtype": torch.int32})
    graph.output(())
    return fx.GraphModule(torch.nn.Module(), graph), known, {"x0", "x1"}


@settings(max_examples=10 * settings.default.max_examples)
@given(graphs(), st.integers(0, 999))
def test_any_graph(drawn, seed):
    gm, known, elements = drawn
    note(gm.code)
    check_intervals(gm, known, elements, seed)


def graph_of(*calls: tuple[Any, ...]) -> fx.GraphModule:
    """Call i is (operation, operands...); an operand "#j" is the result of call j, another text an input."""
    graph = fx.Graph()
    results: dict[str, fx.Node] = {"x0": graph.placeholder("x0"), "x1": graph.placeholder("x1")}
    for i, (target, *operands) in enumerate(calls):
        kwargs = {"dtype": torch.float64} if target is aten.scalar_tensor.default else {}
        results[f"#{i}"] = graph.call_function(target, tuple(results.get(o, o) for o in operands), kwargs)
    graph.output(())
    return fx.GraphModule(torch.nn.Module(), graph)


AT_MOST_A_TENTH_AND_SIX = [
    (aten.scalar_tensor.default, 0.1),
    (aten.scalar_tensor.default, 0.6),
    (aten.minimum.default, "x0", "#0"),
    (aten.minimum.default, "x1", "#1"),
    (aten.add.Tensor, "#2", "#3"),
]


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(
            [*AT_MOST_A_TENTH_AND_SIX, (aten.scalar_tensor.default, 0.7), (aten.sub.Tensor, "#5", "#4")], id="sum"
        ),
        pytest.param([(aten.add.Tensor, "x0", math.inf), (aten.sub.Tensor, "#0", math.inf)], id="infinities"),
        pytest.param(
            [
                (aten.scalar_tensor.default, -3e38),
                (aten.maximum.default, "x0", "#0"),
                (aten.maximum.default, "x1", "#0"),
                (aten.lerp.Scalar, "#1", "#2", 0.25),
            ],
            id="overflow",
        ),
    ],
)
def test_what_rounding_does_to_bounds(calls):
    """Of constants that float32 does not have, of infinities, and of what overflows."""
    for seed in range(20):
        check_intervals(graph_of(*calls), {"x0": signs.ANY, "x1": signs.ANY}, {"x0", "x1"}, seed)


@pytest.mark.parametrize("constant", [math.inf, -math.inf, math.nan])
def test_constants_that_are_no_numbers_have_bounds(constant):
    """A bound that is NaN would pass for one that is >= 0."""
    gm = graph_of((aten.scalar_tensor.default, constant), (aten.sub.Tensor, "#0", "#0"))
    for low, high in signs._intervals(gm, {"x0": signs.ANY, "x1": signs.ANY}).values():
        assert low <= high


class Negative(torch.optim.Optimizer):
    """A slot that stays >= 0 once it is, and begins below."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["s"] = torch.full_like(p, -1.0)
            state["s"].mul_(0.9).addcmul_(p.grad, p.grad, value=0.1)
            p.sub_(state["s"] * p.grad, alpha=0.1)


@pytest.mark.parametrize("prepared", ["before", "after a step", "never"])
def test_a_slot_that_begins_negative_gets_a_codec_for_signed_values(prepared):
    """The proof is by induction: it says nothing of a slot that begins below 0."""
    parameter, twin = (torch.nn.Parameter(torch.linspace(-1, 1, 6144).view(96, 64)) for _ in range(2))
    optimizer, eager = Negative([parameter]), Negative([twin])
    parameter.grad, twin.grad = (torch.full_like(parameter, 0.5) for _ in range(2))
    if prepared == "after a step":
        optimizer.step()
        eager.step()
    if prepared != "never":
        baoc_compile.prepare(optimizer, plan="8bit")
    step = torch.compile(optimizer.step, backend="baoc", options={"plan": "8bit"})
    for _ in range(3):
        step()
        eager.step()
    assert optimizer.state[parameter]["s"].codec.name == "e2m5"
    torch.testing.assert_close(parameter, twin, rtol=0.0, atol=0.1 * 0.5 * 4 / 64)  # the codec's error, step by step
