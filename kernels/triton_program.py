"""Run a program as one launch of a Triton kernel over a batch of tensors on a GPU (or of the interpreter, on a CPU)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from baoc_compile.kernels.build_triton import load_module
from baoc_compile.kernels.emit_triton import TritonEmitter
from baoc_compile.kernels.emit_triton_average import TASK, TritonAverageEmitter
from baoc_compile.kernels.launch_table import LaunchTable, layout_of
from torch import Tensor

from baoc_compile.program import ProgramGraph, TensorArguments

#: Of tensors that are not contiguous; `MAX_DIMS` in `triton_words`.
MAX_DIMS = 6

#: Blocks of a set that one program sums.
PIECE = 64


@dataclass(frozen=True)
class LaunchShape:
    """`block`: elements that a program computes at once. `blocks`: how many such blocks it takes, one after the other."""

    block: int
    blocks: int
    warps: int


def default_shape(graph: ProgramGraph, warp_size: int | None = None) -> LaunchShape:
    """A shape at which no target spills registers (docs/kernels.md), of 4 elements a thread: 16 bytes of fp32.

    Steps that look values up need more registers, which fewer and larger programs leave them. `warp_size`: threads of a
    warp, by default of the GPUs that this torch is built for.
    """
    looks_up = not graph.averages and any(o.kind in ("table", "shared") for o in graph.operands)
    threads = 512 if looks_up else 128
    return LaunchShape(4 * threads, 8192 // (4 * threads), threads // (warp_size or (64 if torch.version.hip else 32)))


class TritonTable(LaunchTable):
    """On the device: `rows` int64 [tensors, row_length], a row being {elements, first index, first program, programs, run and
    cycle of each shared operand, addresses}; `on_device` float64 numbers; `programs` int32, the tensor of each program;
    `tickets` int32, 0 between launches; `layouts` int64 [tensors, strided operands, 13].
    """

    def __init__(
        self,
        emitter: TritonEmitter,
        batch: list[TensorArguments],
        varying: Sequence[dict[str, int]],
        shape: LaunchShape,
    ):
        super().__init__(emitter.graph, batch, varying)
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        elements = shape.block * shape.blocks
        counts = np.maximum(1, -(-self.numel // elements))
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        sharing = self.sharing.reshape(len(batch), 2 * len(self.graph.shared))
        head = np.stack([self.numel, self.first_index, first[:-1], counts], axis=1)
        self._head = np.concatenate([head, sharing], axis=1).astype(np.int64)
        self.strided = self._layouts(emitter)
        self.layouts = torch.from_numpy(self.strided).to(self.device)
        self.is_strided = bool(self.strided[..., 0].any())
        self.programs = torch.from_numpy(np.repeat(np.arange(len(batch), dtype=np.int32), counts)).to(self.device)
        self.tickets = torch.zeros(max(1, len(batch)), dtype=torch.int32, device=self.device)
        self.rows = torch.empty((len(batch), emitter.row_length), dtype=torch.int64, device=self.device)
        self.on_device = torch.empty(max(1, self.numbers.size), dtype=torch.float64, device=self.device)
        self._upload_rows()
        self._upload_numbers()

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        changed = super().refresh(grads, values)
        if changed:
            self._upload_rows()
        return changed

    def take_values(self, values: Sequence[Tensor]) -> bool:
        """Values that are on the device stay there: no synchronization, and a captured graph reads them anew."""
        if any(v.device.type != "cpu" for v in values):
            varying = self.varying
            flat = [i * self.numbers.shape[1] + k for i, k in zip(varying.tensors, varying.columns, strict=True)]
            stacked = torch.stack([v.to(self.device, torch.float64, non_blocking=True) for v in values])
            self.on_device[torch.tensor(flat, device=self.device)] = stacked[
                torch.tensor(varying.positions, device=self.device)
            ]
            return True
        changed = super().take_values(values)
        if changed:
            self._upload_numbers()
        return changed

    @property
    def is_aligned(self) -> bool:
        """Do the contiguous elements of all operands start at 16 bytes?"""
        columns = [k for k, o in enumerate(self.graph.pointers) if o.kind == "element"]
        return not (self.at[:, columns] % 16).any()

    def _upload_rows(self) -> None:
        rows = np.concatenate([self._head, self.at.astype(np.int64)], axis=1)
        self.rows.copy_(torch.from_numpy(rows), non_blocking=True)
        self.aligned = self.is_aligned

    def _upload_numbers(self) -> None:
        if self.numbers.size:
            self.on_device.copy_(torch.from_numpy(self.numbers.reshape(-1)), non_blocking=True)

    def _layouts(self, emitter: TritonEmitter) -> np.ndarray:
        found = np.zeros((len(self.batch), max(1, len(emitter.strided)), 1 + 2 * MAX_DIMS), dtype=np.int64)
        found[:, :, 1:] = 1
        for i, arguments in enumerate(self.batch):
            for k, operand in enumerate(emitter.strided):
                tensor = arguments.tensors[operand.name]
                if not layout_of(tensor):
                    continue
                if tensor.ndim > MAX_DIMS:
                    shape = tuple(tensor.shape)
                    raise ValueError(f"{operand.name} of shape {shape} has strides and more than {MAX_DIMS} dimensions")
                found[i, k, 0] = tensor.ndim
                found[i, k, 1 : 1 + tensor.ndim] = tensor.shape[::-1]
                found[i, k, 1 + MAX_DIMS : 1 + MAX_DIMS + tensor.ndim] = tensor.stride()[::-1]
        return found


class AverageTable(TritonTable):
    """`tasks` int64 [programs, 9], see `TASK`: tensor, number of the shared operand, first set, first and last element of the
    sets, number of the piece and of the pieces that these sets are summed in, and where their sums and their ticket are."""

    def __init__(
        self, emitter: TritonEmitter, batch: list[TensorArguments], varying: Sequence[dict[str, int]], block: int
    ):
        super().__init__(emitter, batch, varying, LaunchShape(block, 1, 1))
        tasks, partials, tickets = [], 0, 0
        for tensor, arguments in enumerate(batch):
            for operand, (run, cycle) in enumerate(self.sharing[tensor] if arguments.numel else ()):
                if emitter.graph.shared[operand].name not in emitter.graph.decays:
                    continue
                sets = block if run == 1 else 16 if run < block else 1
                each = arguments.numel // cycle
                length = PIECE * block // sets
                pieces = -(-each // length)
                for first_set in range(0, cycle, sets):
                    for piece in range(pieces):
                        first, last = piece * length, min(each, (piece + 1) * length)
                        tasks.append((tensor, operand, first_set, first, last, piece, pieces, partials, tickets))
                    partials += pieces * sets
                    tickets += 1
        self.programs = torch.tensor(tasks, dtype=torch.int64, device=self.device).view(-1, len(TASK))
        self.partials = torch.empty(max(1, partials), dtype=torch.float64, device=self.device)
        self.tickets = torch.zeros(max(1, tickets), dtype=torch.int32, device=self.device)


class TritonProgram:
    """Executable backed by an emitted kernel. Raises CannotEmit for an operation that Triton does not have."""

    def __init__(self, graph: ProgramGraph, shape: LaunchShape | None = None):
        self.graph = graph
        self.emitter = TritonAverageEmitter(graph) if graph.averages else TritonEmitter(graph)
        self.source = self.emitter.source
        self.shape = shape or default_shape(graph)
        module = load_module(self.source)
        self.kernel = module.average_tensors if graph.averages else module.step_tensors

    def table(self, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()) -> TritonTable:
        if self.graph.averages:
            return AverageTable(self.emitter, batch, varying, self.shape.block)
        return TritonTable(self.emitter, batch, varying, self.shape)

    def run(self, table: TritonTable) -> None:
        if not len(table.programs):
            return
        arrays = [table.rows, table.on_device, table.programs, table.tickets, table.layouts]
        if isinstance(table, AverageTable):
            arrays.append(table.partials)
        self.kernel[(len(table.programs),)](
            *arrays,
            **self.constants(table.aligned, table.is_strided),
            num_warps=self.shape.warps,
            enable_fp_fusion=False,  # the bits are those of separate operations
        )

    def constants(self, aligned: bool, strided: bool) -> dict[str, int | bool]:
        """What the kernel is specialized on."""
        layouts = {"ALIGNED": aligned, "STRIDED": strided}
        if self.graph.averages:
            return {"BLOCK": self.shape.block, **layouts}
        return {"ROWS": max(1, self.shape.block // self.graph.width), "BLOCKS": self.shape.blocks, **layouts}

    def __call__(self, batch: list[TensorArguments]) -> None:
        self.run(self.table(batch))
