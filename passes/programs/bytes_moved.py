"""Count the bytes that a step reads and writes, which bound its time if memory and not arithmetic limits it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from baoc_compile.core.codec import Codec, weight_entry
from baoc_compile.core.rule import UpdateRule
from baoc_compile.passes.rules.split_reductions import launched_rules


def bytes_moved(rule: UpdateRule, codecs: Mapping[str, Codec], parameter: torch.Tensor) -> int:
    """Return the bytes that one step of one tensor reads and writes, over all its launches.

    rule: the tensor's update rule.
    codecs: the codec of every slot, and of the weight if it has one.
    parameter: gives the shape and the type; the gradient counts as of the same type.
    """
    by_mechanism = {m: tuple(s for s, c in codecs.items() if c.mechanism == m) for m in ("dropping", "sharing")}
    sizes = {key: codec.storage_bytes(parameter.shape) for key, codec in codecs.items()}
    weight = weight_entry(codecs)
    beside_weight = sizes[weight] if weight is not None else 0
    element = parameter.numel() * parameter.element_size()
    total = 0
    for launch in _launched(rule, by_mechanism["dropping"], by_mechanism["sharing"]):
        for rule_input in launch.inputs:
            reads = any(n.target == rule_input.name and n.users for n in launch.gm.graph.nodes if n.op == "placeholder")
            touches = int(reads) + int(rule_input.name in launch.replaced)
            if rule_input.kind == "param":
                total += touches * (element + beside_weight)
            elif rule_input.kind == "grad":
                total += touches * element
            elif rule_input.kind == "slot":
                total += touches * sizes[rule_input.key]
        total += sum(2 * sizes[key] for key in launch.averaged)
    return total


@cache
def _launched(rule: UpdateRule, dropped: tuple[str, ...], shared: tuple[str, ...]) -> tuple[UpdateRule, ...]:
    return launched_rules(rule, dropped, shared)
