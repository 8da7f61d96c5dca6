"""Run a program as compiled C++ over a batch of CPU tensors: one call, whatever their number and sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from baoc_compile.core.program_graph import ProgramGraph, TensorArguments
from baoc_compile.kernels.build.compile_cpp import build
from baoc_compile.kernels.cpp.emit import CppEmitter
from baoc_compile.kernels.launch.launch_table import LaunchTable, layout_of

#: Elements that justify one more thread.
ELEMENTS_PER_THREAD = 1 << 14


class CppTable(LaunchTable):
    """The table of a compiled C++ program.

    arguments: the arguments of the compiled function, without the number of threads.

    Raises ValueError for a shard that crosses a multiple of 2^32 elements and does not start at a multiple of the tile.
    """

    def __init__(self, emitter: CppEmitter, batch: list[TensorArguments], varying: Sequence[dict[str, int]]):
        super().__init__(emitter.graph, batch, varying)
        self.layouts = [np.array(layout_of(t), dtype=np.int64) for t in self.tensors]
        self.layout_at = np.array([a.ctypes.data if a.size else 0 for a in self.layouts], dtype=np.uint64)
        self.derived = np.empty((len(batch), max(1, len(emitter.derived))), dtype=np.float64)
        self.active = self.lanes.copy()
        self.tiles, self._tiles_of = np.zeros(len(batch) + 1, dtype=np.int64), -(-self.lanes // emitter.tile)
        for first, lanes in zip(self.first_index.tolist(), self.lanes.tolist(), strict=True):
            if first % emitter.tile and (first + lanes - 1) >> 32 != first >> 32:
                raise ValueError(
                    f"a shard that spans a multiple of 2^32 elements has to start at a multiple of {emitter.tile}, "
                    f"not at {first}"
                )
        self.restrict(None)
        if not self.numbers.size:
            self.numbers = np.zeros((len(batch), 1))
        arrays = (self.at, self.layout_at, self.numbers, self.derived, self.active, self.columns, self.tiles)
        pointers = (ctypes.c_void_p(a.ctypes.data) for a in (*arrays, self.first_index, self.sharing))
        self.arguments = (ctypes.c_int64(len(batch)), *pointers)

    def restrict(self, present: np.ndarray | None) -> None:
        if present is None:
            present = np.ones(len(self.numel), dtype=bool)
        self.active[:] = np.where(present, self.lanes, -1)  # -1: left alone
        np.cumsum(self._tiles_of * present, out=self.tiles[1:])
        self.most_threads = int(self.numel @ present) // ELEMENTS_PER_THREAD


class CppProgram:
    """Executable backed by a compiled library. Raises CompilerMissing if there is no compiler."""

    def __init__(self, graph: ProgramGraph):
        self.graph = graph
        self.emitter = CppEmitter(graph)
        self.source = self.emitter.source
        self._run = build(self.source).run
        self._run.restype = None

    def table(self, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()) -> CppTable:
        return CppTable(self.emitter, batch, varying)

    def run(self, table: CppTable) -> None:
        self._run(*table.arguments, max(1, min(torch.get_num_threads(), table.most_threads)))

    def __call__(self, batch: list[TensorArguments]) -> None:
        self.run(self.table(batch))
