"""Rewrite: rule + configuration -> one graph: decode what is stored, run the rule, encode what must be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from baoc_compile.kernels.dialect import name_of
from baoc_compile.kernels.trace import traced_decode, traced_encode, traced_words
from torch import fx

from baoc_compile.codec import CLOCK_DTYPE, Codec
from baoc_compile.program import Kind, Operand, OperandSource, ProgramGraph, Signature
from baoc_compile.rule import UpdateRule

#: Elements per group when no codec of the configuration forms groups.
FREE_WIDTH = 256


def compose_program(rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature) -> ProgramGraph:
    """`configuration` gives a codec to every slot of `rule` and to every slot it creates."""
    sizes = {codec.group_size for codec in configuration.values() if codec.group_size}
    if len(sizes) > 1:
        raise ValueError(f"codecs with groups of {sorted(sizes)} elements cannot share a program")
    return _Composer(rule, configuration, signature, sizes.pop() if sizes else FREE_WIDTH).compose()


class _Composer:
    def __init__(self, rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature, width: int):
        self.rule, self.configuration, self.signature, self.width = rule, configuration, signature, width
        self.graph = fx.Graph()
        self.operands: dict[str, Operand] = {}
        self.nodes: dict[str, fx.Node] = {}  # operand -> its placeholder
        self.written: dict[str, fx.Node] = {}  # operand -> its new value

    def compose(self) -> ProgramGraph:
        self._declare_operands()
        values = {i.name: self._read(i.name, i.kind, i.key) for i in self.rule.inputs}
        returned = self._inline(self.rule.gm.graph, values, as_compute=True)
        for name, value in zip(self.rule.outputs, returned, strict=True):
            self._write(name, value)
        outputs = tuple(self.written)
        self.graph.output(tuple(self.written.values()))
        self.graph.eliminate_dead_code()
        used = {name for name, node in self.nodes.items() if node.users}
        operands = []
        for name, operand in self.operands.items():
            if name in used or name in self.written:
                operands.append(replace(operand, written=name in self.written, read=name in used))
            else:
                self.graph.erase_node(self.nodes[name])
        gm = fx.GraphModule(torch.nn.Module(), self.graph)
        return ProgramGraph(
            self.rule, dict(self.configuration), self.signature, gm, tuple(operands), outputs, self.width
        )

    def _operand(self, name: str, kind: Kind, dtype: torch.dtype, source: OperandSource, key: str = "") -> None:
        node = self.graph.placeholder(name)
        node.meta = {"kind": kind, "dtype": dtype}
        self.operands[name] = Operand(name, kind, dtype, source, key)
        self.nodes[name] = node

    def _declare_operands(self) -> None:
        signature = self.signature
        self._operand("param", "element", signature.param_dtype, "param")
        self._operand("grad", "element", signature.grad_dtype, "grad")
        for key, codec in self.configuration.items():
            for part in codec.parts:
                self._operand(f"{key}_{part.name}", part.per, part.dtype, "part", f"{key}.{part.name}")
            if codec.stochastic:
                self._operand(f"{key}_clock", "scalar", CLOCK_DTYPE, "clock", key)
                self._operand(f"{key}_salt", "scalar", CLOCK_DTYPE, "salt", key)
        for rule_input, dtype in zip(self.rule.inputs_of("counter"), signature.counter_dtypes, strict=True):
            self._operand(rule_input.name, "scalar", dtype, "counter", rule_input.key)
        for rule_input in self.rule.inputs_of("scalar"):
            self._operand(rule_input.name, "scalar", torch.float64, "scalar", rule_input.name)
        self._operand("index", "element", torch.int32, "index")
        self._operand("group_index", "group", torch.int32, "group_index")

    def _read(self, name: str, kind: str, key: str) -> fx.Node:
        if kind == "slot":
            codec = self.configuration[key]
            parts = [self.nodes[f"{key}_{part.name}"] for part in codec.parts]
            (value,) = self._inline(traced_decode(codec, self.width), parts, prefix=f"{key}_")
            return self._cast(value, self.signature.compute_dtype, f"{key}_value")
        target = torch.float64 if kind in ("counter", "scalar") else self.signature.compute_dtype
        return self._cast(self.nodes[name], target, f"{name}_value")

    def _write(self, name: str, value: fx.Node) -> None:
        key = next((i.key for i in self.rule.inputs if i.name == name and i.kind == "slot"), name)
        codec = self.configuration.get(key)
        if codec is None:
            self.written[name] = self._cast(value, self.operands[name].dtype, f"{name}_new")
            return
        stored_dtype = next(
            (p.dtype for p in codec.parts if p.name == "values" and not codec.stochastic), torch.float32
        )
        words: list[Any] = [0, 0]
        if codec.stochastic:
            inputs = [self.nodes[n] for n in (f"{key}_salt", f"{key}_clock", "index", "group_index")]
            *words, clock = self._inline(traced_words(self.width), inputs, prefix=f"{key}_")
            self.written[f"{key}_clock"] = clock
        value = self._cast(value, stored_dtype, f"{key}_new")
        parts = self._inline(traced_encode(codec, self.width), [value, *words], prefix=f"{key}_")
        self.written |= {f"{key}_{part.name}": node for part, node in zip(codec.parts, parts, strict=True)}

    def _cast(self, value: fx.Node, dtype: torch.dtype, name: str) -> fx.Node:
        if value.meta["dtype"] == dtype:
            return value
        node = self.graph.create_node(
            "call_function", torch.ops.aten._to_copy.default, (value,), {"dtype": dtype}, name=name
        )
        node.meta = {"kind": value.meta["kind"], "dtype": dtype}
        return node

    def _inline(self, source: fx.Graph, values: Any, prefix: str = "", as_compute: bool = False) -> list[fx.Node]:
        """Copies `source` with its placeholders bound to `values` (a list, or a mapping by name)."""
        bound = list(values.values() if isinstance(values, dict) else values)
        copied: dict[fx.Node, Any] = {}
        for node in source.nodes:
            if node.op == "placeholder":
                copied[node] = values[node.target] if isinstance(values, dict) else bound[len(copied)]
            elif node.op == "output":
                return [copied[value] for value in node.args[0]]
            else:
                copied[node] = self._copy(node, copied, prefix, as_compute)
        raise AssertionError("a graph without output")

    def _lerp(self, start: fx.Node, end: fx.Node, weight: fx.Node) -> fx.Node:
        """torch's lerp without its fused multiply-add: from the nearer end, start + w (end - start) or
        end - (1 - w) (end - start), so that every lowering gives the same bits."""
        aten, compute = torch.ops.aten, self.signature.compute_dtype

        def call(target: Any, args: tuple[Any, ...], like: fx.Node, dtype: torch.dtype) -> fx.Node:
            node = self.graph.call_function(target, args)
            node.meta = {"kind": like.meta["kind"], "dtype": dtype}
            return node

        near = call(
            aten.lt.Scalar, (call(aten.abs.default, (weight,), weight, weight.meta["dtype"]), 0.5), weight, torch.bool
        )
        beyond = call(aten.sub.Tensor, (weight, 1.0), weight, weight.meta["dtype"])
        factor = call(aten.where.self, (near, weight, beyond), weight, weight.meta["dtype"])
        difference = call(aten.sub.Tensor, (end, start), end, compute)
        base = call(aten.where.self, (near, start, end), end, compute)
        moved = call(aten.mul.Tensor, (difference, factor), end, compute)
        return call(aten.add.Tensor, (base, moved), end, compute)

    def _copy(self, node: fx.Node, copied: dict[fx.Node, Any], prefix: str, as_compute: bool) -> fx.Node:
        meta = dict(node.meta)
        args = fx.map_arg(node.args, lambda old: copied[old])
        if as_compute and meta["kind"] == "element" and meta["dtype"].is_floating_point:
            meta["dtype"] = self.signature.compute_dtype
        if as_compute and name_of(node.target) == "lerp":
            return self._lerp(*args)
        new = self.graph.create_node("call_function", node.target, args, dict(node.kwargs), name=prefix + node.name)
        new.meta = meta
        return new
