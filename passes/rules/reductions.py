"""Reductions in rules: the mean and the maximum over all elements of a tensor, and others written by these two.

    sum x = numel * mean x        min x = -max(-x)          any x = max(x != 0)      all x = 1 - max(x == 0)
    norm_p x = (sum |x|^p)^(1/p)  norm_inf x = max |x|      var x = (numel / (numel - c)) * mean (x - mean x)^2

A rule holds them as nodes, whose values are float64 and one for the whole tensor. `split_reductions` makes programs of
their own of them. Reductions of each row (over all dimensions but the first) and of each column (over the first) are nodes as
well; their values are spread over its elements. A rule sees a tensor of several dimensions as rows and columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from baoc_compile.kernels.dialect.nodes import ValueMeta, meta_of, set_meta
from baoc_compile.kernels.dialect.operations import name_of

aten = torch.ops.aten

_TARGETS = (
    (aten.mean.default, "mean"),
    (aten.max.default, "most"),
    (aten.mean.dim, "mean"),
    (aten.amax.default, "most"),
)
_NAMES = {"sum", "mean", "max", "amax", "min", "amin", "linalg_vector_norm", "any", "all", "var", "dot"}


def reduction_of(node: fx.Node) -> str:
    """Return "mean" or "most" if a rule's node is that of a tensor, "rows mean" and the like for those of rows; else ""."""
    if node.op != "call_function":
        return ""
    found = next((found for target, found in _TARGETS if node.target is target), "")
    if not found or node.target in (aten.mean.default, aten.max.default):
        return found
    return f"{'rows' if node.args[1] == [1] else 'columns'} {found}"


def is_reduction(node: fx.Node) -> bool:
    """Return whether a traced call makes one number of a tensor's elements."""
    value = node.meta["val"]
    return name_of(node.target) in _NAMES and isinstance(value, torch.Tensor) and value.numel() == 1


class Reducer:
    """A writer of reductions into a rule's graph.

    graph: the graph.
    numel, columns: its nodes of the number of elements, in all and in a row.
    lines: whether reductions of "rows" or "columns" are written.
    """

    def __init__(self, graph: fx.Graph, numel: fx.Node, columns: fx.Node):
        self.graph, self.numel, self.columns, self.lines = graph, numel, columns, ""

    def write_lines(self, node: fx.Node, value: Any, lines: str) -> fx.Node:
        """Return the node of what a traced reduction of rows or columns computes; see `write`."""
        self.lines = lines
        try:
            return self.write(node, value)
        finally:
            self.lines = ""

    def write(self, node: fx.Node, value: Any, *others: Any) -> fx.Node:
        """Return the node of what a traced reduction computes. `value`, `others`: the nodes of its tensors in the rule."""
        name, arguments = name_of(node.target), node.args[1:]
        if name == "dot":
            return self._sum(self._element(aten.mul.Tensor, self._as_float(value), self._as_float(*others)))
        if name in ("any", "all"):
            return self._truth(name, value)
        value = self._as_float(value)
        if name == "mean":
            return self._mean(value)
        if name == "sum":
            return self._sum(value)
        if name in ("max", "amax"):
            return self._most(value)
        if name in ("min", "amin"):
            return self._scalar(aten.neg.default, self._most(self._element(aten.neg.default, value)))
        if name == "var":
            return self._variance(value, node)
        return self._norm(value, float(arguments[0]) if arguments else float(node.kwargs.get("ord", 2)))

    def _truth(self, name: str, value: fx.Node) -> fx.Node:
        target = aten.ne.Scalar if name == "any" else aten.eq.Scalar
        found = self._call(target, (value, 0.0), ValueMeta(meta_of(value).per, torch.bool))
        most = self._most(self._as_float(found))
        return self._scalar(aten.gt.Scalar if name == "any" else aten.le.Scalar, most, 0.0, dtype=torch.bool)

    def _norm(self, value: fx.Node, order: float) -> fx.Node:
        size = self._element(aten.abs.default, value)
        if math.isinf(order):
            least = self._element(aten.neg.default, size)
            return self._most(size) if order > 0 else self._scalar(aten.neg.default, self._most(least))
        if order == 0:
            found = self._call(aten.ne.Scalar, (value, 0.0), ValueMeta(meta_of(value).per, torch.bool))
            return self._sum(self._as_float(found))
        if order == 1:
            return self._sum(size)
        if order == 2:
            return self._scalar(aten.sqrt.default, self._sum(self._element(aten.mul.Tensor, value, value)))
        power = self._element(aten.pow.Tensor_Scalar, size, order)
        return self._scalar(aten.pow.Tensor_Scalar, self._sum(power), 1.0 / order)

    def _variance(self, value: fx.Node, node: fx.Node) -> fx.Node:
        correction = node.kwargs.get("correction", 1)
        apart = self._element(aten.sub.Tensor, value, self._mean(value))
        others = self._scalar(aten.sub.Tensor, self.numel, 1.0 if correction is None else float(correction))
        return self._scalar(aten.div.Tensor, self._sum(self._element(aten.mul.Tensor, apart, apart)), others)

    def _sum(self, value: fx.Node) -> fx.Node:
        count = self.columns if self.lines == "rows" else self.numel
        if self.lines == "columns":
            count = self._call(aten.div.Tensor, (self.numel, self.columns), ValueMeta("scalar", torch.float64))
        return self._scalar(aten.mul.Tensor, self._mean(value), count)

    def _mean(self, value: fx.Node) -> fx.Node:
        return self._folded(aten.mean.default, aten.mean.dim, value)

    def _most(self, value: fx.Node) -> fx.Node:
        return self._folded(aten.max.default, aten.amax.default, value)

    def _folded(self, of_all: Any, of_lines: Any, value: fx.Node) -> fx.Node:
        if meta_of(value).per == "scalar":
            return value
        if not self.lines:
            return self._scalar(of_all, value)
        return self._element(of_lines, value, [1] if self.lines == "rows" else [0], True)

    def _as_float(self, value: fx.Node) -> fx.Node:
        meta = meta_of(value)
        if meta.dtype.is_floating_point:
            return value
        dtype = torch.float32 if meta.per == "element" else torch.float64
        return set_meta(
            self.graph.call_function(aten._to_copy.default, (value,), {"dtype": dtype}), ValueMeta(meta.per, dtype)
        )

    def _element(self, target: Any, value: fx.Node, *others: Any) -> fx.Node:
        return self._call(target, (value, *others), meta_of(value))

    def _scalar(self, target: Any, *args: Any, dtype: torch.dtype = torch.float64) -> fx.Node:
        """Add a call that gives one number for the tensor, or for each row or column."""
        if self.lines:
            return self._call(target, args, ValueMeta("element", torch.float32 if dtype.is_floating_point else dtype))
        return self._call(target, args, ValueMeta("scalar", dtype))

    def _call(self, target: Any, args: tuple[Any, ...], meta: ValueMeta) -> fx.Node:
        return set_meta(self.graph.call_function(target, args), meta)
