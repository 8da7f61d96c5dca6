"""Run a program's graph in eager torch, chunk by chunk: the reference, and the fallback for devices without a lowering.

Transient memory is at most about `CHUNK_ELEMENTS` times the number of live values, whatever the size of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE, Rows
from baoc_compile.core.program_graph import Operand, ProgramGraph, TensorArguments
from baoc_compile.kernels.codecs.bits import pack_into, unpacked
from baoc_compile.kernels.codecs.counter_hash import fold_index
from baoc_compile.kernels.dialect.trace_codec import with_exact_roots

CHUNK_ELEMENTS = 1 << 16


@dataclass
class TorchTable:
    """A batch of tensors, as the eager program takes it.

    batch: the operands of each tensor.
    varying: for each tensor, operand name -> position among the values that change from step to step.
    numbers: float64 `[tensors, numbers]`, the numbers of each tensor.
    column: column of a number, by operand name.
    """

    graph: ProgramGraph
    batch: list[TensorArguments]
    varying: Sequence[dict[str, int]]

    def __post_init__(self) -> None:
        names = [o.name for o in self.graph.numbers]
        self.column = {name: k for k, name in enumerate(names)}
        self.numbers = np.array([[a.numbers.get(n, 0.0) for n in names] for a in self.batch], dtype=np.float64)
        self.present: np.ndarray | None = None

    @property
    def active(self) -> list[TensorArguments]:
        """The operands of the tensors to step."""
        return [a for i, a in enumerate(self.batch) if self.present is None or self.present[i]]

    def follow(self, param_at: np.ndarray, grad_at: np.ndarray, grads: Callable[[], list[Tensor]]) -> None:
        for arguments, grad in zip(self.batch, grads(), strict=True):
            arguments.tensors["grad"] = grad

    def numbers_changed(self) -> None:
        for arguments, row in zip(self.batch, self.numbers.tolist(), strict=True):
            arguments.numbers |= dict(zip(self.column, row, strict=True))

    def restrict(self, present: np.ndarray | None) -> None:
        self.present = None if present is None else present.copy()

    def take_values(self, values: Sequence[Tensor]) -> bool:
        return self.refresh((), values)

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        for arguments, grad in zip(self.batch, grads, strict=False):
            arguments.tensors["grad"] = grad
        for arguments, names in zip(self.batch, self.varying, strict=False):
            arguments.numbers |= {name: float(values[position]) for name, position in names.items()}
        return False


class TorchProgram:
    """Executable that interprets `graph` in eager torch."""

    def __init__(self, graph: ProgramGraph, chunk_elements: int = CHUNK_ELEMENTS):
        self.graph = graph
        self.gm = with_exact_roots(graph.graph)
        self.source = self.gm.code
        self.chunk_elements = max(GROUP_SIZE, chunk_elements // GROUP_SIZE * GROUP_SIZE)

    def table(self, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()) -> TorchTable:
        return TorchTable(self.graph, batch, varying)

    def __call__(self, batch: list[TensorArguments]) -> None:
        self.run(self.table(batch))

    @torch.no_grad()
    def run(self, table: TorchTable) -> None:
        for arguments in table.active:
            scalars = self._scalars(arguments)
            new_scalars: dict[str, Tensor] = {}
            sums = {o.name: self._sums(arguments, o) for o in self.graph.shared if o.written}
            for start in range(0, max(arguments.lanes, 1), self.chunk_elements):
                new_scalars = self._chunk(arguments, scalars, start, sums)
            for name, value in new_scalars.items():
                if name not in sums:
                    arguments.tensors[name].copy_(value)
            for operand in self.graph.shared if arguments.numel else ():
                if operand.fold:
                    self._fold(arguments, operand, sums[operand.name], new_scalars.get(operand.name))

    @staticmethod
    def _fold(arguments: TensorArguments, operand: Operand, found: Tensor, decay: Tensor | None) -> None:
        """Store means or maxima."""
        stored = arguments.tensors[operand.name]
        if operand.fold != "most":
            found = found / (arguments.numel // arguments.sharing[operand.name].cycle)
        stored.view(-1).copy_(found if decay is None else decay * stored.to(torch.float64) + found)

    @staticmethod
    def _sums(arguments: TensorArguments, operand: Operand) -> Tensor:
        start = -float("inf") if operand.fold == "most" else 0.0
        return torch.full_like(arguments.tensors[operand.name].view(-1), start, dtype=torch.float64)

    def _scalars(self, arguments: TensorArguments) -> dict[str, Tensor]:
        device = arguments.tensors["param"].device
        found = {}
        for operand in self.graph.operands:
            if operand.per == "scalar" and operand.in_memory:
                found[operand.name] = arguments.tensors[operand.name].clone()
            elif operand.per == "scalar":
                found[operand.name] = torch.tensor(arguments.numbers[operand.name], dtype=operand.dtype, device=device)
        return found

    def _chunk(
        self, arguments: TensorArguments, scalars: dict[str, Tensor], start: int, sums: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Step lanes [start, start + chunk) and add the values to average to `sums`.

        Return the new scalars and the decays, which are the same for every chunk.
        """
        stop = min(start + self.chunk_elements, arguments.lanes)
        groups, rows = -(-(stop - start) // GROUP_SIZE), arguments.rows or Rows(1, arguments.numel)
        size = (groups, GROUP_SIZE)
        lanes = torch.arange(start, start + groups * GROUP_SIZE, device=arguments.tensors["param"].device)
        elements = rows.elements(lanes)
        existing = rows.lanes(elements)  # missing lanes repeat the row's last, word and all
        exist = existing == lanes
        index = fold_index(existing + arguments.first_index).view(size)

        def read(operand: Operand) -> Tensor:
            if operand.per == "scalar":
                return scalars[operand.name]
            if operand.source == "index":
                return index
            if operand.source == "group_index":
                return index[:, :1]
            tensor = arguments.tensors[operand.name]
            if operand.per == "codebook":
                return tensor
            if operand.per == "group":
                return tensor.view(-1)[start // GROUP_SIZE : start // GROUP_SIZE + groups].view(-1, 1)
            if operand.per == "shared":
                return tensor.view(-1)[arguments.sharing[operand.name].of(elements)].view(size)
            if operand.bits == 4:
                return unpacked(tensor, elements, rows).view(size)
            return _elements(tensor, elements).view(size)

        operands = self.graph.operands
        new = self.gm(*(read(o) if o.read else None for o in operands))
        by_name = dict(zip(self.graph.outputs, new, strict=False))
        decays = {name: new[len(by_name) + k] for name, k in self.graph.decays.items()}
        for operand in operands:
            if not operand.written or operand.per == "scalar":
                continue
            value, tensor = by_name[operand.name], arguments.tensors[operand.name]
            if operand.per == "group":
                tensor.view(-1)[start // GROUP_SIZE : start // GROUP_SIZE + groups] = value.reshape(-1)
                continue
            value = value.to(operand.dtype).expand(size).reshape(-1)[exist]
            if operand.fold == "most":
                sets = arguments.sharing[operand.name].of(elements[exist])
                sums[operand.name].scatter_reduce_(0, sets, value.double(), "amax")
            elif operand.per == "shared":
                sums[operand.name].index_add_(0, arguments.sharing[operand.name].of(elements[exist]), value.double())
            elif operand.bits == 4:
                pack_into(tensor, elements[exist], value, rows)
            else:
                _store(tensor, elements[exist], value)
        return {o.name: by_name[o.name] for o in operands if o.written and o.per == "scalar"} | decays


def _elements(tensor: Tensor, lanes: Tensor) -> Tensor:
    """Gather elements by their logical (row-major) index, whatever the strides."""
    if tensor.numel() == 0:
        return tensor.reshape(-1)
    if tensor.is_contiguous():
        return tensor.view(-1)[lanes]
    return tensor[torch.unravel_index(lanes, tensor.shape)]


def _store(tensor: Tensor, lanes: Tensor, value: Tensor) -> None:
    if tensor.is_contiguous():
        tensor.view(-1)[lanes] = value
    else:
        tensor[torch.unravel_index(lanes, tensor.shape)] = value
