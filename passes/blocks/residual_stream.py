"""Analysis: which values of a forward graph are the residual stream, and which are parameters or constants.

A residual addition adds two values that are computed from one value x, one of them with the help of parameters and the
other without. x and the sum are on the stream. Where both are computed with the help of parameters (a shortcut with a
projection), x is.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from torch import fx

from baoc_compile.passes.blocks.aten_calls import is_lookup, op_name
from baoc_compile.passes.blocks.record_calls import ForwardGraph


def stored_values(forward: ForwardGraph) -> dict[fx.Node, frozenset[fx.Node]]:
    """Values that are computed from parameters and numbers alone, with those parameters; none for constants."""
    stored: dict[fx.Node, frozenset[fx.Node]] = {node: frozenset({node}) for node in forward.parameters}
    for node in forward.graph.nodes:
        if node.op == "call_function" and all(a in stored for a in node.all_input_nodes):
            parameters = frozenset().union(*(stored[a] for a in node.all_input_nodes))
            if not (parameters and is_lookup(op_name(node))):
                stored[node] = parameters
    return stored


def find_stream(forward: ForwardGraph, stored: Mapping[fx.Node, frozenset[fx.Node]]) -> set[fx.Node]:
    """The values on the residual stream. `stored`: see `stored_values`."""
    nodes = list(forward.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    all_nodes = set(nodes)
    learned: set[fx.Node] = set()  # values computed from inputs and parameters
    found: set[fx.Node] = set()

    def fork(a: fx.Node, b: fx.Node, among: set[fx.Node]) -> tuple[fx.Node, dict[int, bool]] | None:
        """The last value that a and b are both computed from, and whether each is with the help of parameters."""
        ways = {a: {0: False}, b: {1: False}}
        ahead = sorted((-order[a], -order[b]))  # a heap, latest first
        while ahead:
            node = nodes[-heapq.heappop(ahead)]
            if len(ways[node]) == 2:
                return node, ways[node]
            helped = any(stored.get(i) for i in node.all_input_nodes)
            for i in node.all_input_nodes:
                if i not in among:
                    continue
                if i not in ways:
                    heapq.heappush(ahead, -order[i])
                    ways[i] = {}
                for side, already in ways[node].items():
                    ways[i][side] = ways[i].get(side, False) or already or helped
        return None

    for node in nodes:
        inputs = node.all_input_nodes
        if node not in stored and any(i in learned or stored.get(i) for i in inputs):
            learned.add(node)
        if node.op != "call_function" or op_name(node) != "add" or len(inputs) != 2 or node not in learned:
            continue
        among = learned
        if not all(i in learned for i in inputs):  # an input, to which the first layer adds
            if any(i in stored or i.meta["shape"] != node.meta["shape"] for i in inputs):
                continue
            among = all_nodes
        forked = fork(inputs[0], inputs[1], among)
        if forked is not None and any(forked[1].values()):
            found.add(forked[0])
            if not all(forked[1].values()):
                found.add(node)
    return found
