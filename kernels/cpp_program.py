"""Run a program as compiled C++ over a batch of CPU tensors: one call, whatever their number and sizes."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from baoc_compile.kernels.build_cpp import build
from baoc_compile.kernels.emit_cpp import CppEmitter
from torch import Tensor

from baoc_compile.program import ProgramGraph, TensorArguments

#: Elements below which another thread does not pay.
ELEMENTS_PER_THREAD = 1 << 14


class CppProgram:
    """Executable backed by a compiled library. Raises CompilerMissing where there is no compiler."""

    def __init__(self, graph: ProgramGraph):
        self.graph = graph
        self.emitter = CppEmitter(graph)
        self.source = self.emitter.source
        self._run = build(self.source).run
        self._run.restype = None

    def __call__(self, batch: list[TensorArguments]) -> None:
        pointers, numbers = self.emitter.pointers, self.emitter.numbers
        layouts: list[np.ndarray] = []  # kept alive during the call
        rows = [[a.tensors[o.name] for o in pointers] for a in batch]
        at = np.array([[t.data_ptr() for t in row] for row in rows], dtype=np.uint64)
        layout_at = np.array([[_layout(t, layouts) for t in row] for row in rows], dtype=np.uint64)
        given = np.array([[a.numbers[o.name] for o in numbers] or [0.0] for a in batch], dtype=np.float64)
        derived = np.empty((len(batch), max(1, len(self.emitter.derived))), dtype=np.float64)
        numel = np.array([a.numel for a in batch], dtype=np.int64)
        shared = self.graph.shared
        sharing = np.array([[a.sharing[o.name] for o in shared] for a in batch], dtype=np.int64)
        first_index = np.array([self._first_index(a) for a in batch], dtype=np.int64)
        blocks = np.concatenate([[0], np.cumsum(-(-numel // self.graph.width))]).astype(np.int64)
        threads = max(1, min(torch.get_num_threads(), int(numel.sum()) // ELEMENTS_PER_THREAD))
        self._run(
            ctypes.c_int64(len(batch)),
            *map(_address, (at, layout_at, given, derived, numel, blocks, first_index, sharing)),
            threads,
        )

    def _first_index(self, arguments: TensorArguments) -> int:
        if arguments.first_index % self.graph.width:
            raise ValueError(
                f"a shard starts at element {arguments.first_index}, not at a multiple of {self.graph.width}"
            )
        return arguments.first_index


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _layout(tensor: Tensor, keep: list[np.ndarray]) -> int:
    """Address of {ndim, sizes, strides}; 0 for a contiguous tensor."""
    if tensor.is_contiguous():
        return 0
    keep.append(np.array([tensor.ndim, *tensor.shape, *tensor.stride()], dtype=np.int64))
    return keep[-1].ctypes.data
