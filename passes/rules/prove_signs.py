"""Analysis: prove by interval arithmetic which slots are never negative, and which must not be stored lossily.

A slot is non-negative if its new value is >= 0 whenever the old values of all non-negative slots and counters are. The
greatest fixpoint of that statement is taken. Nothing is proven about a slot that the rule does not write.

A slot must stay exact if it feeds a square root or logarithm whose argument is not proven >= 0. Such an argument may be
>= 0 only because exact states agree with each other (centered RMSprop's E[g^2] - E[g]^2), and a rounding error there
gives NaN.

An interval contains every value that the program computes, in float32 or in float64. Its bounds are float32 numbers,
rounded outward; rounding is monotonic, so a rounded value stays within them. NaN lies in every interval, and so does
the result of a division by 0, whose sign would be that of the zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from baoc_compile.core.codec import Slot
from baoc_compile.core.rule import RuleInput, RuleOutput

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)
NONNEGATIVE: Interval = (0.0, math.inf)

#: Magnitudes between which bounds are exact. Outward rounding skips all others: float32 differences of larger numbers
#: overflow, and GPUs may flush smaller ones to 0.
LARGEST, SMALLEST = 2.0**100, 2.0**-126


def prove_signs(
    gm: fx.GraphModule, inputs: Sequence[RuleInput], outputs: Sequence[RuleOutput], slots: list[Slot]
) -> tuple[Slot, ...]:
    """Return `slots` with `nonnegative` and `why_exact` filled in."""
    (returned,) = gm.graph.output_node().args
    new_value = {o.name: value for o, value in zip(outputs, returned, strict=True) if o.kind == "new"}
    names = {i.key: i.name for i in inputs if i.kind == "slot"}
    proven = {i.name for i in inputs if i.kind in ("slot", "counter", "lines") and i.name in new_value}
    while True:
        intervals = _intervals(gm, {i.name: NONNEGATIVE if i.name in proven else i.bounds for i in inputs})
        failed = {name for name in proven if intervals[new_value[name]][0] < 0}
        if not failed:
            break
        proven -= failed
    exact = _why_exact(gm, intervals, {i.name: i.key for i in inputs if i.kind == "slot"})
    return tuple(replace(s, nonnegative=names[s.key] in proven, why_exact=exact.get(s.key, "")) for s in slots)


def _intervals(gm: fx.GraphModule, known: dict[str, Interval]) -> dict[fx.Node, Interval]:
    intervals: dict[fx.Node, Interval] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            intervals[node] = known[node.target]
        elif node.op == "call_function":
            intervals[node] = _outward(_interval(node, [_of(a, intervals) for a in node.args]))
    return intervals


def _of(argument: Any, intervals: dict[fx.Node, Interval]) -> Interval:
    if isinstance(argument, fx.Node):
        return intervals[argument]
    return _outward((float(argument), float(argument))) if isinstance(argument, (int, float)) else ANY


def _outward(interval: Interval) -> Interval:
    """Return the smallest interval with float32 bounds that contains `interval`."""
    return _below(interval[0]), -_below(-interval[1])


def _below(bound: float) -> float:
    """Return the largest float32 bound that is <= `bound`; -inf for NaN."""
    if math.isnan(bound) or bound < -LARGEST:
        return -math.inf
    if abs(bound) < SMALLEST:
        return -SMALLEST if bound < 0 else 0.0
    nearest = np.float32(min(bound, LARGEST))
    return float(nearest if float(nearest) <= bound else np.nextafter(nearest, np.float32(-math.inf)))


def _interval(node: fx.Node, args: list[Interval]) -> Interval:
    name = node.target.overloadpacket.__name__
    if name in ("mul", "div") and node.args[0] is node.args[1]:
        return NONNEGATIVE
    if name == "pow" and isinstance(node.args[1], (int, float)) and node.args[1] % 2 == 0:
        return NONNEGATIVE
    if name == "_to_copy" and not node.kwargs.get("dtype", torch.float32).is_floating_point:
        return ANY
    rule = _RULES.get(name)
    if name in ("mean", "amax"):  # whatever the dimensions
        args = args[:1]
    return ANY if rule is None else rule(*args)


def _product(a: Interval, b: Interval) -> Interval:
    corners = [0.0 if x == 0 or y == 0 else x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotient(a: Interval, b: Interval) -> Interval:
    if b[0] < 0 < b[1]:
        return ANY
    if b[0] >= 0:  # dividing by a number >= 0 preserves the sign
        return (0.0 if a[0] >= 0 else -math.inf, 0.0 if a[1] <= 0 else math.inf)
    return _quotient((-a[1], -a[0]), (-b[1], -b[0]))


def _sum(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1]


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def _magnitude(a: Interval) -> Interval:
    return (0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1])), max(abs(a[0]), abs(a[1])))


def _interpolate(a: Interval, b: Interval, weight: Interval) -> Interval:
    return _hull(a, b) if weight[0] >= 0 and weight[1] <= 1 else ANY


def _power(a: Interval, b: Interval) -> Interval:
    if a[0] >= 0 and a[1] <= 1 and b[0] >= 0:
        return (0.0, 1.0)
    return NONNEGATIVE if a[0] >= 0 else ANY


_RULES: dict[str, Callable[..., Interval]] = {
    "add": _sum,
    "sub": lambda a, b: _sum(a, (-b[1], -b[0])),
    "neg": lambda a: (-a[1], -a[0]),
    "mul": _product,
    "div": _quotient,
    "reciprocal": lambda a: _quotient((1.0, 1.0), a),
    "abs": _magnitude,
    "sqrt": lambda a: NONNEGATIVE,
    "rsqrt": lambda a: NONNEGATIVE,
    "exp": lambda a: NONNEGATIVE,
    "sigmoid": lambda a: (0.0, 1.0),
    "tanh": lambda a: (-1.0, 1.0),
    "sign": lambda a: (0.0 if a[0] >= 0 else -1.0, 0.0 if a[1] <= 0 else 1.0),
    "pow": _power,
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "where": lambda condition, a, b: _hull(a, b),
    "lerp": _interpolate,
    "mean": lambda a: a,
    "max": lambda a: a,
    "amax": lambda a: a,
    "scalar_tensor": lambda a: a,
    "_to_copy": lambda a: a,
}


def _why_exact(gm: fx.GraphModule, intervals: dict[fx.Node, Interval], slots: dict[str, str]) -> dict[str, str]:
    """Map the key of every slot that must stay exact to the reason. `slots`: input name -> key."""
    reasons: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target.overloadpacket.__name__ not in ("sqrt", "rsqrt", "log"):
            continue
        argument = node.args[0]
        if not isinstance(argument, fx.Node) or intervals[argument][0] >= 0:
            continue
        feeding = sorted(slots[n.target] for n in _ancestors(argument) if n.op == "placeholder" and n.target in slots)
        for key in feeding:
            together = " and ".join(repr(k) for k in feeding)
            reasons[key] = f"the rule takes a square root or logarithm that needs {together} to agree exactly"
    return reasons


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, stack = {node}, [node]
    while stack:
        for i in stack.pop().all_input_nodes:
            if i not in found:
                found.add(i)
                stack.append(i)
    return found
