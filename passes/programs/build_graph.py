"""Building a program's graph out of traced graphs: the rule, and the codecs' functions over groups of their size."""

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
    """`graph`: the program's. Element values are `[rows, width]`; a codec with smaller groups sees a view of them."""

    def __init__(self, compute_dtype: torch.dtype, width: int):
        self.compute_dtype, self.width = compute_dtype, width
        self.graph = fx.Graph()
        self.made: dict[Any, fx.Node] = {}
        self.call: CodecCall | None = None

    def inline_codec(self, codec: Codec, verb: str, traced: Any, values: list[Any], key: str) -> list[fx.Node]:
        """Inlines a traced codec function, between views of the program's lanes as the codec's groups.

        Its nodes tell of it: see `CodecCall`.
        """
        size = codec.group_size or self.width
        grouped = [self.view(value, size) for value in values]
        self.call = CodecCall(codec.name, verb, key)
        found = self.inline(traced(codec, size), grouped, prefix=f"{identifier(key)}_", group_size=size)
        self.call = None
        return [self.view(value, self.width) for value in found]

    def view(self, value: Any, width: int) -> Any:
        if (
            not isinstance(value, fx.Node)
            or per_of(value) != "element"
            or width == (meta_of(value).width or self.width)
        ):
            return value
        node = self.graph.call_function(torch.ops.aten.view.default, (value, [-1, width]))
        return set_meta(node, replace(meta_of(value), width=width))

    def cast(self, value: fx.Node, dtype: torch.dtype, name: str) -> fx.Node:
        if meta_of(value).dtype == dtype:
            return value
        node = self.graph.create_node(
            "call_function", torch.ops.aten._to_copy.default, (value,), {"dtype": dtype}, name=name
        )
        return set_meta(node, ValueMeta(meta_of(value).per, dtype))

    def inline(
        self, source: fx.Graph, values: Any, prefix: str = "", as_compute: bool = False, group_size: int = 0
    ) -> list[fx.Node]:
        """Copies `source` with its placeholders bound to `values` (a list, or a mapping by name)."""
        bound = list(values.values() if isinstance(values, dict) else values)
        copied: dict[fx.Node, Any] = {}
        for node in source.nodes:
            if node.op == "placeholder":
                copied[node] = values[node.target] if isinstance(values, dict) else bound[len(copied)]
            elif node.op == "output":
                return [copied[value] for value in node.args[0]]
            else:
                copied[node] = self._copy(node, copied, prefix, as_compute, group_size)
        raise AssertionError("a graph without output")

    def _lerp(self, start: fx.Node, end: fx.Node, weight: fx.Node) -> fx.Node:
        """torch's lerp without its fused multiply-add: from the nearer end, start + w (end - start) or
        end - (1 - w) (end - start), so that every lowering gives the same bits."""
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

    def _copy(
        self, node: fx.Node, copied: dict[fx.Node, Any], prefix: str, as_compute: bool, group_size: int
    ) -> fx.Node:
        meta = replace(meta_of(node), call=self.call)
        if group_size and meta.per == "element":
            meta = replace(meta, width=group_size)
        elif group_size and meta.per == "group":
            meta = replace(meta, group_size=group_size)
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
        """A new node, or the one that computes the same. Scalars meet elements in the elements' type."""
        if meta.per == "element":
            args = fx.map_arg(args, self._in_lanes)
        key = target, repr(args), repr(kwargs), meta.dtype  # in which 0.0 is not -0.0, nor 1 True
        if key not in self.made:
            self.made[key] = set_meta(
                self.graph.create_node("call_function", target, args, dict(kwargs), name=name), meta
            )
        return self.made[key]

    def _in_lanes(self, value: fx.Node) -> fx.Node:
        meta = meta_of(value)
        is_wide = meta.per == "scalar" and meta.dtype == torch.float64 != self.compute_dtype
        if not is_wide or is_constant(value):
            return value
        meta, kwargs = ValueMeta("scalar", self.compute_dtype), {"dtype": self.compute_dtype}
        return self._call(torch.ops.aten._to_copy.default, (value,), kwargs, meta, f"{value.name}_in_lanes")

    def _quotient(self, dividend: Any, divisor: Any, meta: ValueMeta) -> fx.Node:
        """A number that a whole tensor is divided by is inverted once, in double."""
        if isinstance(divisor, fx.Node) and per_of(divisor) == "scalar" and isinstance(dividend, fx.Node):
            inverse = self._call(torch.ops.aten.reciprocal.default, (divisor,), {}, meta_of(divisor), "inverse")
            return self._call(torch.ops.aten.mul.Tensor, (dividend, inverse), {}, meta, "quotient")
        return self._call(torch.ops.aten.div.Tensor, (dividend, divisor), {}, meta, "quotient")
