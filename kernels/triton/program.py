"""Run a program as one launch of a Triton kernel over a batch of tensors: on a GPU, or on a CPU by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.errors import StateError
from baoc_compile.core.program_graph import ProgramGraph, TensorArguments
from baoc_compile.kernels.build.load_triton import load_module
from baoc_compile.kernels.launch.launch_table import LaunchTable, layout_of
from baoc_compile.kernels.triton import device_functions
from baoc_compile.kernels.triton.emit import TritonEmitter
from baoc_compile.kernels.triton.emit_average import TASK, TritonAverageEmitter

#: Maximum dimensions of a tensor that is not contiguous.
MAX_DIMS = device_functions.MAX_DIMS.value

#: Tiles that one program instance sums, at most.
PIECE = 64


@dataclass(frozen=True)
class LaunchShape:
    """How a launch divides elements into program instances.

    tile: elements that a program instance computes at once.
    tiles: tiles that a program instance computes, one after the other.
    warps: warps of a program instance.
    """

    tile: int
    tiles: int
    warps: int


def default_shape(graph: ProgramGraph, warp_size: int | None = None) -> LaunchShape:
    """Return a shape at which no target spills registers (docs/kernels.md): 4 elements (16 bytes of fp32) per thread.

    Steps that look values up need more registers per thread; fewer and larger program instances leave them more.
    `warp_size`: threads of a warp, by default those of the GPUs that torch was built for.
    """
    looks_up = not graph.folds and any(o.per in ("codebook", "shared") for o in graph.operands)
    threads = 512 if looks_up else 128
    return LaunchShape(4 * threads, 8192 // (4 * threads), threads // (warp_size or (64 if torch.version.hip else 32)))


class TritonTable(LaunchTable):
    """A table on the device.

    rows: int64 `[tensors, row_length]`. A row is {elements, first index, first instance, instances, lanes, elements and
        lanes of a row (of the whole tensor if no row is padded), run and cycle of each shared operand, addresses}.
    on_device: the numbers, float64 `[tensors * numbers]`.
    instances: int32, the tensor of each program instance.
    tickets: int32 `[tensors]`, 0 between launches.
    layouts: int64 `[tensors, strided operands, 13]`.
    aligned: whether the elements of all operands start at multiples of 16 bytes.
    is_strided: whether any tensor is not contiguous.

    Raises StateError for a tensor on another device than its parameter, and ValueError for one with strides and more
    than `MAX_DIMS` dimensions.
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
        self._kept: list[Tensor] = []
        for k, tensor in enumerate(self.tensors):
            if tensor.device != self.device:
                name = self.graph.pointers[k % len(self.graph.pointers)].name
                raise StateError(f"{name} is on {tensor.device}, its parameter on {self.device}: move it there")
        elements = shape.tile * shape.tiles
        counts = np.maximum(1, -(-self.lanes // elements))
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        sharing = self.sharing.reshape(len(batch), 2 * len(self.graph.shared))
        is_padded, every = self.columns > 0, np.maximum(self.lanes, 1)
        padded = np.where(is_padded, -(-self.columns // GROUP_SIZE) * GROUP_SIZE, every)
        rows = [self.lanes, np.where(is_padded, self.columns, every), padded]
        head = np.stack([self.numel, self.first_index, first[:-1], counts, *rows], axis=1)
        self._head = np.concatenate([head, sharing], axis=1).astype(np.int64)
        strided = self._layouts(emitter)
        self.is_strided = bool(strided[..., 0].any())
        self.layouts = self._on_device(strided)
        self.all_instances: np.ndarray = np.repeat(np.arange(len(batch), dtype=np.int32), counts)
        self.instances = self._on_device(self.all_instances)
        self.tickets = torch.zeros(max(1, len(batch)), dtype=torch.int32, device=self.device)
        self.rows = self._on_device(self._rows())
        self.on_device = self._on_device(self.numbers.reshape(-1) if self.numbers.size else np.zeros(1))
        self.aligned = self._is_aligned()
        flat = np.array(self.varying.tensors, dtype=np.int64) * self.numbers.shape[-1] + self.varying.columns
        self._varying_at = self._on_device(flat.astype(np.int64))
        self._varying_from = self._on_device(np.array(self.varying.positions, dtype=np.int64))

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        changed = super().refresh(grads, values)
        if changed:
            self.addresses_changed()
        return changed

    def follow(self, param_at: np.ndarray, grad_at: np.ndarray, grads: Callable[[], list[Tensor]]) -> None:
        before = self.at.copy()
        super().follow(param_at, grad_at, grads)
        if not np.array_equal(before, self.at):
            self.addresses_changed()

    def addresses_changed(self) -> None:
        """Send the addresses to the device."""
        self.rows.copy_(self._pinned(self._rows()), non_blocking=True)
        self.aligned = self._is_aligned()

    def numbers_changed(self) -> None:
        self.on_device.copy_(self._pinned(self.numbers.reshape(-1)), non_blocking=True)

    def restrict(self, present: np.ndarray | None) -> None:
        first = self.all_instances if self.all_instances.ndim == 1 else self.all_instances[:, 0]
        chosen = self.all_instances if present is None else self.all_instances[present[first]]
        self.instances = self._on_device(np.ascontiguousarray(chosen))

    def take_values(self, values: Sequence[Tensor]) -> bool:
        """Enter this step's values. Return True if any may have changed.

        Values on the device stay there: no synchronization is needed, and a captured graph reads them anew.
        """
        if self.varying.positions and any(v.device.type != "cpu" for v in values):
            stacked = torch.stack([v.to(self.device, torch.float64, non_blocking=True) for v in values])
            self.on_device.index_copy_(0, self._varying_at, stacked.index_select(0, self._varying_from))
            return True
        changed = super().take_values(values)
        if changed:
            self.numbers_changed()
        return changed

    def _on_device(self, array: np.ndarray) -> Tensor:
        return self._pinned(array).to(self.device, non_blocking=True)

    def _pinned(self, array: np.ndarray) -> Tensor:
        """Return a copy that the device may read at any later time.

        A graph being captured reads the copy at every replay, so the table keeps it for good. Otherwise torch keeps it
        until the transfer is done.
        """
        copy = torch.from_numpy(array.copy())
        if self.device.type != "cuda":
            return copy
        copy = copy.pin_memory()
        if torch.cuda.is_current_stream_capturing():
            self._kept.append(copy)
        return copy

    def _rows(self) -> np.ndarray:
        return np.concatenate([self._head, self.at.astype(np.int64)], axis=1)

    def _is_aligned(self) -> bool:
        """Tell whether the elements of all operands start at multiples of 16 bytes."""
        columns = [k for k, o in enumerate(self.graph.pointers) if o.per == "element"]
        return not (self.at[:, columns] % 16).any()

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
    """A table whose `instances` are tasks: int64 `[program instances, 9]`, columns `TASK`.

    tensor: number of the tensor.
    operand: number of the shared operand.
    first_set: first of the sets to sum.
    first, last: range of elements of each set.
    piece, pieces: number of this piece, and of all pieces that these sets are summed in.
    partials, ticket: where the sums and the ticket of these sets are.
    """

    def __init__(
        self, emitter: TritonEmitter, batch: list[TensorArguments], varying: Sequence[dict[str, int]], tile: int
    ):
        super().__init__(emitter, batch, varying, LaunchShape(tile, 1, 1))
        tasks, partials, tickets = [], 0, 0
        for tensor, arguments in enumerate(batch):
            for operand, (run, cycle) in enumerate(self.sharing[tensor] if arguments.numel else ()):
                if not emitter.graph.shared[operand].fold:
                    continue
                sets = tile if run == 1 else 16 if run < tile else 1
                each = arguments.numel // cycle
                length = PIECE * tile // sets
                pieces = -(-each // length)
                for first_set in range(0, cycle, sets):
                    for piece in range(pieces):
                        first, last = piece * length, min(each, (piece + 1) * length)
                        tasks.append((tensor, operand, first_set, first, last, piece, pieces, partials, tickets))
                    partials += pieces * sets
                    tickets += 1
        self.all_instances = np.array(tasks, dtype=np.int64).reshape(-1, len(TASK))
        self.instances = self._on_device(self.all_instances)
        self.partials = torch.empty(max(1, partials), dtype=torch.float64, device=self.device)
        self.tickets = torch.zeros(max(1, tickets), dtype=torch.int32, device=self.device)


class TritonProgram:
    """Executable backed by an emitted kernel. Raises CannotEmit for an operation that Triton does not have."""

    def __init__(self, graph: ProgramGraph, shape: LaunchShape | None = None):
        self.graph = graph
        self.emitter = TritonAverageEmitter(graph) if graph.folds else TritonEmitter(graph)
        self.source = self.emitter.source
        self.shape = shape or default_shape(graph)
        module = load_module(self.source)
        self.kernel = module.average_tensors if graph.folds else module.step_tensors

    def table(self, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()) -> TritonTable:
        if self.graph.folds:
            return AverageTable(self.emitter, batch, varying, self.shape.tile)
        return TritonTable(self.emitter, batch, varying, self.shape)

    def run(self, table: TritonTable) -> None:
        if not len(table.instances):
            return
        arrays = [table.rows, table.on_device, table.instances, table.tickets, table.layouts]
        if isinstance(table, AverageTable):
            arrays.append(table.partials)
        with torch.cuda.device(table.device) if table.device.type == "cuda" else nullcontext():
            self.kernel[(len(table.instances),)](
                *arrays,
                **self.constants(table.aligned, table.is_strided),
                num_warps=self.shape.warps,
                enable_fp_fusion=False,  # gives the bits of separate operations
            )

    def constants(self, aligned: bool, strided: bool) -> dict[str, int | bool]:
        """Return the compile-time constants of the kernel."""
        layouts = {"ALIGNED": aligned, "STRIDED": strided}
        if self.graph.folds:
            return {"BLOCK_SIZE": self.shape.tile, **layouts}
        return {"ROWS": max(1, self.shape.tile // GROUP_SIZE), "TILES": self.shape.tiles, **layouts}

    def __call__(self, batch: list[TensorArguments]) -> None:
        self.run(self.table(batch))
