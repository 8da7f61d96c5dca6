"""Analysis: decide whether a slot's new value is decay * old value + increment, with one decay for the whole tensor.

Every value between the old one and the new one is written as decay * slot + rest, through the operations that preserve
that form. An exponential moving average, heavy-ball momentum and Adagrad's sum qualify. A running maximum does not, nor
does Adadelta's `acc_delta`, whose increment depends on itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import Slot
from baoc_compile.core.rule import RuleInput, RuleOutput
from baoc_compile.kernels.dialect.nodes import is_constant, meta_of, per_of, set_meta
from baoc_compile.kernels.dialect.operations import name_of
from baoc_compile.passes.rules.reductions import reduction_of

aten = torch.ops.aten

#: A number, or a 0-dim node.
Scalar = Any


class NoRecurrence(Exception):
    """A slot has no linear recurrence; the message says why."""


@dataclass(frozen=True)
class Recurrence:
    """A linear recurrence s' = decay * s + increment.

    graph: takes the rule's inputs without the slot, and returns (decay, increment).
    decay: a 0-dim node of the graph, or a number if it is known.
    increment: an elementwise node of the graph.
    """

    graph: fx.Graph
    decay: Scalar
    increment: fx.Node

    def reads(self, name: str, of: Any = None) -> bool:
        """Return whether the recurrence, or only its value `of`, depends on the input `name`."""
        roots = [self.decay, self.increment] if of is None else [of]
        return any(n.op == "placeholder" and n.target == name for r in roots for n in ancestors(r))


def prove_recurrences(
    gm: fx.GraphModule, inputs: Sequence[RuleInput], outputs: Sequence[RuleOutput], slots: Sequence[Slot]
) -> tuple[Slot, ...]:
    """Return `slots` with `why_not_shared` and `why_not_dropped` filled in."""
    return tuple(_proven(gm, inputs, outputs, slot) for slot in slots)


def _proven(gm: fx.GraphModule, inputs: Sequence[RuleInput], outputs: Sequence[RuleOutput], slot: Slot) -> Slot:
    try:
        recurrence = find_recurrence(gm, inputs, outputs, slot.key)
    except NoRecurrence as why:
        return replace(slot, why_not_shared=f"{slot.key!r} {why}", why_not_dropped="")
    counters = [i.name for i in inputs if i.kind == "counter" or i.varies]
    reason = ""
    if any(recurrence.reads(name, recurrence.decay) for name in counters):
        reason = f"the decay of {slot.key!r} changes with the step count, so it has no steady state"
    elif recurrence.decay == 1.0 and not step_counters(gm, inputs, outputs):
        reason = f"{slot.key!r} grows without end, and the rule counts no steps"
    return replace(slot, why_not_shared="", why_not_dropped=reason)


def find_recurrence(
    gm: fx.GraphModule, inputs: Sequence[RuleInput], outputs: Sequence[RuleOutput], key: str
) -> Recurrence:
    """Find the recurrence of the slot `key`. Raises NoRecurrence if it has none."""
    name = next(i.name for i in inputs if i.kind == "slot" and i.key == key)
    output = RuleOutput("new", name)
    new_value = new_values(gm, outputs).get(output)
    if new_value is None:
        raise NoRecurrence("is read but never written by the rule")
    placeholder = next(n for n in gm.graph.nodes if n.op == "placeholder" and n.target == name)
    affected = _reachable(placeholder, new_value)
    others = {value for other, value in new_values(gm, outputs).items() if other != output}
    if affected & others:
        raise NoRecurrence("is used by the step with its old value, not only through its new one")
    if new_value in others:
        raise NoRecurrence("is a copy of something else that the step computes")
    affine = _Affine(gm.graph, placeholder)
    decay, increment = affine.of(new_value)
    if decay is None:
        raise NoRecurrence("is replaced without its old value")
    if increment is None or per_of(increment) != "element":
        raise NoRecurrence("is not driven by the gradient")
    if any(reduction_of(n) for root in (decay, increment) for n in ancestors(root)):
        raise NoRecurrence("is driven by a mean or maximum of the whole tensor")
    affine.graph.output((decay, increment))
    affine.graph.eliminate_dead_code()
    return Recurrence(affine.graph, decay, increment)


def new_values(gm: fx.GraphModule, outputs: Sequence[RuleOutput]) -> dict[RuleOutput, fx.Node]:
    """Map every output of the rule to the node that computes it."""
    (returned,) = gm.graph.output_node().args
    return dict(zip(outputs, returned, strict=True))


def step_counters(gm: fx.GraphModule, inputs: Sequence[RuleInput], outputs: Sequence[RuleOutput]) -> list[str]:
    """List the names of the inputs that count steps: such scalars, and counters whose new value is the old one plus 1."""
    found = [i.name for i in inputs if i.counts_steps]
    for rule_input in inputs:
        value = (
            new_values(gm, outputs).get(RuleOutput("new", rule_input.name)) if rule_input.kind == "counter" else None
        )
        if value is not None and value.op == "call_function" and name_of(value.target) == "add":
            terms = [_number(a) if _number(a) is not None else getattr(a, "target", None) for a in value.args]
            if terms in ([rule_input.name, 1.0], [1.0, rule_input.name]):
                found.append(rule_input.name)
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, fx.Node) and is_constant(value):
        value = value.args[0]
    return float(value) if isinstance(value, (int, float)) else None


def ancestors(value: Any) -> set[fx.Node]:
    """Return `value` and the nodes that it is computed from; none if it is not a node."""
    found: set[fx.Node] = set()
    stack = [value] if isinstance(value, fx.Node) else []
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found


def _reachable(start: fx.Node, barrier: fx.Node) -> set[fx.Node]:
    """Return `start` and the nodes that depend on it by a path that avoids `barrier`."""
    found, stack = {start}, [start]
    while stack:
        for user in stack.pop().users:
            if user is not barrier and user not in found:
                found.add(user)
                stack.append(user)
    return found


class _Affine:
    """A builder that writes values as decay * slot + rest in a graph of its own; None stands for 0."""

    def __init__(self, source: fx.Graph, slot: fx.Node):
        self.graph = fx.Graph()
        self.known: dict[fx.Node, tuple[Scalar, fx.Node | None]] = {slot: (1.0, None)}
        for node in source.nodes:
            if node.op == "placeholder" and node is not slot:
                self.known[node] = None, set_meta(self.graph.node_copy(node), meta_of(node))

    def of(self, value: Any) -> tuple[Scalar, Any]:
        """Return (decay, rest) of a value. Raises NoRecurrence if it is not linear in the slot."""
        if not isinstance(value, fx.Node):
            return None, value
        if value not in self.known:
            terms = [self.of(a) for a in value.args]
            if all(decay is None for decay, _ in terms):
                copy = self.graph.create_node(
                    "call_function", value.target, tuple(rest for _, rest in terms), dict(value.kwargs)
                )
                self.known[value] = None, set_meta(copy, meta_of(value))
            else:
                self.known[value] = self._dependent(value, terms)
        return self.known[value]

    def _dependent(self, node: fx.Node, terms: list[tuple[Scalar, Any]]) -> tuple[Scalar, Any]:
        name = name_of(node.target)
        if name == "_to_copy":
            return terms[0]
        if name == "neg":
            return self._scaled(terms[0], -1.0)
        if name in ("add", "sub", "rsub"):
            a, b = terms if name != "rsub" else terms[::-1]
            return self._sum(a, b if name == "add" else self._scaled(b, -1.0))
        if name == "mul" and self._is_scalar(terms[0]):
            return self._scaled(terms[1], terms[0][1])
        if name == "mul" and self._is_scalar(terms[1]):
            return self._scaled(terms[0], terms[1][1])
        if name == "div" and self._is_scalar(terms[1]):
            return tuple(self._call(aten.div.Tensor, part, terms[1][1]) for part in terms[0])  # type: ignore[return-value]
        if name == "lerp" and self._is_scalar(terms[2]):
            weight = terms[2][1]
            beyond = self._call(aten.sub.Tensor, 1.0, weight)
            return self._sum(self._scaled(terms[0], beyond), self._scaled(terms[1], weight))
        raise NoRecurrence(f"is not a linear recurrence (its new value is a {name} of the old one)")

    @staticmethod
    def _is_scalar(term: tuple[Scalar, Any]) -> bool:
        decay, rest = term
        return decay is None and (not isinstance(rest, fx.Node) or per_of(rest) == "scalar")

    def _sum(self, a: tuple[Scalar, Any], b: tuple[Scalar, Any]) -> tuple[Scalar, Any]:
        return tuple(self._call(aten.add.Tensor, x, y) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]

    def _scaled(self, term: tuple[Scalar, Any], factor: Scalar) -> tuple[Scalar, Any]:
        return tuple(self._call(aten.mul.Tensor, part, factor) for part in term)  # type: ignore[return-value]

    def _call(self, target: Any, a: Any, b: Any) -> Any:
        """Build a + b, a - b, a * b or a / b; None is 0, and numbers are folded."""
        name = name_of(target)
        if a is None or b is None:
            return None if name in ("mul", "div") else b if a is None else a
        if name == "mul" and 1.0 in (a, b):
            return b if a == 1.0 else a
        if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
            return {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b if b else float("nan")}[name]
        if not isinstance(a, fx.Node):  # a number comes second in the dialect
            if name == "div":
                target, a, b = aten.mul.Tensor, self._call_one(aten.reciprocal.default, b), a
            elif name == "sub":
                target, a, b = aten.rsub.Scalar, b, a
            else:
                a, b = b, a
        nodes = [x for x in (a, b) if isinstance(x, fx.Node)]
        like = next((x for x in nodes if per_of(x) == "element"), nodes[0])
        return set_meta(self.graph.call_function(target, (a, b)), meta_of(like))

    def _call_one(self, target: Any, a: fx.Node) -> fx.Node:
        return set_meta(self.graph.call_function(target, (a,)), meta_of(a))
