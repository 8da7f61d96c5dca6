"""What a launch tells a compiled program about its tensors: addresses, layouts, numbers. Built once, then kept up to date.

Between two steps, gradients and changing numbers are others, and any tensor may have been given other memory
(`tensor.data = ...`). `refresh` reads all addresses again, without a Python loop over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from baoc_compile.core.program_graph import ProgramGraph, TensorArguments
from baoc_compile.kernels.launch.addresses import Watched


class LayoutChanged(Exception):
    """A tensor now has other strides, another size or type: the table has to be built anew."""


@dataclass
class Varying:
    """Numbers that change from step to step: entry [tensor, column] of the table is value number `position`."""

    tensors: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class LaunchTable:
    """One row for each tensor of the launch, a column for each of the graph's pointers (`at`) and numbers (`numbers`).

    `varying[i]`: operand name -> which of the values given to `refresh` is that number of tensor i. Raises ValueError
    for a shard that does not start at a group.
    """

    def __init__(self, graph: ProgramGraph, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()):
        self.graph, self.batch = graph, batch
        pointers, numbers = graph.pointers, graph.numbers
        self.tensors: list[Any] = [a.tensors[o.name] for a in batch for o in pointers]
        #: The column of the gradients; -1 without.
        self.passing = next((k for k, o in enumerate(pointers) if o.source == "grad"), -1)
        self._watched = Watched(self.tensors, len(pointers), self.passing)
        self.at = self._watched.addresses
        self.numbers = np.array([[a.numbers.get(o.name, 0.0) for o in numbers] for a in batch], dtype=np.float64)
        self.numel = np.array([a.numel for a in batch], dtype=np.int64)
        self.first_index = np.array([self._first_index(a) for a in batch], dtype=np.int64)
        self.sharing = np.array([[a.sharing[o.name] for o in graph.shared] for a in batch], dtype=np.int64)
        self.varying = Varying()
        column = {o.name: k for k, o in enumerate(numbers)}
        for i, names in enumerate(varying):
            for name, position in names.items():
                if name in column:
                    self.varying.tensors.append(i)
                    self.varying.columns.append(column[name])
                    self.varying.positions.append(position)
        self._values: tuple[float, ...] = ()
        self._descriptions = [_description(t) for t in self.tensors]
        self._contiguous_grads = all(t.is_contiguous() for t in self.tensors[self._grads])

    @property
    def _grads(self) -> slice:
        return slice(self.passing, None, self.at.shape[1]) if self.passing >= 0 else slice(0, 0)

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        """Takes this step's gradients and values. True if an address has changed. Raises LayoutChanged.

        Gradients are not kept alive: those that the table was built with are let go here.
        """
        if self.passing >= 0 and self.batch:
            self.batch, self.tensors[self._grads] = [], [None] * len(grads)
        seen = self._watched.look(grads if self.passing >= 0 else ())
        if not (seen.contiguous if self._contiguous_grads else self._have_same_strides(grads)):
            raise LayoutChanged
        if seen.lasting_moved:
            self._check_moved()
        self.take_values(values)
        return seen.moved

    def take_values(self, values: Sequence[Tensor]) -> bool:
        """Enters this step's values. True if one has changed."""
        if not self.varying.positions:
            return False
        now = tuple(float(v) for v in values)
        if now == self._values:
            return False
        self._values = now
        self.numbers[self.varying.tensors, self.varying.columns] = np.array(now)[self.varying.positions]
        return True

    def _have_same_strides(self, grads: Sequence[Tensor]) -> bool:
        return [g.stride() for g in grads] == [d[1] for d in self._descriptions[self._grads]]

    def _check_moved(self) -> None:
        """Looks closer when a parameter or state has been given other memory."""
        for tensor, description in zip(self.tensors, self._descriptions, strict=True):
            if tensor is not None and _description(tensor) != description:
                raise LayoutChanged

    def _first_index(self, arguments: TensorArguments) -> int:
        if arguments.first_index % self.graph.width:
            raise ValueError(
                f"a shard starts at element {arguments.first_index}, not at a multiple of {self.graph.width}"
            )
        return arguments.first_index


def _description(tensor: Tensor) -> tuple[Any, ...]:
    """What a table takes for granted beside the address."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def layout_of(tensor: Tensor) -> list[int]:
    """{dimensions, sizes, strides}, innermost last; empty for a contiguous tensor."""
    return [] if tensor.is_contiguous() else [tensor.ndim, *tensor.shape, *tensor.stride()]
