"""The backend of `torch.compile(..., backend="baoc")`, and the pipeline behind it.

    record    passes/capture     the optimizer's step, run once on stand-ins: calls, numbers, guards
    rules     passes/rules       one update rule for each structure
    plan      passes/plan        how every slot is stored
    programs  passes/programs    decode, rule and encode as one graph, compiled
    rewrite   passes/rewrite     one launch for each program
    run       runtime/own_step   check, numbers, launches, write-backs

An optimizer's step never reaches the backend: baoc's own step runs in its place (`runtime/lead_steps.py`). What the backend
sees are the graphs of everything else, such as the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from baoc_compile.core.torch_private import lookup_backend
from baoc_compile.options import Options
from baoc_compile.passes.blocks.record_forward import record_graph
from baoc_compile.prepare import adopt
from baoc_compile.runtime.lead_steps import ADOPT, lead_all
from baoc_compile.runtime.session import saw_forward


def baoc(
    gm: fx.GraphModule, example_inputs: list[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Hand a graph to the inner backend, after looking at it: it may tell what roles parameters have in the model.

    gm: the graph that Dynamo traced.
    example_inputs: its inputs.
    options: the options of `torch.compile`; see `Options`.

    Raises OptionError and PlanError for bad options.
    """
    parsed = Options.parse(options)
    if all(node.op != "call_function" or node.target is torch.ops.baoc.step.default for node in gm.graph.nodes):
        return gm.forward
    watch_graph(gm, example_inputs)
    return inner(gm, example_inputs, parsed.inner_backend)


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


lead_all()
ADOPT[:] = [adopt]
