"""Rewrite: adapt a rule to slots that are not stored element by element.

A dropped slot is replaced by its steady state. A shared slot is read by the update as its new value: a separate rule,
run first, computes the increment that is averaged into the shared values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.rule import RuleOutput, UpdateRule
from baoc_compile.kernels.dialect.nodes import ValueMeta, meta_of, set_meta
from baoc_compile.passes.rules.find_recurrence import Recurrence, find_recurrence, new_values, step_counters

aten = torch.ops.aten


@dataclass(frozen=True)
class ReducedRule:
    """A rule split at its shared slots.

    averages: rules to run first, in order; each returns the increments and decays of the slots that it averages.
    update: the remaining rule, which reads the new shared values as its slots.
    """

    averages: tuple[UpdateRule, ...]
    update: UpdateRule


def reduce_state(rule: UpdateRule, dropped: Collection[str], shared: Collection[str]) -> ReducedRule:
    """Remove the slots `dropped` from `rule`, and split off the averages of the slots `shared`.

    Raises NoRecurrence if the new value of one of these slots is not decay * old + increment.
    """
    for key in dropped:
        rule = drop_slot(rule, key)
    averages, remaining = [], list(shared)
    while remaining:
        found = {key: find_recurrence(rule.gm, rule.inputs, rule.outputs, key) for key in remaining}
        names = {i.name for i in rule.inputs if i.kind == "slot" and i.key in remaining}
        ready = {k: r for k, r in found.items() if not any(r.reads(name) for name in names)}
        averages.append(_averages(rule, ready))
        for key in ready:
            rule = _given(rule, key)
        remaining = [key for key in remaining if key not in ready]
    return ReducedRule(tuple(averages), rule)


def drop_slot(rule: UpdateRule, key: str) -> UpdateRule:
    """Replace a slot's new value by its steady state under a constant increment.

        s' = (1 - decay^t) / (1 - decay) * increment,  t the new step count

    If the rule counts no steps, s' is the limit for large t; if decay is 1, s' is t * increment. Raises NoRecurrence.
    """
    recurrence = find_recurrence(rule.gm, rule.inputs, rule.outputs, key)
    counters = step_counters(rule.gm, rule.inputs, rule.outputs)

    def steady(graph: fx.Graph, placeholders: dict[str, fx.Node]) -> fx.Node:
        decay, increment = _inlined(graph, recurrence, placeholders)

        def scalar(target: Any, *args: Any, dtype: torch.dtype = torch.float64) -> fx.Node:
            return set_meta(graph.call_function(target, args), ValueMeta("scalar", dtype))

        steps: Any = None
        if counters:
            steps = scalar(aten.add.Tensor, placeholders[counters[0]], 1.0)
        if decay == 1.0:
            weight = steps
        else:
            if not isinstance(decay, fx.Node):
                decay = scalar(aten.scalar_tensor.default, decay)
            geometric = scalar(aten.reciprocal.default, scalar(aten.rsub.Scalar, decay, 1.0))
            if steps is not None:
                reached = scalar(aten.rsub.Scalar, scalar(aten.pow.Tensor_Tensor, decay, steps), 1.0)
                geometric = scalar(aten.mul.Tensor, reached, geometric)
                grows = scalar(aten.eq.Scalar, decay, 1.0, dtype=torch.bool)
                geometric = scalar(aten.where.self, grows, steps, geometric)
            weight = geometric
        return set_meta(graph.call_function(aten.mul.Tensor, (increment, weight)), meta_of(increment))

    name = _input_name(rule, key)
    graph = _substituted(rule, name, steady, keep_input=False)
    return rule_like(rule, graph, _without(rule, name), without=key)


def _given(rule: UpdateRule, key: str) -> UpdateRule:
    """Let the slot's input stand for its new value; the rule no longer writes it."""
    name = _input_name(rule, key)
    graph = _substituted(rule, name, lambda graph, placeholders: placeholders[name], keep_input=True)
    return rule_like(rule, graph, _without(rule, name))


