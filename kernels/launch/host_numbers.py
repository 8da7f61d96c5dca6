"""Numbers that an optimizer keeps in 0-dim tensors on the host: read, written and compared by one compiled loop."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from baoc_compile.kernels.launch.survey import at, compiled, objects_of

KINDS = {torch.float32: 0, torch.float64: 1, torch.int64: 2, torch.int32: 3}


class Gathered:
    """0-dim tensors on the host, each of them once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._position: dict[int, int] = {}

    def positions(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """Return the positions of tensors, int64; those that are new are added."""
        for tensor in tensors:
            if id(tensor) not in self._position:
                self._position[id(tensor)] = len(self.tensors)
                self.tensors.append(tensor)
        return np.array([self._position[id(t)] for t in tensors], dtype=np.int64)


class HostNumbers:
    """0-dim tensors on the host, kept alive.

    values: float64, the numbers when they were read last.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)
        self.values = np.zeros(len(tensors), np.float64)
        self._objects, self._address = objects_of(tensors), np.zeros(len(tensors), np.uint64)
        self._compiled = compiled() if all(t.dtype in KINDS for t in tensors) else None
        self._kinds = np.array([KINDS.get(t.dtype, 0) for t in tensors], np.uint8)
        if self._compiled is not None:
            self._places = (at(self._kinds), at(self._address))
            pointers = (at(self._objects), *self._places, at(self.values))
            self._arguments = (ctypes.byref(self._compiled.functions), ctypes.c_int64(len(tensors)), *pointers)

    def read(self) -> np.ndarray:
        """Read the numbers, and return them."""
        if self._compiled is None:
            self.values[:] = [t.item() for t in self.tensors]
        elif len(self.tensors):
            self._compiled.library.read_numbers(*self._arguments)
        return self.values

    def write(self, positions: np.ndarray, values: np.ndarray) -> None:
        """Write float64 `values` to the tensors at `positions`, int64."""
        if self._compiled is None:
            for position, value in zip(positions.tolist(), values.tolist(), strict=True):
                tensor = self.tensors[position]
                tensor.fill_(value if tensor.is_floating_point() else int(value))
            return
        size = ctypes.c_int64(len(positions))
        self._compiled.library.write_numbers(size, at(positions), *self._places, at(values))


class Distinct:
    """Which of some numbers are the same: their bits are.

    values: float64 `[n]`, the numbers.
    positions: int64, those of them that count.
    """

    def __init__(self, values: np.ndarray, positions: np.ndarray):
        self.values, self.positions = values, positions
        self._found, self._which = np.empty(len(positions)), np.empty(len(positions), np.int64)
        self._compiled = compiled()
        self._results = (at(values), at(self._found), at(self._which))
        self._whole = (ctypes.c_int64(len(positions)), at(positions), *self._results)

    def find(self, members: np.ndarray | None = None) -> tuple[list[float], np.ndarray | None]:
        """Return the distinct ones, and which of them each number is; None if there is one. Valid until the next call.

        members: indices of the positions that count; None for all.
        """
        chosen = self.positions if members is None else self.positions[members]
        if self._compiled is None:
            bits, first, which = np.unique(self.values[chosen].view(np.int64), return_index=True, return_inverse=True)
            return self.values[chosen][first].tolist(), which if len(bits) > 1 else None
        arguments = self._whole if members is None else (ctypes.c_int64(len(chosen)), at(chosen), *self._results)
        count = self._compiled.library.find_distinct(*arguments)
        return self._found[:count].tolist(), self._which[: len(chosen)] if count > 1 else None
