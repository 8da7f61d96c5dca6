"""Rewrite: replace each `torch._foreach_*` call by one call per tensor, and order reads after in-place calls by edges.

In the rewritten graph a tensor that was changed in place is read through the result of the last call that changed it.
(An in-place call returns the tensor that it changed.) The graph contains no lists of tensors, its edges are the data
flow, and the update of one parameter is a connected component.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from baoc_compile.core.torch_private import FOREACH
from baoc_compile.passes.capture.torch_calls import is_ignored, operation, returned_nodes, single_function, spelled


@dataclass
class Flat:
    """A flat graph and how it corresponds to the traced one.

    graph: the flat graph; it returns the same values.
    inputs: placeholder or attribute of the traced graph -> its node in the flat graph.
    returned: node that the traced graph returns -> its node in the flat graph.
    """

    graph: fx.Graph
    inputs: dict[fx.Node, fx.Node]
    returned: dict[fx.Node, fx.Node]


def unbatch_foreach(gm: fx.GraphModule) -> Flat:
    """Flatten a traced step. Raises AttributeError for a list operation without a per-tensor form in torch."""
    graph = fx.Graph()
    flat: dict[fx.Node, Any] = {}  # node of gm -> node of graph, or a list of them
    latest: dict[fx.Node, fx.Node] = {}  # tensor -> the call that changed it last

    def read(node: fx.Node) -> Any:
        found = flat[node]
        return latest.get(alias_root(found), found) if isinstance(found, fx.Node) else found

    def lookup(argument: Any) -> Any:
        return fx.map_arg(argument, read)

    for node in gm.graph.nodes:
        unused = node.op == "get_attr" and not node.users  # torch has already deleted the attribute
        if unused or (node.op in ("call_function", "call_method") and is_ignored(node)):
            continue
        if node.op == "call_function" and spelled(node).startswith(FOREACH):
            flat[node] = _expand(graph, node, lookup(node.args), lookup(node.kwargs))
            latest |= {alias_root(new): new for new in flat[node]}
        elif node.target is operator.getitem and isinstance(flat.get(node.args[0]), list):
            flat[node] = flat[node.args[0]][node.args[1]]
        elif isinstance(out := node.kwargs.get("out"), fx.Node):
            others = {key: value for key, value in lookup(node.kwargs).items() if key != "out"}
            result = graph.call_function(node.target, lookup(node.args), others)
            result.meta = dict(node.meta)
            flat[node] = _store(graph, read(out), result)
            latest[alias_root(flat[node])] = flat[node]
        else:
            flat[node] = graph.node_copy(node, read)
            latest[alias_root(flat[node])] = flat[node]
    inputs = {old: flat[old] for old in gm.graph.nodes if old.op in ("placeholder", "get_attr") and old in flat}
    return Flat(graph, inputs, {old: read(old) for old in returned_nodes(gm.graph)})


def alias_root(node: fx.Node) -> fx.Node:
    """Follow a chain of in-place calls and `detach` back to the tensor that it changes."""
    while node.op in ("call_function", "call_method") and node.args and isinstance(node.args[0], fx.Node):
        name, inplace = operation(node)
        if not inplace and name != "detach":
            break
        node = node.args[0]
    return node


def _expand(graph: fx.Graph, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[fx.Node]:
    function, inplace = single_function(spelled(node))
    count = len(next(a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))))
    results = []
    for i in range(count):
        item_args = tuple(_item(graph, a, i) for a in args)
        item_kwargs = {k: _item(graph, a, i) for k, a in kwargs.items()}
        result = graph.call_function(function, item_args, item_kwargs)
        result.meta["example_value"] = _example(node, i)
        results.append(_store(graph, item_args[0], result) if inplace else result)
    return results


def _item(graph: fx.Graph, argument: Any, i: int) -> Any:
    """Return the argument of call i: entry i of a list or of a 1-d tensor of numbers, or the argument itself."""
    if isinstance(argument, (list, tuple)):
        return argument[i]
    if not isinstance(argument, fx.Node) or not getattr(argument.meta.get("example_value"), "ndim", 0):
        return argument
    if spelled(argument) == "stack":
        return argument.args[0][i]
    entry = graph.call_function(torch.select, (argument, 0, i))
    entry.meta["example_value"] = argument.meta["example_value"][i]
    return entry


def _store(graph: fx.Graph, destination: fx.Node, value: fx.Node) -> fx.Node:
    stored = graph.call_method("copy_", (destination, value))
    stored.meta["example_value"] = destination.meta.get("example_value")
    return stored


def _example(node: fx.Node, i: int) -> Any:
    examples = node.meta.get("example_value")
    return examples[i] if isinstance(examples, (list, tuple)) and i < len(examples) else None
