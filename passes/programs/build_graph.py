"""Build a program's graph from traced graphs: the rule, and the codecs' functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import Codec
from baoc_compile.core.names import identifier
from baoc_compile.kernels.dialect.nodes import CodecCall, ValueMeta, is_constant, meta_of, per_of, set_meta
from baoc_compile.kernels.dialect.operations import name_of


class GraphBuilder:
    """A builder of one program's graph.

    compute_dtype: the type of elementwise arithmetic.
    graph: the graph so far.
    made: (target, arguments, type) of a call -> its node, so that equal calls are one node.
    call: the codec call that is being inlined; None outside of one.
    """

    def __init__(self, compute_dtype: torch.dtype):
        self.compute_dtype = compute_dtype
        self.graph = fx.Graph()
        self.made: dict[Any, fx.Node] = {}
        self.call: CodecCall | None = None

    def inline_codec(self, codec: Codec, verb: str, traced: fx.Graph, values: list[Any], key: str) -> list[fx.Node]:
        """Inline a codec's traced function, and return its results.

        codec, verb, key: the codec, its function and the slot; they mark the inlined nodes (see `CodecCall`).
        values: the arguments.
        """
        self.call = CodecCall(codec.name, verb, key)
        found = self.inline(traced, values, prefix=f"{identifier(key)}_")
        self.call = None
        return found

    def cast(self, value: fx.Node, dtype: torch.dtype, name: str) -> fx.Node:
        """Convert a value to `dtype`; return it unchanged if that is its type."""
        if meta_of(value).dtype == dtype:
            return value
        node = self.graph.create_node(
            "call_function", torch.ops.aten._to_copy.default, (value,), {"dtype": dtype}, name=name
        )
        return set_meta(node, ValueMeta(meta_of(value).per, dtype))

    def inline(self, source: fx.Graph, values: Any, prefix: str = "", as_compute: bool = False) -> list[fx.Node]:
        """Copy `source` into the graph, and return its results.

        values: what its placeholders are bound to: a list, or a mapping by name.
        prefix: of the names of the copies.
        as_compute: whether elementwise values get the compute type, and lerp and division their numeric contract.
        """
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
        """Build torch's lerp without its fused multiply-add, so that every lowering gives the same bits.

        From the nearer end: start + w (end - start) or end - (1 - w) (end - start).
        """
        aten, compute = torch.ops.aten, self.compute_dtype

        def call(target: Any, args: tuple[Any, ...], like: fx.Node, dtype: torch.dtype) -> fx.Node:
            return self._call(target, args, {}, ValueMeta(meta_of(like).per, dtype), f"lerp_{name_of(target)}")

        own = meta_of(weight).dtype
        near = call(aten.lt.Scalar, (call(aten.abs.default, (weight,), weight, own), 0.5), weight, torch.bool)
        beyond = call(aten.sub.Tensor, (weight, 1.0), weight, own)
        factor = call(aten.where.self, (near, weight, beyond), weight, own)
        difference = call(aten.sub.Tensor, (end, start), end, compute)
        base = call(aten.where.self, (near, start, end), end, compute)
        moved = call(aten.mul.Tensor, (difference, factor), end, compute)
        return call(aten.add.Tensor, (base, moved), end, compute)

    def _copy(self, node: fx.Node, copied: dict[fx.Node, Any], prefix: str, as_compute: bool) -> fx.Node:
        meta = replace(meta_of(node), call=self.call)
        args = fx.map_arg(node.args, lambda old: copied[old])
        if as_compute and meta.per == "element" and meta.dtype.is_floating_point:
            meta = replace(meta, dtype=self.compute_dtype)
        if as_compute and name_of(node.target) == "lerp":
            return self._lerp(*args)
        if as_compute and meta.per == "element" and node.target is torch.ops.aten.div.Tensor:
            dividend, divisor = args
            return self._quotient(dividend, divisor, meta)
        return self._call(node.target, args, node.kwargs, meta, prefix + node.name)

    def _call(self, target: Any, args: Any, kwargs: Any, meta: ValueMeta, name: str) -> fx.Node:
        """Add a call, or return the node of an equal one.

        Scalars are converted to the type of the elements that they meet.
        """
        if meta.per == "element":
            args = fx.map_arg(args, self._in_lanes)
        key = target, repr(args), repr(kwargs), meta.dtype  # repr distinguishes 0.0 from -0.0, and 1 from True
        if key not in self.made:
            self.made[key] = set_meta(
                self.graph.create_node("call_function", target, args, dict(kwargs), name=name), meta
            )
        return self.made[key]

    def _in_lanes(self, value: fx.Node) -> fx.Node:
        """Convert a float64 scalar, other than a constant, to the compute type."""
        meta = meta_of(value)
        is_wide = meta.per == "scalar" and meta.dtype == torch.float64 != self.compute_dtype
        if not is_wide or is_constant(value):
            return value
        meta, kwargs = ValueMeta("scalar", self.compute_dtype), {"dtype": self.compute_dtype}
        return self._call(torch.ops.aten._to_copy.default, (value,), kwargs, meta, f"{value.name}_in_lanes")

    def _quotient(self, dividend: Any, divisor: Any, meta: ValueMeta) -> fx.Node:
        """Divide; if the divisor is one number for the whole tensor, multiply by its inverse, taken once in double."""
        if isinstance(divisor, fx.Node) and per_of(divisor) == "scalar" and isinstance(dividend, fx.Node):
            inverse = self._call(torch.ops.aten.reciprocal.default, (divisor,), {}, meta_of(divisor), "inverse")
            return self._call(torch.ops.aten.mul.Tensor, (dividend, inverse), {}, meta, "quotient")
        return self._call(torch.ops.aten.div.Tensor, (dividend, divisor), {}, meta, "quotient")
