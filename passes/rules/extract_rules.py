"""Rewrite: turn components into canonical update rules, one for each structural class.

Every component is copied into a slice: its calls, with inputs by role and numbers by position. Slices with equal
signatures form one class, and only one representative of each class is traced and decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from baoc_compile.core.rule import UpdateRule, bounds_of
from baoc_compile.core.step_graph import InputRole, StepGraph
from baoc_compile.passes.capture.split_components import Component
from baoc_compile.passes.capture.torch_calls import TENSOR_FORMS, operation
from baoc_compile.passes.capture.unbatch_foreach import alias_root
from baoc_compile.passes.rules.canonicalize import NotElementwise, canonicalize


@dataclass
class Slice:
    """One component as a graph of its own.

    component: the component that was copied.
    graph: takes a placeholder for each input and each constant; returns the last value of every input, then the entries
        of `new_state`.
    inputs: nodes of the step graph.
    constants: numbers that may differ between members of a class.
    new_state: the state entries that the slice creates.
    signature: equal for slices of the same structure.
    """

    component: Component
    graph: fx.Graph
    inputs: list[fx.Node]
    constants: list[float]
    new_state: list[InputRole]
    signature: Hashable


@dataclass
class RuleClass:
    """Components with the same structure.

    members: a slice of every component.
    rule: their update rule; None if they are not elementwise.
    reason: why there is no rule; empty if there is one.
    """

    members: list[Slice] = field(default_factory=list)
    rule: UpdateRule | None = None
    reason: str = ""


def extract_rules(step: StepGraph, components: list[Component]) -> list[RuleClass]:
    """Group `components` by structure, in order of first appearance, and canonicalize each group."""
    classes: dict[Hashable, RuleClass] = {}
    for component in components:
        piece = slice_component(step, component)
        classes.setdefault(piece.signature, RuleClass()).members.append(piece)
    for rule_class in classes.values():
        representative = max(rule_class.members, key=lambda m: step.table.parameters[m.component.parameters[0]].ndim)
        try:
            rule_class.rule = canonicalize(step, representative)
        except NotElementwise as reason:
            rule_class.reason = str(reason)
    return list(classes.values())


def slice_component(step: StepGraph, component: Component, in_program_order: bool = False) -> Slice:
    """Copy a component into a slice and derive its signature.

    By default every scalar call stands right before its first use, an order that all members of a class have in common.
    That order computes the right values, but calls that really change tensors in place need program order.
    """
    inside = set(component.nodes)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    inputs: list[fx.Node] = []
    constants: list[float] = []
    signature: list[Hashable] = []
    number: dict[fx.Node, int] = {}

    def enter(node: fx.Node) -> None:
        if node not in copied and node not in inside:
            copied[node] = graph.placeholder(f"input_{len(inputs)}")
            number[node] = len(number)
            inputs.append(node)
            signature.append(("input", *_role_signature(step, component, node, len(inputs))))

    nodes = component.nodes if in_program_order else _by_need(component)
    position = {node: i for i, node in enumerate(component.nodes)}
    latest: dict[fx.Node, fx.Node] = {}  # input -> the copied call that changed it last
    last: dict[fx.Node, fx.Node] = {}  # input -> the original of that call
    for node in nodes:
        for i in node.all_input_nodes:
            enter(i)
    for node in nodes:

        def lift(value: float, position: int | str, node: fx.Node = node) -> Any:
            if not _is_liftable(node, value, position):
                return value
            constants.append(value)
            return graph.placeholder(f"constant_{len(constants) - 1}")

        args = tuple(_map_numbers(a, lift, i) for i, a in enumerate(node.args))
        kwargs = {k: _map_numbers(a, lift, k) for k, a in node.kwargs.items()}
        signature.append((operation(node), _describe(args, number), _describe(kwargs, number)))
        number[node] = len(number)
        mapped = fx.map_arg((args, kwargs), lambda a: copied.get(a, a))
        copied[node] = graph.create_node(node.op, node.target, mapped[0], mapped[1], name=node.name)
        copied[node].meta = dict(node.meta)
        root = alias_root(node)
        if operation(node)[1] and (root not in latest or position[node] > position[last[root]]):
            latest[root], last[root] = copied[node], node
    new_state = list(component.new_state.items())
    final = [latest.get(node, copied[node]) for node in inputs]
    graph.output((*final, *(copied[node] for node, _ in new_state)))
    signature.append(("returns", tuple((number[node], role.key) for node, role in new_state)))
    signature.append(("constants", tuple(bounds_of(c) for c in constants)))
    _placeholders_first(graph)
    return Slice(component, graph, inputs, constants, [role for _, role in new_state], tuple(signature))


def _by_need(component: Component) -> list[fx.Node]:
    """Order the calls so that every scalar stands right before its first use.

    The order does not depend on which component computed a shared scalar first.
    """
    inside = set(component.nodes)
    ordered: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        for i in node.all_input_nodes:
            if i in inside and i not in ordered:
                visit(i)
        ordered[node] = None

    tensors_first = sorted(component.nodes, key=lambda node: node not in component.element_calls)
    for node in tensors_first:
        if node not in ordered and (node in component.element_calls or not any(u in inside for u in node.users)):
            visit(node)
    return list(ordered)


def _is_liftable(node: fx.Node, value: float, position: int | str) -> bool:
    """Return whether a number becomes an input of the rule.

    Hyperparameters do; 0, 1, non-finite numbers and exponents are part of the rule's structure.
    """
    name, _ = operation(node)
    is_exponent = name == "pow" and position in (1, "exponent", "other")
    structural = value in (0.0, 1.0) or not math.isfinite(value)
    return name in TENSOR_FORMS and not is_exponent and not structural


def _map_numbers(argument: Any, lift: Any, position: int | str) -> Any:
    if isinstance(argument, float):
        return lift(argument, position)
    if isinstance(argument, (list, tuple)):
        return type(argument)(_map_numbers(a, lift, position) for a in argument)
    return argument


def _describe(argument: Any, number: dict[fx.Node, int]) -> Hashable:
    """Describe an argument as a hashable value: nodes by number, lifted numbers by a mark, others by type and repr."""
    if isinstance(argument, fx.Node):
        return ("node", number[argument]) if argument in number else ("constant",)
    if isinstance(argument, (list, tuple)):
        return tuple(_describe(a, number) for a in argument)
    if isinstance(argument, dict):
        return tuple((k, _describe(a, number)) for k, a in argument.items())
    return (type(argument).__name__, repr(argument))


def _role_signature(step: StepGraph, component: Component, node: fx.Node, position: int) -> tuple[Hashable, ...]:
    role = step.roles.get(node)
    if role is None or role.kind == "scalar":
        example = node.meta.get("example_value")
        return ("scalar", tuple(getattr(example, "shape", ())))
    member = component.parameters.index(role.parameter) if role.parameter in component.parameters else -1
    shape = tuple(node.meta["example_value"].shape)
    if node not in component.element_inputs:
        return (role.kind, member, role.key, "scalar")
    return (role.kind, member, role.key, shape == tuple(step.table.parameters[role.parameter].shape) or shape)


def _placeholders_first(graph: fx.Graph) -> None:
    first = next((n for n in graph.nodes if n.op != "placeholder"), None)
    for node in list(graph.nodes):
        if node.op == "placeholder" and first is not None:
            first.prepend(node)
