"""Decide whether a traced graph is an optimizer step, of which optimizer, and what each input is.

The answers come from Dynamo: the sources of the graph's inputs, the frame being traced, and the pending writes to
dictionaries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import fx

from baoc_compile.core.step_graph import InputRole, ParameterTable
from baoc_compile.core.torch_private import (
    GradSource,
    InstructionTranslator,
    cached_traces,
    forget_traces,
    holders_of,
    recompile_limit,
    source_of,
)
from baoc_compile.passes.capture.torch_calls import operation, returned_nodes

log = logging.getLogger("baoc")


@dataclass
class TracedRoles:
    """What `read_roles` found in a traced graph.

    is_step: False for a part of a step that did not trace as one graph. Such a part changes state but no parameter, or
        is a function called by the step, whose caller holds state tensors that must not be replaced.
    table: the optimizer's parameters.
    roles: input node -> its role.
    new_state: output node -> the state entry that it becomes.
    code: the code of the traced function.
    """

    is_step: bool
    table: ParameterTable
    roles: dict[fx.Node, InputRole]
    new_state: dict[fx.Node, InputRole]
    code: CodeType | None = None


def read_roles(gm: fx.GraphModule, known: Iterable[Any] = ()) -> TracedRoles | None:
    """Read the roles of a traced graph's inputs; return None if the graph is not an optimizer step.

    gm: the graph, while Dynamo traces it.
    known: optimizers to consider besides those that the traced frame shows, for parts of steps.
    """
    translator = InstructionTranslator.current_tx()
    if translator is None:
        return None
    inputs = list(_inputs(gm, translator))
    candidates = list(_optimizers(inputs, translator))
    optimizer = next((o for o in candidates if _changes(_parameters(o), inputs)), None)
    if optimizer is None:
        partly = next((o for o in (*candidates, *known) if _is_part(gm, o, inputs, translator)), None)
        return None if partly is None else TracedRoles(False, ParameterTable.of(partly), {}, {})
    table = ParameterTable.of(optimizer)
    by_identity = dict(_known_tensors(table))
    roles = {}
    for node, value, source in inputs:
        role = by_identity.get(id(value)) if isinstance(value, torch.Tensor) else None
        if role is None and isinstance(source, GradSource):
            owner = by_identity.get(id(_evaluate(source.base, translator)))
            role = InputRole("grad", owner.parameter) if owner is not None else None
        roles[node] = role or InputRole("scalar", key=_scalar_name(node))
    return TracedRoles(True, table, roles, _new_state(gm, table, translator), translator.f_code)


def make_room_for_traces(code: CodeType) -> None:
    """Drop the traces of a function that is close to Dynamo's recompile limit.

    Call this before replaced state forces a new trace. Dynamo counts traces whose guards can never hold again, and runs
    a function eagerly after `recompile_limit` of them. All traces of the function are dropped; other optimizers that
    run the same code are traced once more.
    """
    if len(cached_traces(code)) >= recompile_limit() - 1:
        forget_traces(code)


def _inputs(gm: fx.GraphModule, translator: Any) -> Iterator[tuple[fx.Node, Any, Any]]:
    """Yield (node, live value, source) of every placeholder and attribute; only placeholders have a source."""
    for node in gm.graph.nodes:
        if node.op == "get_attr" and node.users:
            yield node, getattr(gm, node.target, None), None
        elif node.op == "placeholder":
            source = source_of(node)
            yield node, None if source is None else _evaluate(source, translator), source


def _evaluate(source: Any, translator: Any) -> Any:
    """Return the live object behind a Dynamo source, or None if it cannot be reached."""
    name = source.name() if callable(source.name) else source.name
    try:
        return eval(name, {"L": translator.f_locals, "G": translator.f_globals, "torch": torch})
    except Exception as error:  # the sources of synthetic inputs are not Python expressions
        log.debug("source %s has no live value: %s", name, error)
        return None


def _looks_like_optimizer(value: Any) -> bool:
    return hasattr(value, "param_groups") and hasattr(value, "state") and hasattr(value, "step")


def _optimizers(inputs: list[tuple[fx.Node, Any, Any]], translator: Any) -> Iterator[Any]:
    """Yield candidate optimizers: the owners of inputs first, then those among the frame's locals and globals."""
    for _, _, source in inputs:
        while source is not None:
            if getattr(source, "member", None) in ("param_groups", "state"):
                value = _evaluate(source.base, translator)
                if _looks_like_optimizer(value):
                    yield value
            source = getattr(source, "base", None)
    for namespace in (translator.f_locals, translator.f_globals):
        yield from (value for value in list(namespace.values()) if _looks_like_optimizer(value))


