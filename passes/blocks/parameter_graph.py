"""Analysis: derive the parameter graph from a forward graph: all uses of parameters, and the data flow between them.

A call that combines a value with a parameter is a *place* of that parameter. An edge from one place to another means
that the result of the first reaches the second without meeting a parameter in between; the edge's marks record what
happened to it on the way. Views, casts, dropout, masks and rotations leave no mark.

The graph is cut at the residual stream, which layers read from and add to. A layer therefore has the same surroundings
whether it is the first, the last or in between.
"""

from __future__ import annotations

import networkx as nx
from torch import fx

from baoc_compile.passes.blocks.aten_calls import (
    MARKS,
    MARKS_OF_SEVERAL,
    MATMULS,
    kind_of_use,
    named_arguments,
    op_name,
)
from baoc_compile.passes.blocks.record_calls import ForwardGraph
from baoc_compile.passes.blocks.residual_stream import find_stream, stored_values

INPUT, STREAM, OUTPUT = "input", "stream", "output"  # nodes that are not places

Place = tuple[int, str]  # position of the call in the program, name of its argument
Marks = frozenset[str]
Origins = dict[Place | str, Marks]  # where a value comes from -> what happened to it since


def parameter_graph(forward: ForwardGraph) -> nx.DiGraph:
    """Build the parameter graph. Its nodes are places, attentions, and the constants INPUT, STREAM and OUTPUT.

    Attributes of a place:
        kind: "linear", "convolution", "embedding", "position", "norm", "scale", "bias", "token", "query", "key",
            "value", or the operation's name.
        parameters: the placeholders of its parameters.
        owner: of a bias, the place whose result it is added to; None if there is no such place.

    An attention has the kind "attention" and incoming edges marked "query", "key" and "value", whether it is one call
    or is spelled out as matmul, softmax, matmul. If spelled out, the first matrix is the query.

    The attribute `via` of an edge holds its marks.
    """
    return _Flow(forward).run()


