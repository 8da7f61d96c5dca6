"""Reductions in rules: the mean and the maximum over all elements of a tensor, and others written by these two.

    sum x = numel * mean x        min x = -max(-x)          any x = max(x != 0)      all x = 1 - max(x == 0)
    norm_p x = (sum |x|^p)^(1/p)  norm_inf x = max |x|      var x = (numel / (numel - c)) * mean (x - mean x)^2

A rule holds them as nodes, whose values are float64 and one for the whole tensor. `split_reductions` makes programs of
their own of them. Reductions over each row (all dimensions but the first) are nodes as well; their values are spread over the
row's elements. A rule sees a tensor of several dimensions as rows and columns.
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
    (aten.mean.dim, "rows mean"),
    (aten.amax.default, "rows most"),
)
#: Of these, the dimensions are the second argument, and the norm's the third.
_BY_DIMENSION = {"sum": 1, "mean": 1, "amax": 1, "amin": 1, "linalg_vector_norm": 2}
_NAMES = {"sum", "mean", "max", "amax", "min", "amin", "linalg_vector_norm", "any", "all", "var", "dot"}


def reduction_of(node: fx.Node) -> str:
    """Return "mean" or "most" if a rule's node is that of a tensor, and "rows mean" or "rows most"; else an empty text."""
    if node.op != "call_function":
        return ""
    for target, found in _TARGETS:
        if node.target is target:
            return found
    return ""


def is_reduction(node: fx.Node) -> bool:
    """Return whether a traced call makes one number of a tensor's elements."""
    value = node.meta["val"]
    return name_of(node.target) in _NAMES and isinstance(value, torch.Tensor) and value.numel() == 1


def is_row_reduction(node: fx.Node) -> bool:
    """Return whether a traced call makes one number of each row, and keeps the dimensions."""
    name, value = name_of(node.target), node.meta["val"]
    given = node.args[0].meta["val"] if node.args and isinstance(node.args[0], fx.Node) else None
    if name not in _BY_DIMENSION or given is None or given.ndim < 2 or not isinstance(value, torch.Tensor):
        return False
    position = _BY_DIMENSION[name]
    found: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    dimensions = {d % given.ndim for d in (found if isinstance(found, (list, tuple)) else [found])} if found else set()
    return dimensions == set(range(1, given.ndim)) and value.ndim == given.ndim


class Reducer:
    """A writer of reductions into a rule's graph.

    graph: the graph.
    numel, columns: its nodes of the number of elements, in all and in a row.
    over_rows: whether reductions over rows are written.
    """

    def __init__(self, graph: fx.Graph, numel: fx.Node, columns: fx.Node):
        self.graph, self.numel, self.columns, self.over_rows = graph, numel, columns, False

    def write_rows(self, node: fx.Node, value: Any) -> fx.Node:
        """Return the node of what a traced reduction over rows computes; see `write`."""
        self.over_rows = True
        try:
            return self.write(node, value)
        finally:
            self.over_rows = False

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
        return self._scalar(aten.mul.Tensor, self._mean(value), self.columns if self.over_rows else self.numel)

    def _mean(self, value: fx.Node) -> fx.Node:
        if meta_of(value).per == "scalar":
            return value
        return (
            self._element(aten.mean.dim, value, [1], True) if self.over_rows else self._scalar(aten.mean.default, value)
        )

    def _most(self, value: fx.Node) -> fx.Node:
        if meta_of(value).per == "scalar":
            return value
        return (
            self._element(aten.amax.default, value, [1], True)
            if self.over_rows
            else self._scalar(aten.max.default, value)
        )

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
        """Add a call that gives one number for the tensor, or for each row."""
        if self.over_rows:
            return self._call(target, args, ValueMeta("element", torch.float32 if dtype.is_floating_point else dtype))
        return self._call(target, args, ValueMeta("scalar", dtype))

    def _call(self, target: Any, args: tuple[Any, ...], meta: ValueMeta) -> fx.Node:
        return set_meta(self.graph.call_function(target, args), meta)
