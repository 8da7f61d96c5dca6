"""Write a traced piece as an update rule: its calls in the dialect, its reductions as nodes, and what is proven of its slots."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import Slot
from baoc_compile.core.names import identifier
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule
from baoc_compile.kernels.dialect.nodes import ValueMeta, has_meta, meta_of, set_meta
from baoc_compile.kernels.dialect.operations import NO_OPS, is_supported, name_of, unsupported_reason
from baoc_compile.passes.rules.find_recurrence import prove_recurrences
from baoc_compile.passes.rules.line_places import Misplaced, Places
from baoc_compile.passes.rules.prove_signs import prove_signs
from baoc_compile.passes.rules.reductions import Reducer, is_reduction, reduction_of

aten = torch.ops.aten


class NotElementwise(Exception):
    """A piece is not a pure elementwise function; the message says why."""


def write_rule(
    gm: fx.GraphModule, inputs: list[RuleInput], created: dict[str, bool], exported: int, shape: tuple[int, ...]
) -> UpdateRule:
    """Return the rule of a traced piece. Raises NotElementwise if there is none.

    inputs: what the placeholders are.
    created: key of every state entry that the piece makes -> whether it is a number.
    exported: how many numbers the piece exports.
    shape: the parameter's shape.
    """
    writer = _RuleWriter(gm, inputs, shape)
    try:
        writer.copy()
    except Misplaced as reason:
        raise NotElementwise(str(reason)) from None
    returned: Any = gm.graph.output_node().args[0]
    outputs = writer.outputs([*returned], created, exported)
    graph, inputs = writer.graph, [*writer.sizes, *inputs]
    graph.output(tuple(outputs.values()))
    graph.eliminate_dead_code()
    _drop_unused(graph, inputs)
    kept = tuple(i for i in inputs if any(n.target == i.name for n in graph.nodes if n.op == "placeholder"))
    canonical = fx.GraphModule(torch.nn.Module(), graph)
    slots = prove_signs(canonical, kept, [*outputs], [Slot(i.key) for i in kept if i.kind == "slot"])
    slots = prove_recurrences(canonical, kept, [*outputs], slots)
    if exported:  # what is averaged first might wait for what is exported
        slots = tuple(replace(s, why_not_shared="the step exchanges numbers between parameters") for s in slots)
    return UpdateRule(canonical, kept, tuple(outputs), slots)


class _RuleWriter:
    """A writer of one rule's graph.

    sizes: the rule's inputs of the number of elements, in all and in a row.
    graph: the graph.
    """

    def __init__(self, gm: fx.GraphModule, inputs: list[RuleInput], shape: tuple[int, ...]):
        self.gm, self.inputs, self.graph = gm, inputs, fx.Graph()
        taken = {i.name for i in inputs}
        self.sizes = [
            RuleInput(identifier(name, taken), "scalar", origin=name, bounds=(1.0, math.inf))
            for name in ("numel", "columns")
        ]
        numbers = (set_meta(self.graph.placeholder(i.name), ValueMeta("scalar", torch.float64)) for i in self.sizes)
        self.reducer = Reducer(self.graph, *numbers)
        self.placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        lines = {str(n.target): i.origin for n, i in zip(self.placeholders, inputs, strict=True) if i.kind == "lines"}
        self.places = Places(shape, lines)  # type: ignore[arg-type]
        self.copied: dict[fx.Node, fx.Node] = {}

    def copy(self) -> None:
        """Copy all calls. Raises NotElementwise and Misplaced."""
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                self.copied[node] = self.graph.placeholder(self.inputs[self.placeholders.index(node)].name)
            elif node.op == "call_function":
                self.copied[node] = self._call(node)
                if has_meta(self.copied[node]):  # the call became an alias of a node that was copied before
                    continue
            elif node.op == "get_attr":
                value = getattr(self.gm, node.target)
                if value.ndim:
                    raise NotElementwise(f"constant tensor of shape {tuple(value.shape)}")
                arguments = (value.item(),), {"dtype": torch.float64}
                self.copied[node] = self.graph.call_function(aten.scalar_tensor.default, *arguments)
            else:
                continue
            set_meta(self.copied[node], self._meta(node))

    def outputs(self, returned: list[fx.Node], created: dict[str, bool], exported: int) -> dict[RuleOutput, fx.Node]:
        """Return what the rule returns. `created`, `exported`: see `write_rule`. Raises NotElementwise."""
        found: dict[RuleOutput, fx.Node] = {}
        returned_inputs = len(returned) - len(created) - exported  # constants are not returned
        for rule_input, placeholder, value in zip(
            self.inputs[:returned_inputs], self.placeholders, returned[:returned_inputs], strict=False
        ):
            if self.copied[value] is not self.copied[placeholder]:
                if rule_input.kind == "lines" and self.places.of(value) != rule_input.origin:
                    raise NotElementwise(f"state {rule_input.key!r} becomes a value of other dimensions")
                found[RuleOutput("new", rule_input.name)] = self.copied[value]
        known = {i.key: i.name for i in self.inputs if i.kind == "slot"}
        for key, value in zip(created, returned[returned_inputs : len(returned) - exported], strict=True):
            # state[key] = f(state[key]) replaces the slot
            output = RuleOutput("new", known[key]) if key in known else RuleOutput("created", key=key)
            if created[key]:
                if meta_of(self.copied[value]).per != "scalar":
                    raise NotElementwise(f"it makes state {key!r} of single elements")
                output = RuleOutput("number", identifier(key, {i.name for i in self.inputs}), key)
            if found.setdefault(output, self.copied[value]) is not self.copied[value]:
                raise NotElementwise(f"state {key!r} is changed in place and replaced in the same step")
        for position in range(exported):
            value = returned[len(returned) - exported + position]
            if meta_of(self.copied[value]).per != "scalar":
                raise NotElementwise("it exchanges numbers with other updates that are no reductions")
            found[RuleOutput("exported", f"exported_{position}")] = self.copied[value]
        self._check_lines(found)
        return found

    def _check_lines(self, outputs: dict[RuleOutput, fx.Node]) -> None:
        """Raise NotElementwise if new lines depend on other state that the step changes: they are stored after it."""
        lines = {i.name: i for i in self.inputs if i.kind == "lines"}
        changed = {o.name for o in outputs if o.kind == "new"} | {i.name for i in self.inputs if i.kind == "counter"}
        for output, value in outputs.items():
            if output.kind != "new" or output.name not in lines:
                continue
            stack, seen = [value], set()
            while stack:
                node = stack.pop()
                if node in seen or reduction_of(node):
                    continue
                seen.add(node)
                stack += node.all_input_nodes
                if node.op == "placeholder" and str(node.target) in changed - {output.name}:
                    raise NotElementwise(f"state {lines[output.name].key!r} depends on {node.target!r}")

    def _meta(self, node: fx.Node) -> ValueMeta:
        """Describe a value; floating-point values get the rule's types, whatever their type in the user's code."""
        dtype, is_spread = node.meta["val"].dtype, self.places.is_spread(node)
        if dtype.is_floating_point:
            dtype = torch.float32 if is_spread else torch.float64
        return ValueMeta("element" if is_spread else "scalar", dtype)

    def _call(self, node: fx.Node) -> fx.Node:
        """Copy one functional ATen call into the dialect: drop no-ops, write reductions, turn constant tensors into scalars."""
        graph, copied, value = self.graph, self.copied, node.meta["val"]
        name = name_of(node.target)
        if not isinstance(value, torch.Tensor):
            raise NotElementwise(unsupported_reason(node.target))
        if is_reduction(node):
            is_of_lines = self.places.of(node.args[0]) in ("rows", "columns")  # type: ignore[arg-type]
            if is_of_lines and name not in ("mean", "max", "amax", "min", "amin"):
                raise NotElementwise(f"{name} of values for each row or column")
            return self.reducer.write(node, *(copied[a] for a in node.args if isinstance(a, fx.Node)))
        place = self.places.of(node)
        folded = self.places.folded(node)
        if folded is not None and folded == self.places.of(node.args[0]):  # type: ignore[arg-type]
            return copied[node.args[0]]  # type: ignore[index]
        if folded is not None:
            return self.reducer.write_lines(node, copied[node.args[0]], place)  # type: ignore[index]
        if self.places.is_outer_product(node):
            factors = tuple(copied[a] for a in node.args if isinstance(a, fx.Node))
            return graph.call_function(aten.mul.Tensor, factors)
        if name in NO_OPS or name in ("unsqueeze", "squeeze"):
            return copied[node.args[0]]  # type: ignore[index]
        if name == "_to_copy" and value.is_floating_point() and node.args[0].meta["val"].is_floating_point():  # type: ignore[union-attr]
            return copied[node.args[0]]  # type: ignore[index]
        if name == "clamp":
            return self._clamp(node)
        if name == "copy":
            return copied[node.args[1]]  # type: ignore[index]
        if name == "mul" and type(node.args[1]) is int and node.args[1] == 1:
            return copied[node.args[0]]  # type: ignore[index]
        constant: Any = {"zeros_like": 0.0, "ones_like": 1.0, "zeros": 0.0, "ones": 1.0}.get(name)
        if name in ("full", "full_like"):
            constant = node.args[1]
        if constant is not None:
            call = graph.call_function(aten.scalar_tensor.default, (constant,), {"dtype": torch.float64})
            return set_meta(call, ValueMeta("scalar", torch.float64))
        if not is_supported(node.target):
            raise NotElementwise(unsupported_reason(node.target))
        return graph.node_copy(node, lambda old: copied[old])

    def _clamp(self, node: fx.Node) -> fx.Node:
        found = self.copied[node.args[0]]  # type: ignore[index]
        for target, bound in zip(
            (aten.clamp_min.default, aten.clamp_max.default), (*node.args[1:], None, None), strict=False
        ):
            if bound is not None:
                found = set_meta(self.graph.call_function(target, (found, bound)), self._meta(node))
        return found


def _drop_unused(graph: fx.Graph, inputs: list[RuleInput]) -> None:
    """Remove the inputs that no node reads, except the parameter, the slots and the number of steps."""
    for node in list(graph.nodes):
        if node.op != "placeholder" or node.users:
            continue
        found = next(i for i in inputs if i.name == node.target)
        if found.kind in ("scalar", "grad", "counter") and not found.counts_steps:
            graph.erase_node(node)
