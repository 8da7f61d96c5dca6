"""Analysis: find the role of every parameter in a model from the parameter graph.

A role has a name and a class. The name says what a place does, from where its values come from and go to: "query" for a
linear map whose result is the query of an attention, for example. The class distinguishes places of one name in
different surroundings.

Classes are the colours after one round of Weisfeiler & Lehman (1968) colour refinement. A place sees its own kind, the
kinds of the places around it, and the marks on the way, in both directions; the hash is that of Shervashidze et al.
(2011). One round is enough, because names look further where it matters. More rounds would distinguish the ends of a
chain of equal layers from its middle.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import Tensor, fx

from baoc_compile.passes.blocks.parameter_graph import INPUT, OUTPUT, STREAM, Place, parameter_graph
from baoc_compile.passes.blocks.record_calls import ForwardGraph

ROUNDS = 1

_WEIGHTS = ("linear", "convolution")
_PASSED_BY_NAMES = ("norm", "scale")  # kinds of places that names look through


@dataclass(frozen=True)
class ParameterRole:
    """What a parameter is for in the model.

    name: a readable name, such as "mlp in".
    surroundings: hashes of the places' surroundings; equal for isomorphic places.
    first_use: position in the program of the first call that uses the parameter.
    """

    name: str
    surroundings: tuple[str, ...]
    first_use: int


def roles_by_index(forward: ForwardGraph, parameters: Sequence[Tensor]) -> dict[int, ParameterRole]:
    """Map the index of every parameter that the model uses to its role."""
    seen = dict(forward.placeholders_of(parameters))
    found = parameter_roles(forward) if seen else {}
    return {i: found[placeholder] for i, placeholder in seen.items() if placeholder in found}


def parameter_roles(forward: ForwardGraph) -> dict[fx.Node, ParameterRole]:
    """Map the placeholder of every parameter that is used to its role.

    A parameter that is used in several places is named after all of them, in the order of use: "embedding+head".
    """
    graph = parameter_graph(forward)
    names, classes = _names(graph), _classes(graph)
    uses: dict[fx.Node, list[Place]] = defaultdict(list)
    for place, parameters in sorted((p, ps) for p, ps in graph.nodes(data="parameters") if ps):
        for parameter in parameters:
            uses[parameter].append(place)
    return {
        parameter: ParameterRole(
            "+".join(dict.fromkeys(names[place] for place in places)),
            tuple(sorted({classes[place] for place in places})),
            places[0][0],
        )
        for parameter, places in uses.items()
    }


def _names(graph: nx.DiGraph) -> dict[Place, str]:
    kind = {node: name or node for node, name in graph.nodes(data="kind")}
    weights = [node for node in graph if kind[node] in _WEIGHTS]
    before = {weight: list(_neighbours(graph, weight, forward=False)) for weight in weights}
    after = {weight: list(_neighbours(graph, weight)) for weight in weights}

    def is_mlp_out(weight: Place) -> bool:
        """Return whether a linear map takes an activation or product of linear maps and adds to the residual stream."""
        fed = any(kind[node] == "linear" and via & {"activation", "product"} for node, via in before[weight])
        return kind[weight] == "linear" and fed and any(node == STREAM for node, _ in after[weight])

    outs = {weight for weight in weights if is_mlp_out(weight)}

    def name_of(weight: Place) -> str:
        slots = {mark for node, via in after[weight] if kind[node] == "attention" for mark in via}
        roles = [slot for slot in ("query", "key", "value") if slot in slots]
        if roles:
            return "qkv" if len(roles) == 3 else "+".join(roles)
        if any(kind[node] == "attention" for node, _ in before[weight]):
            return "attention out"
        if weight in outs:
            return "mlp out"
        if kind[weight] == "linear":
            for out, via in after[weight]:
                if out in outs:
                    is_alone = all(node == weight for node, _ in before[out])
                    return "mlp gate" if {"activation", "product"} <= via and not is_alone else "mlp in"
        ends = {kind[node] for node, _ in after[weight]}
        if OUTPUT in ends and not ends & {*_WEIGHTS, "attention", STREAM}:
            return "head"
        return kind[weight]

    names = kind | {weight: name_of(weight) for weight in weights}
    owners = {place: owner for place, owner in graph.nodes(data="owner") if owner is not None}
    return names | {bias: f"{names[owner]} bias" for bias, owner in owners.items()}


def _neighbours(graph: nx.DiGraph, place: Place, forward: bool = True) -> Iterator[tuple[Place, frozenset[str]]]:
    """Yield the next nodes (or the previous ones) that are not norms or scales, with the marks on the way."""
    ahead = [(place, frozenset[str]())]
    while ahead:
        at, marks = ahead.pop()
        for n in graph.successors(at) if forward else graph.predecessors(at):
            via = marks | (graph.edges[at, n] if forward else graph.edges[n, at])["via"]
            if graph.nodes[n].get("kind") in _PASSED_BY_NAMES:
                ahead.append((n, via))
            else:
                yield n, via


def _classes(graph: nx.DiGraph) -> dict[Place, str]:
    """Map every place to its colour, a hash of its surroundings.

    The surroundings end at the residual stream, at norms, since the outputs of all norms are alike, and at sums.
    """
    kind = {place: name or place for place, name in graph.nodes(data="kind")}
    around: dict[Place, set[tuple[str, Any]]] = {place: set() for place in graph}
    for before, after, via in graph.edges(data="via"):
        marks = "+".join(sorted(via - {"sum"}))
        if "sum" in via or STREAM in (before, after) or kind[before] in (INPUT, "norm"):
            around[after].add((f"from {marks}", STREAM if "sum" in via else kind[before]))
            if kind[before] != "norm":
                around[before].add(("to", STREAM))
        else:
            around[after].add((f"from {marks}", before))
            around[before].add((f"to {marks}", after))
    places = [node for node in graph if not isinstance(node, str)]
    colours: dict[Any, str] = {place: kind[place] for place in places}
    for _ in range(ROUNDS):
        seen = {p: sorted((way, colours.get(end, end)) for way, end in around[p]) for p in places}
        colours = {p: hashlib.sha256(repr((colours[p], seen[p])).encode()).hexdigest()[:12] for p in places}
    return {place: colours[graph.nodes[place].get("owner") or place] for place in places}