class _Flow:
    """One pass over a forward graph, which follows the origins of every value."""

    def __init__(self, forward: ForwardGraph) -> None:
        self.graph = nx.DiGraph()
        self.nodes = list(forward.graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.stored = stored_values(forward)
        self.streams = find_stream(forward, self.stored)
        self.origins: dict[fx.Node, Origins] = {}

    def run(self) -> nx.DiGraph:
        for node in self.nodes:
            if node in self.stored:
                origins: Origins = {}
            elif node.op == "output":
                for result in node.all_input_nodes:
                    self._connect(_from_places(self.origins[result]), OUTPUT)
                continue
            elif node.op == "placeholder":
                origins = {INPUT: frozenset()}
            else:
                origins = self._call(node)
            if node in self.streams:
                self._connect(_from_places(origins), STREAM)
                origins = {STREAM: frozenset()}
            self.origins[node] = origins
        scores = [n for n, kind in self.graph.nodes(data="kind") if kind == "matmul" and not self.graph.out_degree(n)]
        self.graph.remove_nodes_from(scores)
        return self.graph

    def _call(self, node: fx.Node) -> Origins:
        """Return the origins of a call's result."""
        name = op_name(node)
        arguments = list(named_arguments(node))
        if "attention" in name or "attn" in name:
            return self._attention(node, arguments[:3])
        weights = [(slot, a) for slot, a in arguments if self.stored.get(a)]
        operands = [self.origins[a] for _, a in arguments if a not in self.stored]
        if weights:
            return self._use(node, name, weights, operands)
        if name == "add":
            return self._add(node)
        if name in MATMULS and all(_places(o) for o in operands[-2:]) and len(operands) > 1:
            return self._matmul(node, *operands[-2:])
        return _mixed(operands, "normalized" if "norm" in name else MARKS.get(name, ""), MARKS_OF_SEVERAL.get(name, ""))

    def _use(self, node: fx.Node, name: str, weights: list[tuple[str, fx.Node]], operands: list[Origins]) -> Origins:
        """Add the places of a call that takes parameters; return the origins of its result."""
        origins = _mixed(operands)
        normalized = any("normalized" in marks for marks in origins.values())
        main: list[Place] = []
        biases: list[Place] = []
        for slot, weight in weights:
            place, kind = (self.order[node], slot), kind_of_use(name, slot, weight.meta["shape"], normalized)
            if kind == "embedding" and not origins:  # its indices are computed: 0, 1, 2, ...
                kind = "position"
            self.graph.add_node(place, kind=kind, parameters=self.stored[weight], owner=None)
            (biases if kind == "bias" else main).append(place)
        before = [s for s, marks in origins.items() if not isinstance(s, str) and not marks]
        owner = main[0] if main else before[0] if len(before) == len(origins) == 1 else None
        for bias in biases:
            self.graph.nodes[bias]["owner"] = owner
        if not main:
            return origins
        here: Origins = {place: frozenset() for place in main}
        if self.graph.nodes[main[0]]["kind"] in ("position", "token") and name in MARKS_OF_SEVERAL:
            return _mixed([*operands, here], of_several=MARKS_OF_SEVERAL[name])  # the other operands flow on
        for place in main:
            self._connect(origins, place)
        return here

    def _attention(self, node: fx.Node, arguments: list[tuple[str, fx.Node]]) -> Origins:
        attention = (self.order[node], "attention")
        self.graph.add_node(attention, kind="attention", parameters=frozenset())
        for role, (slot, a) in zip(("query", "key", "value"), arguments, strict=False):
            origins = self.origins[a]
            if self.stored.get(a):
                origins = {(self.order[node], slot): frozenset()}
                self.graph.add_node((self.order[node], slot), kind=role, parameters=self.stored[a], owner=None)
            self._connect(origins, attention, role)
        return {attention: frozenset()}

    def _matmul(self, node: fx.Node, left: Origins, right: Origins) -> Origins:
        """Return the origins of a product of two values.

        In an attention that is spelled out, it is either the scores or the product of the scores with the values.
        """
        for weights, values in ((left, right), (right, left)):
            scores = next((s for s, marks in weights.items() if self._is_scores(s) and "softmax" in marks), None)
            if scores is not None:
                attention = (self.order[node], "attention")
                self.graph.add_node(attention, kind="attention", parameters=frozenset())
                for source, _, via in list(self.graph.in_edges(scores, data="via")):
                    for side, role in (("left", "query"), ("right", "key")):
                        if side in via:
                            self._connect({source: via - {"left", "right"}}, attention, role)
                self._connect({s: marks for s, marks in weights.items() if s != scores}, attention)
                self._connect(values, attention, "value")
                return {attention: frozenset()}
        product = (self.order[node], "matmul")
        self.graph.add_node(product, kind="matmul", parameters=frozenset())
        self._connect(left, product, "left")
        self._connect(right, product, "right")
        return {product: frozenset()}

    def _is_scores(self, source: Place | str) -> bool:
        return source in self.graph and self.graph.nodes[source].get("kind") == "matmul"

    def _add(self, node: fx.Node) -> Origins:
        operands = [self.origins[a] for a in node.all_input_nodes]
        for a in node.all_input_nodes:  # an embedding that the whole batch shares is one of positions
            if a.meta["shape"] != node.meta["shape"] and len(operands) > 1:
                for source, marks in self.origins[a].items():
                    if not marks and self.graph.nodes.get(source, {}).get("kind") == "embedding":
                        self.graph.nodes[source]["kind"] = "position"
        if any(self._is_scores(s) and "softmax" not in marks for o in operands for s, marks in o.items()):
            return _mixed(operands)
        if {STREAM: frozenset()} in operands and len([o for o in operands if _places(o)]) > 1:
            self.streams.add(node)
        return _mixed(operands, of_several="sum")

    def _connect(self, origins: Origins, target: Place | str, mark: str = "") -> None:
        for source, marks in origins.items():
            known = self.graph.edges[source, target]["via"] if self.graph.has_edge(source, target) else frozenset()
            self.graph.add_edge(source, target, via=known | marks | ({mark} if mark else frozenset()))


def _mixed(operands: list[Origins], mark: str = "", of_several: str = "") -> Origins:
    """Merge the origins of `operands`, with `mark` added, and `of_several` if the operands differ in origin."""
    mixed: Origins = {}
    for origins in operands:
        for source, marks in origins.items():
            mixed[source] = mixed.get(source, frozenset()) | marks
    if len(mixed) > 1:
        mixed.pop(INPUT, None)
    sources = {frozenset(_places(o)) for o in operands if _places(o)}
    new = {m for m in (mark, of_several if len(sources) > 1 else "") if m}
    return {source: marks | new for source, marks in mixed.items()}


def _from_places(origins: Origins) -> Origins:
    return {source: marks for source, marks in origins.items() if source not in (INPUT, STREAM)}


def _places(origins: Origins) -> list[Place | str]:
    return [source for source in origins if source != INPUT]
