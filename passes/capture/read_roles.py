"""Is this graph an optimizer step, of which optimizer, and what is each of its inputs?

It asks Dynamo for the sources of graph inputs, for the frame being traced, and for the dictionaries that the traced code
will have changed when it returns.
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
    """What `read_roles` found: the optimizer, the role of every input, and which outputs become state.

    `is_step` is False for a part of a step that did not trace as one graph: it changes state but no parameter, or it
    is a function that the step calls, whose caller holds on to state tensors that must not be replaced.
    `code`: of the function that is traced.
    """

    is_step: bool
    table: ParameterTable
    roles: dict[fx.Node, InputRole]
    new_state: dict[fx.Node, InputRole]
    code: CodeType | None = None


def read_roles(gm: fx.GraphModule, known: Iterable[Any] = ()) -> TracedRoles | None:
    """None when the graph is not an optimizer step (it then goes to the inner backend untouched).

    known: optimizers whose state a part of a step may change out of sight of its own frame.
    """
    translator = InstructionTranslator.current_tx()
    if translator is None:
        return None
    inputs = list(_inputs(gm, translator))
    candidates = list(_optimizers(inputs, translator))
    optimizer = next((o for o in candidates if _changes(_parameters(o), inputs)), None)
    if optimizer is None:
        partly = next((o for o in (*candidates, *known) if _changes(_state_tensors(o) | _parameters(o), inputs)), None)
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
    """Before a function is traced anew since its state was replaced. Dynamo keeps traces whose guards can never hold again
    and counts them, and runs a function that has been traced `recompile_limit` times eagerly from then on. All traces
    of the function go, when that is near; other optimizers that run the same code are traced once more."""
    if len(cached_traces(code)) >= recompile_limit() - 1:
        forget_traces(code)


def _inputs(gm: fx.GraphModule, translator: Any) -> Iterator[tuple[fx.Node, Any, Any]]:
    """(node, live value, source) of every placeholder and attribute; sources exist for placeholders only."""
    for node in gm.graph.nodes:
        if node.op == "get_attr" and node.users:
            yield node, getattr(gm, node.target, None), None
        elif node.op == "placeholder":
            source = source_of(node)
            yield node, None if source is None else _evaluate(source, translator), source


def _evaluate(source: Any, translator: Any) -> Any:
    """The live object behind a Dynamo source; None if it can't be reached."""
    name = source.name() if callable(source.name) else source.name
    try:
        return eval(name, {"L": translator.f_locals, "G": translator.f_globals, "torch": torch})
    except Exception as error:  # the sources of synthetic inputs are not Python expressions
        log.debug("source %s has no live value: %s", name, error)
        return None


def _looks_like_optimizer(value: Any) -> bool:
    return hasattr(value, "param_groups") and hasattr(value, "state") and hasattr(value, "step")


def _optimizers(inputs: list[tuple[fx.Node, Any, Any]], translator: Any) -> Iterator[Any]:
    """Candidates: owners of an input, along its source; then whatever the traced frame can see."""
    for _, _, source in inputs:
        while source is not None:
            if getattr(source, "member", None) in ("param_groups", "state"):
                value = _evaluate(source.base, translator)
                if _looks_like_optimizer(value):
                    yield value
            source = getattr(source, "base", None)
    for namespace in (translator.f_locals, translator.f_globals):
        yield from (value for value in list(namespace.values()) if _looks_like_optimizer(value))


def _parameters(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _state_tensors(optimizer: Any) -> set[int]:
    entries = (e for e in optimizer.state.values() if isinstance(e, dict)) if hasattr(optimizer.state, "values") else ()
    return {id(value) for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)}


def _changes(owned: set[int], inputs: list[tuple[fx.Node, Any, Any]]) -> bool:
    """Does the graph change one of these tensors in place?"""
    return any(id(value) in owned and _is_written(node) for node, value, _ in inputs)


def _is_written(node: fx.Node) -> bool:
    """An in-place operation takes the node as its first argument, alone or in a list."""
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
    """`l_self_param_groups_0_lr_` -> `lr`."""
    words = node.name.strip("_").split("_")
    return "_".join(words[words.index("groups") + 2 :]) if "groups" in words[:-2] else node.name


def _new_state(gm: fx.GraphModule, table: ParameterTable, translator: Any) -> dict[fx.Node, InputRole]:
    """Outputs that the traced code stores in `optimizer.state[parameter][key]`, read off its pending side effects."""
    returned = {node.name: node for node in returned_nodes(gm.graph)}
    found: dict[fx.Node, InputRole] = {}
    if not returned:  # all state is there already
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
    """(parameter, [(key, variable)]) for every dictionary keyed by a live tensor, and for every tensor's own one."""
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
    """(key variable, value variable) of a Dynamo dictionary, whatever class it has in this release."""
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
