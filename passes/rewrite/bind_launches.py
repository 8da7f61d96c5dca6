"""Rewrite: bind the launches of a rewritten step to their parameters and state.

`baoc::fused_update` serves to read, trace and check a step. At run time, passing it thousands of tensors that never
change would cost more than everything else on the host, so they are bound once.
"""

from __future__ import annotations

import torch
from torch import fx

from baoc_compile.kernels.launch.fused_update import BoundLaunch


def bind_launches(gm: fx.GraphModule) -> tuple[fx.GraphModule, list[BoundLaunch]]:
    """Return the step with bound launches in place of operators, and the bound launches.

    A launch over state that this step creates stays an operator.
    """
    launches = []
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], lambda n: copied[n]))
        elif node.target is torch.ops.baoc.fused_update.default and _is_constant(node):
            _, params, grads, state, scalars = node.args
            launch = BoundLaunch(node.meta["baoc"], _tensors(gm, params), _tensors(gm, state))
            launches.append(launch)
            arguments = fx.map_arg((grads, scalars), lambda n: copied[n])
            copied[node] = graph.call_function(launch, arguments)
        else:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(gm, graph, class_name="BoundStep"), launches


def _is_constant(node: fx.Node) -> bool:
    _, params, _, state, _ = node.args
    return all(n.op == "get_attr" for nodes in (params, state) for n in nodes)


def _tensors(gm: fx.GraphModule, nodes: list[fx.Node]) -> list[torch.Tensor]:
    return [getattr(gm, str(node.target)) for node in nodes]
