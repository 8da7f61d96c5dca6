"""Rewrite: split a rule at its reductions into rules that are launched one after the other.

A reduction is known only when all elements have been seen, so what it reads is computed by a rule of its own, which stores
the result beside the state. Reductions that need no others share a launch. Nothing that a rule writes changes before the
last one, the update, so each of them starts from the same old values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import fx

from baoc_compile.core.names import identifier
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule
from baoc_compile.kernels.dialect.nodes import ValueMeta, set_meta
from baoc_compile.passes.rules.find_recurrence import ancestors
from baoc_compile.passes.rules.reduce_state import merge_equal_calls, reduce_state, rule_like
from baoc_compile.passes.rules.reductions import reduction_of


def launched_rules(rule: UpdateRule, dropped: Collection[str], shared: Collection[str]) -> tuple[UpdateRule, ...]:
    """Return the rules that a step launches, in order: those that average shared slots, those that reduce, the update, lines.

    Before all others are those that compute what the rule exports, if it does. After the update, one gives lines their new
    values.

    dropped, shared: keys of the slots that are dropped and shared. Raises NoRecurrence; see `reduce_state`.
    """
    early: tuple[UpdateRule, ...] = ()
    if rule.exports:
        early, rule = split_reductions(_returning(rule, True)), _returning(rule, False)
    reduced = reduce_state(rule, dropped, shared)
    *reductions, update = split_reductions(reduced.update)
    return (*early, *reduced.averages, *reductions, *_split_lines(update))


def _split_lines(rule: UpdateRule) -> tuple[UpdateRule, ...]:
    """Return the update, and after it the rule that gives lines their new values: the means of what they are spread over."""
    of = {i.name: i.origin for i in rule.inputs_of("lines")}
    if not any(o.name in of for o in rule.outputs):
        return (rule,)
    elements, lines = _with_outputs(rule, lambda o: o.name not in of), _with_outputs(rule, lambda o: o.name in of)
    kinds = (RuleOutput(f"{of[o.name]} mean", o.name) for o in lines.outputs)  # type: ignore[arg-type]
    return elements, replace(lines, outputs=tuple(kinds))


def _returning(rule: UpdateRule, exported: bool) -> UpdateRule:
    """Return the rule without what it exports, or with nothing but that."""
    return _with_outputs(rule, lambda output: (output.kind == "exported") is exported)


def _with_outputs(rule: UpdateRule, wanted: Callable[[RuleOutput], bool]) -> UpdateRule:
    """Return the rule with some of its outputs."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(rule.gm.graph, copied)
    (returned,) = rule.gm.graph.output_node().args
    kept = {o: copied[v] for o, v in zip(rule.outputs, returned, strict=True) if wanted(o)}
    graph.output(tuple(kept.values()))
    return rule_like(rule, graph, tuple(kept))


def split_reductions(rule: UpdateRule) -> tuple[UpdateRule, ...]:
    """Return the rules that reduce, in order, and then the update, which reads their results as "reduced" inputs."""
    found = []
    if any(map(reduction_of, rule.gm.graph.nodes)):
        graph = _copy(rule.gm.graph)
        merge_equal_calls(graph)
        rule = replace(rule, gm=fx.GraphModule(torch.nn.Module(), graph))
    while pending := [n for n in rule.gm.graph.nodes if reduction_of(n)]:
        ready = [n for n in pending if not any(reduction_of(a) for a in ancestors(n) - {n})]
        taken = {i.name for i in rule.inputs}
        names: dict[fx.Node, str] = {}
        for node in ready:
            names[node] = identifier(reduction_of(node).replace(" ", "_"), taken)
            taken.add(names[node])
        found.append(_reducing(rule, names))
        rule = _reading(rule, names)
    return (*found, rule)


def _reducing(rule: UpdateRule, names: dict[fx.Node, str]) -> UpdateRule:
    """Return the rule that computes what is reduced."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(rule.gm.graph, copied)
    graph.output(tuple(copied[node.args[0]] for node in names))  # type: ignore[index]
    outputs = tuple(RuleOutput(reduction_of(node), name) for node, name in names.items())  # type: ignore[arg-type]
    return rule_like(rule, graph, outputs)


def _reading(rule: UpdateRule, names: dict[fx.Node, str]) -> UpdateRule:
    """Return the rule with inputs in place of the reductions."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    placeholders = [n for n in rule.gm.graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        copied[node] = graph.node_copy(node)
    for node, name in names.items():
        per, dtype = ("element", torch.float32) if _lines_of(node) else ("scalar", torch.float64)
        copied[node] = set_meta(graph.placeholder(name), ValueMeta(per, dtype))  # type: ignore[arg-type]
    for node in rule.gm.graph.nodes:
        if node.op == "call_function" and node not in copied:
            copied[node] = graph.node_copy(node, lambda old: copied[old])
    (returned,) = rule.gm.graph.output_node().args
    graph.output(tuple(copied[value] for value in returned))
    reduced = (RuleInput(name, "reduced", origin=_lines_of(n)) for n, name in names.items())  # type: ignore[arg-type]
    inputs = (*rule.inputs, *reduced)
    return rule_like(replace(rule, inputs=inputs), graph, rule.outputs)


def _lines_of(node: fx.Node) -> str:
    """Return "rows" or "columns" if a node reduces each of them, else an empty text."""
    lines, _, fold = reduction_of(node).rpartition(" ")
    return lines if fold else ""


def _copy(source: fx.Graph) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(source, {}))
    return graph
