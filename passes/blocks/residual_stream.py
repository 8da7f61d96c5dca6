"""Analysis: find the values of a forward graph that form the residual stream, and those that are stored.

A residual addition adds two values that are computed from one value x, one of them through parameters and the other
not. Then x and the sum are on the stream. If both are computed through parameters (a shortcut with a projection), only
x is.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from torch import fx

from baoc_compile.passes.blocks.aten_calls import is_lookup, op_name
from baoc_compile.passes.blocks.record_calls import ForwardGraph


def stored_values(forward: ForwardGraph) -> dict[fx.Node, frozenset[fx.Node]]:
    """Map every value computed from parameters and constants alone to those parameters; to none for a constant."""
    stored: dict[fx.Node, frozenset[fx.Node]] = {node: frozenset({node}) for node in forward.parameters}
    for node in forward.graph.nodes:
        if node.op == "call_function" and all(a in stored for a in node.all_input_nodes):
            parameters = frozenset().union(*(stored[a] for a in node.all_input_nodes))
            if not (parameters and is_lookup(op_name(node))):
                stored[node] = parameters
    return stored


def find_stream(forward: ForwardGraph, stored: Mapping[fx.Node, frozenset[fx.Node]]) -> set[fx.Node]:
    """Return the values on the residual stream. `stored`: the result of `stored_values`."""
    nodes = list(forward.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    all_nodes = set(nodes)
    learned: set[fx.Node] = set()  # values computed from inputs and parameters
    found: set[fx.Node] = set()

    def fork(a: fx.Node, b: fx.Node, among: set[fx.Node]) -> tuple[fx.Node, dict[int, bool]] | None:
        """Return the last value that a (side 0) and b (side 1) are both computed from; None if there is none.

        With it comes, for each side, whether the side is computed through parameters.
        """
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
        if not all(i in learned for i in inputs):  # one operand is an input, to which the first layer adds
            if any(i in stored or i.meta["shape"] != node.meta["shape"] for i in inputs):
                continue
            among = all_nodes
        forked = fork(inputs[0], inputs[1], among)
        if forked is not None and any(forked[1].values()):
            found.add(forked[0])
            if not all(forked[1].values()):
                found.add(node)
    return found
