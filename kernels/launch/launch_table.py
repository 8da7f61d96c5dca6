"""What a launch passes to a compiled program about its tensors: addresses, layouts, numbers.

A table is built once and then kept up to date. Between steps, gradients and varying numbers change, and any tensor may
have been given other memory (`tensor.data = ...`). `refresh` reads all addresses again, without a Python loop over
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from baoc_compile.core.program_graph import ProgramGraph, TensorArguments
from baoc_compile.kernels.launch.addresses import Watched


class LayoutChanged(Exception):
    """A tensor has other strides, another size or another type: the table must be rebuilt."""


@dataclass
class Varying:
    """Numbers that change from step to step: entry [tensor, column] of the table is value number `position`.

    tensors: row of each number.
    columns: column of each number.
    positions: position of each number among the step's values.
    """

    tensors: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class LaunchTable:
    """One row per tensor of the launch, one column per pointer (`at`) and per number (`numbers`) of the graph.

    at: addresses, uint64 `[tensors, pointers]`.
    numbers: float64 `[tensors, numbers]`.
    numel, lanes: elements of each tensor, and lanes: there are more if its rows are padded to whole groups.
    columns: elements of each tensor's rows if they are padded, else 0.
    first_index: global number of each tensor's first lane.
    sharing: run and cycle of each shared operand, int64 `[tensors, shared, 2]`.

    The argument `varying[i]` maps operand name -> which of the values given to `refresh` is that number of tensor i.
    """

    def __init__(self, graph: ProgramGraph, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()):
        self.graph, self.batch = graph, batch
        pointers, numbers = graph.pointers, graph.numbers
        self.tensors: list[Any] = [a.tensors[o.name] for a in batch for o in pointers]
        #: Column of the gradients; -1 if there are none.
        self.passing = next((k for k, o in enumerate(pointers) if o.source == "grad"), -1)
        self._param = next((k for k, o in enumerate(pointers) if o.source == "param"), -1)
        self._watched = Watched(self.tensors, len(pointers), self.passing)
        self.at = self._watched.addresses
        self.numbers = np.array([[a.numbers.get(o.name, 0.0) for o in numbers] for a in batch], dtype=np.float64)
        self.numel = np.array([a.numel for a in batch], dtype=np.int64)
        self.lanes = np.array([a.lanes for a in batch], dtype=np.int64)
        self.columns = np.array([a.rows.columns if a.rows else 0 for a in batch], dtype=np.int64)
        self.first_index = np.array([a.first_index for a in batch], dtype=np.int64)
        self.sharing = np.array([[a.sharing[o.name] for o in graph.shared] for a in batch], dtype=np.int64)
        self.varying = Varying()
        #: Column of a number, by operand name.
        self.column = column = {o.name: k for k, o in enumerate(numbers)}
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
        """Take this step's gradients and values. Return True if an address has changed. Raises LayoutChanged.

        The table does not keep gradients alive: it drops those that it was built with here.
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

    def follow(self, param_at: np.ndarray, grad_at: np.ndarray, grads: Callable[[], list[Tensor]]) -> None:
        """Take the addresses of this step's parameters and gradients; all other tensors are where they were.

        grads: returns the gradients themselves, for tables that need them.
        """
        if self.passing >= 0 and self.batch:
            self.batch, self.tensors[self._grads] = [], [None] * len(self.numel)
        if self._param >= 0:
            self.at[:, self._param] = param_at
        if self.passing >= 0:
            self.at[:, self.passing] = grad_at

    def point_at(self, addresses: Sequence[int]) -> None:
        """Take the addresses of other tensors of the same layouts, row after row. The table keeps no tensors from here on."""
        self.batch, self.tensors = [], []
        self.at.reshape(-1)[:] = addresses

    def numbers_changed(self) -> None:
        """Called after entries of `numbers` have changed."""

    def restrict(self, present: np.ndarray | None) -> None:
        """Launch over these tensors only (a truth value for each), until the next call; None for all."""
        raise NotImplementedError

    def take_values(self, values: Sequence[Tensor]) -> bool:
        """Enter this step's values. Return True if any has changed."""
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
        """Compare layouts after a parameter or state was given other memory. Raises LayoutChanged."""
        for tensor, description in zip(self.tensors, self._descriptions, strict=True):
            if tensor is not None and _description(tensor) != description:
                raise LayoutChanged


def _description(tensor: Tensor) -> tuple[Any, ...]:
    """Return the properties, besides the address, that a table assumes constant."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def layout_of(tensor: Tensor) -> list[int]:
    """Return {dimensions, sizes, strides}, innermost last; empty for a contiguous tensor."""
    return [] if tensor.is_contiguous() else [tensor.ndim, *tensor.shape, *tensor.stride()]
