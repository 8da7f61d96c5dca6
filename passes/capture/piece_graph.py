"""A recording as FX graphs: one piece, or the whole step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from baoc_compile.core.names import identifier
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Call, Piece, Recording, Value
from baoc_compile.passes.recorder.torch_calls import TENSOR_FORMS


def graph_of_piece(piece: Piece) -> fx.Graph:
    """Return a graph that takes the piece's inputs, scalars and constants, in this order.

    It returns the last value of every input, then the state entries that the piece creates, then what it exports. The node
    of a call carries it as `meta["call"]`.
    """
    graph = fx.Graph()
    nodes: dict[Any, fx.Node] = {}
    for kind, values in (("input", piece.inputs), ("scalar", piece.scalars)):
        for i, value in enumerate(values):
            nodes[value] = graph.placeholder(f"{kind}_{i}")
    constants = iter([graph.placeholder(f"constant_{i}") for i in range(len(piece.constants))])

    def constant(value: Any, call: Call, position: int | str) -> Any:
        return next(constants) if is_liftable(call, value, position) else value

    for call in piece.calls:
        _add(graph, call, nodes, constant)
    made = [value for _, value in piece.created]
    graph.output(tuple(nodes[value] for value in (*piece.final, *made, *piece.exported)))
    return graph


def graph_of_recording(recording: Recording, table: ParameterTable) -> fx.GraphModule:
    """Return the whole step as a graph, to look at: one call per tensor, with inputs named by their role."""
    graph = fx.Graph()
    nodes: dict[Any, fx.Node] = {}
    calls = [*recording.prelude, *(call for piece in recording.pieces for call in piece.calls)]
    taken: set[str] = set()

    def enter(value: Any) -> None:
        if value in nodes:
            return
        if isinstance(value, Expression):
            text = str(value.source.path[-1]) if value.source is not None else "number"
        else:
            role = value.role
            owner = table.short_name(role.parameter) if role.parameter >= 0 else ""
            text = f"{owner}_{role.kind if role.kind != 'state' else role.key}" if owner else str(role.key)
        name = identifier(text, taken)
        taken.add(name)
        nodes[value] = graph.placeholder(name)

    made = {result for call in calls for result in call.results}
    for call in calls:
        for value in operands_of(call):
            if value not in made:
                enter(value)
    while calls:  # late calls of the prelude wait for the pieces, and these for them
        waiting = []
        for call in calls:
            if all(value in nodes for value in operands_of(call)):
                _add(graph, call, nodes, lambda value, call, position: value)
            else:
                waiting.append(call)
        assert len(waiting) < len(calls)
        calls = waiting
    last = [v for piece in recording.pieces for v in (*piece.final, *(value for _, value in piece.created))]
    graph.output(tuple(dict.fromkeys(nodes[v] for v in last if v in nodes)))
    return fx.GraphModule(torch.nn.Module(), graph, class_name="RecordedStep")


def operands_of(argument: Any) -> list[Any]:
    """Return the values and expressions among the arguments of a call, or in nested lists, in order."""
    if isinstance(argument, (Value, Expression)):
        return [argument]
    if isinstance(argument, Call):
        return operands_of([*argument.arguments, *argument.options.values()])
    return [v for a in argument for v in operands_of(a)] if isinstance(argument, (list, tuple)) else []


def _add(graph: fx.Graph, call: Call, nodes: dict[Any, fx.Node], constant: Callable[..., Any]) -> None:
    """Add a call's node, and the nodes of its results."""

    def mapped(argument: Any, position: int | str) -> Any:
        if isinstance(argument, (Value, Expression)):
            return nodes[argument]
        if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
            return type(argument)(mapped(a, position) for a in argument)
        return constant(argument, call, position)

    arguments = tuple(mapped(a, i) for i, a in enumerate(call.arguments))
    options = {k: mapped(a, k) for k, a in call.options.items()}
    node = graph.create_node("call_function", call.function, arguments, options, name=identifier(call.name))
    node.meta["call"] = call
    if call.is_sequence:
        for i, result in enumerate(call.results):
            nodes[result] = graph.call_function(_entry, (node, i))
    else:
        (result,) = call.results
        nodes[result] = node


def _entry(values: Any, position: int) -> Any:
    return values[position]


def is_liftable(call: Call, value: Any, position: int | str) -> bool:
    """Return whether a literal of a call becomes an input of the rule.

    Hyperparameters do; 0, 1, non-finite numbers and exponents are part of the rule's structure.
    """
    is_exponent = call.name == "pow" and position in (1, "exponent", "other")
    is_number = type(value) is float and value not in (0.0, 1.0) and math.isfinite(value)
    return is_number and call.name in TENSOR_FORMS and not is_exponent
