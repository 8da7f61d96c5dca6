"""Rewrite: let a rule carry slots that it does not write.

A slot that is stored as its difference to the weight is stored anew whenever the weight changes, even by a step that has
nothing to do with it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import fx

from baoc_compile.core.codec import Slot
from baoc_compile.core.names import identifier
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule
from baoc_compile.kernels.dialect.nodes import ValueMeta, meta_of, set_meta


@lru_cache(maxsize=512)
def carry_slots(rule: UpdateRule, keys: tuple[str, ...]) -> UpdateRule:
    """Return the rule with a new value for each of the slots `keys`: the old one, where the rule gives them none."""
    names = {i.key: i.name for i in rule.inputs if i.kind == "slot"}
    lacking = [key for key in keys if key not in rule.created and names.get(key) not in rule.replaced]
    if not lacking:
        return rule
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    inputs, slots, taken = list(rule.inputs), list(rule.slots), {i.name for i in rule.inputs}
    for node in rule.gm.graph.nodes:
        if node.op == "placeholder":
            copied[node] = set_meta(graph.node_copy(node), meta_of(node))
    known = {str(node.target): copied[node] for node in copied}
    for key in lacking:
        if key not in names:
            names[key] = identifier(key, taken)
            taken.add(names[key])
            known[names[key]] = set_meta(graph.placeholder(names[key]), ValueMeta("element", torch.float32))
            inputs.append(RuleInput(names[key], "slot", key))
            slots.append(Slot(key, follows_weight=True))
    for node in rule.gm.graph.nodes:
        if node.op == "call_function":
            copied[node] = set_meta(graph.node_copy(node, lambda old: copied[old]), meta_of(node))
    (returned,) = rule.gm.graph.output_node().args
    graph.output((*(copied[value] for value in returned), *(known[names[key]] for key in lacking)))
    outputs = (*rule.outputs, *(RuleOutput("new", names[key]) for key in lacking))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    return replace(rule, gm=gm, inputs=tuple(inputs), outputs=outputs, slots=tuple(slots))
