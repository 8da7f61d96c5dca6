"""The rewritten step as an FX graph: the prelude, one `fused_update` node for each program, and replays."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from baoc_compile.core.names import identifier
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.rewrite.bind_launches import Bound


def rewritten_graph(bound: Bound, table: ParameterTable) -> fx.GraphModule:
    """Return a graph that takes the gradients and changes parameters and state, with the numbers of the last step.

    Parameters and state are attributes. `meta["baoc"]` of a node is its `Launch` or its `Replay`. It serves to look at;
    what runs are the bound launches.
    """
    graph, root = fx.Graph(), torch.nn.Module()
    taken = {*dir(root), *dir(fx.GraphModule)}
    attributes: dict[int, fx.Node] = {}
    grads: dict[int, fx.Node] = {}

    def named(text: str) -> str:
        name = identifier(text, taken)
        taken.add(name)
        return name

    def attribute(value: Any, text: str) -> fx.Node:
        if id(value) not in attributes:
            name = named(text)
            object.__setattr__(root, name, value)
            attributes[id(value)] = graph.get_attr(name)
        return attributes[id(value)]

    indices = sorted({i for launch in bound.launches for i in launch.launch.indices})
    for index in indices:
        grads[index] = graph.placeholder(named(f"{table.short_name(index)}_grad"))
    tensors = [graph.placeholder(named(f"number_{k}")) for k in range(len(bound.tensors))]
    for made in bound.launches:
        launch = made.launch
        names = [table.short_name(i) for i in launch.indices]
        params = [attribute(p, name) for p, name in zip(made.params, names, strict=True)]
        operands = [o.name for o in launch.state_operands]
        state = [
            attribute(t, f"{names[k // len(operands)]}_{operands[k % len(operands)]}") for k, t in enumerate(made.state)
        ]
        given = [grads[i] for i in launch.indices] if any(o.source == "grad" for o in launch.graph.pointers) else []
        verb = "average" if launch.graph.folds else "update"
        node = graph.call_function(
            torch.ops.baoc.fused_update.default,
            (launch.key, params, given, state, tensors),
            name=f"{verb}_{launch.graph.rule.key}",
        )
        node.meta["baoc"] = launch
        for row, numbers in enumerate(launch.numbers):
            numbers |= {name: float(made.numbers[row, k]) for name, k in made.column.items()}
    for replay in bound.replays:
        inputs = [attribute(table.parameters[i], table.short_name(i)) for i in replay.indices]
        node = graph.call_function(replay, (inputs,), name=replay.__name__)
        node.meta["baoc"] = replay
    graph.output(())
    return fx.GraphModule(root, graph, class_name="RewrittenStep")