def _is_part(gm: fx.GraphModule, optimizer: Any, inputs: list[tuple[fx.Node, Any, Any]], translator: Any) -> bool:
    """Return whether the graph changes the optimizer's tensors or creates state for it."""
    owned = _state_tensors(optimizer) | _parameters(optimizer)
    return _changes(owned, inputs) or bool(_new_state(gm, ParameterTable.of(optimizer), translator))


def _parameters(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _state_tensors(optimizer: Any) -> set[int]:
    entries = (e for e in optimizer.state.values() if isinstance(e, dict)) if hasattr(optimizer.state, "values") else ()
    return {id(value) for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)}


def _changes(owned: set[int], inputs: list[tuple[fx.Node, Any, Any]]) -> bool:
    """Return whether the graph changes a tensor with an id in `owned` in place."""
    return any(id(value) in owned and _is_written(node) for node, value, _ in inputs)


def _is_written(node: fx.Node) -> bool:
    """Return whether an in-place operation takes the node as its first argument, alone or in a list."""
    for user in node.users:
        first = user.args[0] if user.args else None
        taken = first is node or (isinstance(first, (list, tuple)) and node in first)
        if user.op != "output" and taken and operation(user)[1]:
            return True
    return False


def _known_tensors(table: ParameterTable) -> Iterator[tuple[int, InputRole]]:
    for index, parameter in enumerate(table.parameters):
        yield id(parameter), InputRole("param", index)
        if parameter.grad is not None:
            yield id(parameter.grad), InputRole("grad", index)
        for key, value in table.state(index).items():
            if isinstance(value, torch.Tensor):
                yield id(value), InputRole("state", index, key)


def _scalar_name(node: fx.Node) -> str:
    """Shorten a scalar's name: `l_self_param_groups_0_lr_` becomes `lr`."""
    words = node.name.strip("_").split("_")
    return "_".join(words[words.index("groups") + 2 :]) if "groups" in words[:-2] else node.name


def _new_state(gm: fx.GraphModule, table: ParameterTable, translator: Any) -> dict[fx.Node, InputRole]:
    """Find the outputs that the traced code stores in `optimizer.state[parameter][key]`, from its side effects."""
    returned = {node.name: node for node in returned_nodes(gm.graph)}
    found: dict[fx.Node, InputRole] = {}
    if not returned:  # all state exists already
        return found
    try:
        index_of = {id(p): i for i, p in enumerate(table.parameters)}
        for owner, entries in _dictionaries(translator.output.side_effects, translator):
            index = index_of.get(id(owner), -1)
            for key, variable in entries:
                node = getattr(getattr(variable, "proxy", None), "node", None)
                if index >= 0 and node is not None and node.name in returned:
                    found[returned[node.name]] = InputRole("state", index, key)
    except (AttributeError, TypeError, KeyError) as error:
        log.info("cannot see where new state goes (%s); it is stored as traced and compressed one step later", error)
    return found


def _dictionaries(side_effects: Any, translator: Any) -> Iterator[tuple[Any, list[tuple[str, Any]]]]:
    """Yield (parameter, [(key, variable)]) for every traced dictionary that holds a parameter's state entries."""
    for variable in list(side_effects.id_to_variable.values()):
        source = getattr(variable, "source", None)
        for key, value in _entries(variable):
            owner = _evaluate(key.source, translator) if getattr(key, "source", None) is not None else None
            if isinstance(owner, torch.Tensor):
                yield owner, _named(_entries(value))
        index = getattr(source, "index", None)  # the source of optimizer.state[parameter]
        if index is not None and getattr(index, "base", None) is not None:
            owner = _evaluate(index, translator)
            if isinstance(owner, torch.Tensor):
                yield owner, _named(_entries(variable))


def _entries(variable: Any) -> list[tuple[Any, Any]]:
    """List (key variable, value variable) of a Dynamo dictionary, whatever its class in this release of torch."""
    variable = variable.realize() if hasattr(variable, "realize") else variable
    for holder in holders_of(variable):
        items = getattr(holder, "items", None)
        if isinstance(items, dict):
            return [(getattr(key, "vt", key), value) for key, value in items.items()]
    return []


def _named(entries: list[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    return [
        (key.value, value.realize() if hasattr(value, "realize") else value)
        for key, value in entries
        if isinstance(getattr(key, "value", None), str)
    ]
