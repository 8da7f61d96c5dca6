"""Places of traced values in a parameter: one number in all, one for each element, for each row, or for each column.

A row has one index of the first dimension; a column has one position in the others. Values of rows or columns keep the other
dimensions as 1, or leave them out. A rule spreads them over the elements, so that it is elementwise. Where a call gives the
same shape another meaning (the values of rows along the columns of a square matrix), there is no rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import fx

from baoc_compile.kernels.dialect.operations import name_of

Place = Literal["scalar", "element", "rows", "columns"]

#: Calls whose first argument is a value, and the second the dimensions over which they make one.
BY_DIMENSION = {"sum": 1, "mean": 1, "amax": 1, "amin": 1, "linalg_vector_norm": 2}
#: Calls that change only the shape.
_RESHAPES = {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "alias", "clone", "detach", "expand"}
_PRODUCTS = {"mm", "bmm"}


class Misplaced(Exception):
    """A value has no place; the message says why."""


def forms_of(place: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that values of "rows" or "columns" may have: with the other dimensions, and without."""
    if len(shape) < 2:
        return ()
    if place == "rows":
        return (shape[0], *(1 for _ in shape[1:])), shape[:1]
    return (1, *shape[1:]), shape[1:]


def places_of_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> list[Place]:
    """Return the places that a value of shape `found` may have."""
    if found in (shape, (math.prod(shape),)) or (math.prod(found) > 1 and _longer(found) == _longer(shape)):
        return ["element"]
    if math.prod(found) == 1:
        return ["scalar"]
    lines: tuple[Place, ...] = ("rows", "columns")
    return [place for place in lines if found in forms_of(place, shape)]


def _longer(shape: tuple[int, ...]) -> list[int]:
    """Return the sizes of the dimensions that have any length."""
    return [size for size in shape if size != 1]


class Places:
    """The places of a traced graph's nodes.

    shape: the parameter's shape.
    given: places of placeholders whose shapes leave a choice.
    """

    def __init__(self, shape: tuple[int, ...], given: Mapping[str, Place]):
        self.shape, self._given = shape, given
        self._of: dict[fx.Node, Place] = {}

    def of(self, node: fx.Node) -> Place:
        """Return a node's place. Raises Misplaced."""
        if node not in self._of:
            self._of[node] = self._found(node)
        return self._of[node]

    def is_spread(self, node: fx.Node) -> bool:
        """Return whether a rule has a value of the node for each element."""
        return self.of(node) != "scalar"

    def is_outer_product(self, node: fx.Node) -> bool:
        """Return whether a product of matrices is one of rows and columns, which is elementwise."""
        if name_of(node.target) not in _PRODUCTS:
            return False
        first, second = (a for a in node.args if isinstance(a, fx.Node))
        return (self.of(first), self.of(second)) == ("rows", "columns")

    def folded(self, node: fx.Node) -> Place | None:
        """Return what a call makes one number of: each of the "rows" or "columns", each "element", or all ("scalar").

        None for a call that is none of these. Raises Misplaced for one that makes numbers of something else.
        """
        name = name_of(node.target)
        if name not in BY_DIMENSION or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        given, of = node.args[0].meta["val"], self.of(node.args[0])
        position = BY_DIMENSION[name]
        found = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
        over = {d % given.ndim for d in (found if isinstance(found, (list, tuple)) else [found])} if found else None
        if over is None or node.meta["val"].numel() == 1:
            return "scalar"
        if node.meta["val"].numel() == given.numel() and name != "linalg_vector_norm":
            return of
        if of == "element" and tuple(given.shape) == self.shape and over in (set(range(1, given.ndim)), {0}):
            return "columns" if over == {0} else "rows"
        raise Misplaced(f"{name} over dimensions {sorted(over)} of values of shape {tuple(given.shape)}")

    def _found(self, node: fx.Node) -> Place:
        value = node.meta["val"]
        possible = places_of_shape(tuple(value.shape), self.shape)
        if node.op != "call_function":
            found = self._given.get(str(node.target)) or (possible[0] if possible else None)
            return self._checked(node, found, possible)
        if possible == ["scalar"]:
            return "scalar"
        if name_of(node.target) in BY_DIMENSION and (folded := self.folded(node)):
            return self._checked(node, folded, possible)
        arguments = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
        if not arguments:
            return self._checked(node, possible[0] if possible else None, possible)
        of = {a: self.of(a) for a in arguments}
        if name_of(node.target) in _RESHAPES:
            return self._reshaped(node, of[arguments[0]], possible)
        for argument, place in of.items():
            aligned = (1,) * (value.ndim - argument.meta["val"].ndim) + tuple(argument.meta["val"].shape)
            if (
                place in ("rows", "columns")
                and value.ndim == len(self.shape)
                and aligned != forms_of(place, self.shape)[0]
            ):
                raise Misplaced(f"{name_of(node.target)} puts values of {place} along other dimensions")
        lines = {place for place in of.values() if place in ("rows", "columns")}
        if "element" in of.values() or len(lines) == 2:
            return self._checked(node, "element", possible)
        return self._checked(node, lines.pop() if lines else None, possible)

    def _reshaped(self, node: fx.Node, place: Place, possible: list[Place]) -> Place:
        value = tuple(node.meta["val"].shape)
        if place in ("rows", "columns") and "element" in possible and name_of(node.target) == "expand":
            given = node.all_input_nodes[0].meta["val"]
            if (1,) * (len(value) - given.ndim) + tuple(given.shape) == forms_of(place, self.shape)[0]:
                return "element"
        return self._checked(node, None if place == "scalar" and possible else place, possible)

    def _checked(self, node: fx.Node, place: str | None, possible: list[Place]) -> Place:
        """Return the place, the only possible one if it is None. Raises Misplaced."""
        found = next((p for p in possible if place in (None, p)), None)
        if found is None or (place is None and len(possible) > 1):
            name, shape = name_of(node.target), tuple(node.meta["val"].shape)
            raise Misplaced(f"{name} gives a value of shape {shape} beside the parameter's {self.shape}")
        return found
