"""What a launch tells a compiled program about its tensors: addresses, layouts, numbers. Built once, then kept up to date.

Between two steps, gradients and changing numbers are others, and any tensor may have been given other memory
(`tensor.data = ...`). `refresh` reads all addresses again, without a Python loop over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from baoc_compile.kernels.addresses import read_addresses
from torch import Tensor

from baoc_compile.program import ProgramGraph, TensorArguments


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
        self.tensors = [a.tensors[o.name] for a in batch for o in pointers]
        self.at = np.array([t.data_ptr() for t in self.tensors], dtype=np.uint64).reshape(len(batch), len(pointers))
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
        self._objects = np.array([id(t) for t in self.tensors], dtype=np.uint64)
        grads = [k for k, o in enumerate(pointers) if o.source == "grad"]
        self._grads = slice(grads[0], None, len(pointers)) if grads else slice(0, 0)
        self._values: tuple[float, ...] = ()

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        """Takes this step's gradients and values. True if an address has changed."""
        if self._grads.step:
            self._objects[self._grads] = np.fromiter(map(id, grads), np.uint64, len(grads))
        self.take_values(values)
        return read_addresses(self._objects, self.at)

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

    def _first_index(self, arguments: TensorArguments) -> int:
        if arguments.first_index % self.graph.width:
            raise ValueError(
                f"a shard starts at element {arguments.first_index}, not at a multiple of {self.graph.width}"
            )
        return arguments.first_index


def layout_of(tensor: Tensor) -> list[int]:
    """{dimensions, sizes, strides}, innermost last; empty for a contiguous tensor."""
    return [] if tensor.is_contiguous() else [tensor.ndim, *tensor.shape, *tensor.stride()]