def _averages(rule: UpdateRule, recurrences: dict[str, Recurrence]) -> UpdateRule:
    """Make the rule that returns the increment and the decay of every slot in `recurrences`."""
    graph = fx.Graph()
    placeholders = _placeholders(graph, rule)
    returned: dict[RuleOutput, Any] = {}
    for key, recurrence in recurrences.items():
        decay, increment = _inlined(graph, recurrence, placeholders)
        if not isinstance(decay, fx.Node):
            decay = graph.call_function(aten.scalar_tensor.default, (decay,))
            set_meta(decay, ValueMeta("scalar", torch.float64))
        returned |= {RuleOutput("increment", key=key): increment, RuleOutput("decay", key=key): decay}
    graph.output(tuple(returned.values()))
    return rule_like(rule, graph, tuple(returned))


def _input_name(rule: UpdateRule, key: str) -> str:
    return next(i.name for i in rule.inputs if i.kind == "slot" and i.key == key)


def _without(rule: UpdateRule, name: str) -> tuple[RuleOutput, ...]:
    """Return the rule's outputs without the new value of the input `name`."""
    return tuple(o for o in rule.outputs if o != RuleOutput("new", name))


def _placeholders(graph: fx.Graph, rule: UpdateRule) -> dict[str, fx.Node]:
    found = {}
    for node in rule.gm.graph.nodes:
        if node.op == "placeholder":
            found[node.target] = set_meta(graph.node_copy(node), meta_of(node))
    return found


def _inlined(graph: fx.Graph, recurrence: Recurrence, placeholders: dict[str, fx.Node]) -> tuple[Any, fx.Node]:
    """Copy a recurrence into `graph`; return its decay and its increment there."""
    copied: dict[fx.Node, fx.Node] = {}
    for node in recurrence.graph.nodes:
        if node.op == "placeholder":
            copied[node] = placeholders[node.target]
        elif node.op == "call_function":
            copied[node] = set_meta(graph.node_copy(node, lambda old: copied[old]), meta_of(node))
    decay = copied[recurrence.decay] if isinstance(recurrence.decay, fx.Node) else recurrence.decay
    return decay, copied[recurrence.increment]


def _substituted(rule: UpdateRule, name: str, value_of: Any, keep_input: bool) -> fx.Graph:
    """Copy the rule's graph, with `value_of(graph, placeholders)` in place of the slot's new value.

    The copy does not return that value. `keep_input`: whether it still takes the slot as an input.
    """
    graph = fx.Graph()
    placeholders = _placeholders(graph, rule)
    new, replaced = new_values(rule.gm, rule.outputs), RuleOutput("new", name)
    copied = {n: placeholders[n.target] for n in rule.gm.graph.nodes if n.op == "placeholder"}
    for node in rule.gm.graph.nodes:
        if node is new[replaced]:
            copied[node] = value_of(graph, placeholders)
        elif node.op == "call_function":
            copied[node] = set_meta(graph.node_copy(node, lambda old: copied[old]), meta_of(node))
    graph.output(tuple(copied[value] for output, value in new.items() if output != replaced))
    graph.eliminate_dead_code()
    merge_equal_calls(graph)
    if not keep_input:
        graph.erase_node(placeholders[name])
    return graph


def merge_equal_calls(graph: fx.Graph) -> None:
    """Merge calls that an inlined recurrence duplicates, so that a slot's new value is one node."""
    first: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            same = first.setdefault((node.target, node.args, tuple(node.kwargs.items())), node)
            if same is not node:
                node.replace_all_uses_with(same)
    graph.eliminate_dead_code()


def rule_like(
    rule: UpdateRule, graph: fx.Graph, outputs: tuple[RuleOutput, ...], without: str | None = None
) -> UpdateRule:
    """Make a rule like `rule` of another graph, which returns `outputs`, without the slot `without`.

    Inputs that are neither read nor replaced any more are removed; the parameter stays.
    """
    graph.eliminate_dead_code()
    replaced = {o.name for o in outputs}
    inputs = []
    for rule_input in rule.inputs:
        node = next((n for n in graph.nodes if n.op == "placeholder" and n.target == rule_input.name), None)
        if node is None:
            continue
        is_kept = rule_input.kind == "param" or rule_input.counts_steps or rule_input.name in replaced
        if not node.users and not is_kept:
            graph.erase_node(node)
        else:
            inputs.append(rule_input)
    slots = tuple(
        s for s in rule.slots if s.key != without and any(i.kind == "slot" and i.key == s.key for i in inputs)
    )
    return replace(
        rule, gm=fx.GraphModule(torch.nn.Module(), graph), inputs=tuple(inputs), outputs=outputs, slots=slots
    )
