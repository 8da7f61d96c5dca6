"""`torch.compile(step, backend="baoc")`: the whole pipeline, in the order in which it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._dynamo import lookup_backend

from baoc_compile.codec import Slot
from baoc_compile.compiled_step import CompiledStep
from baoc_compile.errors import BaocWarning, UnsupportedStep
from baoc_compile.options import Options
from baoc_compile.passes.choose_uniform import decide
from baoc_compile.passes.extract_rules import RuleClass, extract_rules
from baoc_compile.passes.read_roles import read_roles
from baoc_compile.passes.split_components import split_components
from baoc_compile.passes.unbatch_foreach import unbatch_foreach
from baoc_compile.session import session_of
from baoc_compile.step_graph import StepGraph


def baoc(gm: fx.GraphModule, example_inputs: list[Any], *, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The backend. `options`: see `Options`.

    A graph that is not an optimizer step goes to the inner backend untouched. Raises OptionError, BudgetError and
    PlanError while compiling, before anything is changed.
    """
    parsed = Options.parse(options)
    step = capture(gm)
    if step is None:
        return inner(gm, example_inputs, parsed.inner_backend)
    session = session_of(step.table.optimizer)
    session.configure(parsed.memory_budget, parsed.plan, parsed.seed)
    step.table = session.table()
    try:
        split = split_components(step)
    except UnsupportedStep as reason:
        warnings.warn(f"baoc leaves this step to {parsed.inner_backend!r}: {reason}", BaocWarning, stacklevel=2)
        return inner(gm, example_inputs, parsed.inner_backend)
    classes = extract_rules(step, split.components)
    decide(session, step.table, slots_by_parameter(step, classes))
    compiled = CompiledStep(session, without_tensors(gm), step, split.prelude, classes, parsed.inner_backend)
    session.steps.append(compiled)
    return compiled


def capture(gm: fx.GraphModule) -> StepGraph | None:
    """The traced graph as a flat step graph with roles; None if it is not an optimizer step."""
    traced = read_roles(gm)
    if traced is None:
        return None
    flat = unbatch_foreach(gm)
    return StepGraph(
        traced.table,
        flat.gm,
        {flat.inputs[node]: role for node, role in traced.roles.items()},
        {flat.returned[node]: role for node, role in traced.new_state.items()},
        [flat.inputs[node] for node in gm.graph.nodes if node.op == "placeholder"],
    )


def slots_by_parameter(step: StepGraph, classes: list[RuleClass]) -> dict[int, tuple[Slot, ...]]:
    """The slots to decide on: those of the rules, and the float states of pieces that run as traced."""
    found: dict[int, tuple[Slot, ...]] = {}
    for rule_class in classes:
        for piece in rule_class.members:
            if rule_class.rule is not None:
                found[piece.component.parameters[0]] = rule_class.rule.slots
                continue
            for index in piece.component.parameters:
                shape = step.table.parameters[index].shape
                found[index] = tuple(
                    Slot(key)
                    for key, value in step.table.state(index).items()
                    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == shape and value.ndim
                )
    return found


def inner(gm: fx.GraphModule, example_inputs: list[Any], backend: Any) -> Callable[..., Any]:
    """Compiles with another backend."""
    return (lookup_backend(backend) if isinstance(backend, str) else backend)(gm, example_inputs)


def without_tensors(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy to look at that keeps no tensor alive."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    root = torch.nn.Module()
    for node in gm.graph.nodes:
        if node.op == "get_attr" and not node.users:
            continue
        copied[node] = graph.node_copy(node, lambda old: copied[old])
        if node.op == "get_attr":
            object.__setattr__(root, str(node.target), None)
    return fx.GraphModule(root, graph, class_name="CapturedStep")
