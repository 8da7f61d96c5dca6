"""The backend of `torch.compile(step, backend="baoc")`: the whole pipeline, in the order in which it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import Slot, weight_slots
from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.step_graph import StepGraph
from baoc_compile.core.torch_private import lookup_backend
from baoc_compile.options import Options
from baoc_compile.passes.blocks.record_forward import record_graph
from baoc_compile.passes.capture.read_roles import TracedRoles, read_roles
from baoc_compile.passes.capture.refuse_overlap import refuse_overlap
from baoc_compile.passes.capture.split_components import split_components
from baoc_compile.passes.capture.unbatch_foreach import unbatch_foreach
from baoc_compile.passes.plan.choose_storage import choose_storage
from baoc_compile.passes.programs.make_programs import start_programs
from baoc_compile.passes.rules.extract_rules import RuleClass, extract_rules
from baoc_compile.runtime.compile_lock import compile_lock
from baoc_compile.runtime.compiled_step import CompiledStep, StepHandle
from baoc_compile.runtime.configurator import start_configurator
from baoc_compile.runtime.device_memory import bytes_left
from baoc_compile.runtime.notices import notice, refuse_untraceable, watch_fused_steps
from baoc_compile.runtime.paused_gc import paused_gc
from baoc_compile.runtime.session import saw_forward, session_of, sessions
from baoc_compile.state.entries import state_bytes


def baoc(
    gm: fx.GraphModule, example_inputs: list[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a traced optimizer step; hand every other graph to the inner backend untouched.

    gm: the graph that Dynamo traced.
    example_inputs: its inputs.
    options: the options of `torch.compile`; see `Options`.

    Raises OptionError, BudgetError and PlanError while compiling, before anything is changed.
    """
    parsed = Options.parse(options)
    traced = read_roles(gm, filter(None, (session.optimizer() for session in sessions())))
    if traced is None:
        watch_graph(gm, example_inputs)
        return inner(gm, example_inputs, parsed.inner_backend)
    optimizer = traced.table.optimizer
    refuse_untraceable(optimizer)
    if not traced.is_step:
        notice(optimizer, "its step was traced in parts; TORCH_LOGS=graph_breaks shows where and why")
        return gm.forward  # runs eagerly, which works on compressed state too
    session = session_of(optimizer)
    storage = session.storage
    request = session.request.or_else(parsed.request, is_settled=bool(storage.parameters))
    with compile_lock(), paused_gc():
        step = capture(gm, traced)
        step.table = session.table()
        try:
            refuse_overlap(step.table)
            split = split_components(step)
        except UnsupportedStep as reason:
            notice(optimizer, str(reason))
            return gm.forward
        classes = extract_rules(step, split.components)
        if request.budget is not None and request.budget.is_deferred:
            left = bytes_left(device_of(step), state_bytes(optimizer))
            request = replace(request, memory_budget=request.budget.resolved(left))
        storage = choose_storage(request, storage, step.table, slots_by_parameter(step, classes))
        session.request = request
        session.store(storage)
        start_configurator(session)
        start_programs(step, storage, classes)
    compiled = CompiledStep(session, gm, step, split.prelude, classes, parsed.inner_backend, traced.code)
    session.steps.append(compiled)
    release(gm)
    return StepHandle(compiled)


def capture(gm: fx.GraphModule, traced: TracedRoles) -> StepGraph:
    """Return the traced graph as a flat step graph with roles."""
    flat = unbatch_foreach(gm)
    roles = {flat.inputs[node]: role for node, role in traced.roles.items()}
    # scalars only: parameters and state are looked up in the optimizer, and the graph must not keep them alive
    scalars = [str(n.target) for n, role in roles.items() if n.op == "get_attr" and role.kind == "scalar"]
    return StepGraph(
        traced.table,
        flat.graph,
        {name: getattr(gm, name) for name in scalars},
        roles,
        {flat.returned[node]: role for node, role in traced.new_state.items()},
        [flat.inputs[node] for node in gm.graph.nodes if node.op == "placeholder"],
    )


def slots_by_parameter(step: StepGraph, classes: list[RuleClass]) -> dict[int, tuple[Slot, ...]]:
    """Return the slots to decide on, by parameter: those of the rules, and the float state of pieces that run as traced."""
    found: dict[int, tuple[Slot, ...]] = {}
    for rule_class in classes:
        for piece in rule_class.members:
            if rule_class.rule is not None:
                index, slots = piece.component.parameters[0], rule_class.rule.slots
                found[index] = (*slots, *weight_slots(step.table.parameters[index], slots))
                continue
            for index in piece.component.parameters:
                shape = step.table.parameters[index].shape
                found[index] = tuple(
                    Slot(key)
                    for key, value in step.table.state(index).items()
                    if isinstance(key, str)
                    and isinstance(value, torch.Tensor)
                    and value.is_floating_point()
                    and value.shape == shape
                    and value.ndim
                )
    return found


def watch_graph(gm: fx.GraphModule, example_inputs: list[Any]) -> None:
    """Record a graph that trains parameters: it may tell what their roles in the model are."""
    inputs = (*example_inputs, *gm.parameters())
    if torch.is_grad_enabled() and any(isinstance(i, torch.nn.Parameter) and i.requires_grad for i in inputs):
        forward = record_graph(gm, example_inputs)
        if forward is not None:
            saw_forward(forward)


def inner(gm: fx.GraphModule, example_inputs: list[Any], backend: Any) -> Callable[..., Any]:
    """Compile with another backend, given by name or as a function."""
    return (lookup_backend(backend) if isinstance(backend, str) else backend)(gm, example_inputs)


def device_of(step: StepGraph) -> torch.device:
    """Return the device of the first parameter; the CPU if there is none."""
    return step.table.parameters[0].device if step.table.parameters else torch.device("cpu")


def release(gm: fx.GraphModule) -> None:
    """Drop the tensors from torch's graph, which torch keeps as long as the optimizer, so that replaced state is freed."""
    for name in {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}:
        if isinstance(getattr(gm, name, None), torch.Tensor):
            delattr(gm, name)


watch_fused_steps()
