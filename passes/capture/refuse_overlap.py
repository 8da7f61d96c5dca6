"""Refusal: parameters that share memory with one another, or with themselves.

A step updates every parameter as if its elements were its own. Where two parameters, or two elements of one, lie in the same
memory, the result would depend on the order of the updates.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.errors import OptionError
from baoc_compile.core.step_graph import ParameterTable


def refuse_overlap(table: ParameterTable) -> None:
    """Raises OptionError that names the parameters. Parameters without memory of their own (meta, wrappers) pass."""
    by_memory: dict[tuple[torch.device, int], list[tuple[int, int, int]]] = defaultdict(list)
    for index, parameter in enumerate(table.parameters):
        if parameter.layout != torch.strided or not parameter.numel() or not _address(parameter):
            continue
        if _overlaps_itself(parameter):
            raise OptionError(
                f"{table.names[index]}: several of its elements share memory (shape {tuple(parameter.shape)}, strides "
                f"{parameter.stride()}), so its update is not defined; make it contiguous before you create the optimizer"
            )
        first, last = _extent(parameter)
        by_memory[parameter.device, parameter.untyped_storage().data_ptr()].append((first, last, index))
    for spans in by_memory.values():
        spans.sort()
        for position, (_, last, index) in enumerate(spans):
            for first, _, other in spans[position + 1 :]:
                if first > last:
                    break
                if _share_bytes(table.parameters[index], table.parameters[other]):
                    a, b = sorted((index, other))
                    raise OptionError(
                        f"{table.names[a]} and {table.names[b]} share memory, so both would be stepped in it; give the "
                        "optimizer one of them, or copies"
                    )


def _address(parameter: Tensor) -> int:
    try:
        return parameter.data_ptr()
    except RuntimeError:  # a tensor without storage
        return 0


def _extent(parameter: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of the last one."""
    reach = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    first = parameter.data_ptr()
    return first, first + (reach + 1) * parameter.element_size() - 1


def _overlaps_itself(parameter: Tensor) -> bool:
    """Do two indices lead to one element? Not if, from the smallest stride up, each steps over all that is below."""
    reach = 0
    for stride, size in sorted(
        (stride, size) for size, stride in zip(parameter.shape, parameter.stride(), strict=True)
    ):
        if size > 1:
            if stride <= reach:
                offsets = _offsets(parameter)
                return len(np.unique(offsets)) < offsets.size
            reach += (size - 1) * stride
    return False


def _share_bytes(a: Tensor, b: Tensor) -> bool:
    """Exact, for tensors whose extents meet: views may interleave without sharing an element."""
    return bool(np.intersect1d(_bytes_of(a), _bytes_of(b)).size)


def _bytes_of(parameter: Tensor) -> np.ndarray:
    width = parameter.element_size()
    first = parameter.data_ptr() + _offsets(parameter).astype(np.int64) * width
    return (first[:, None] + np.arange(width)).reshape(-1)


def _offsets(parameter: Tensor) -> np.ndarray:
    """Of every element, in elements from the first."""
    offsets = np.zeros(1, dtype=np.int64)
    for size, stride in zip(parameter.shape, parameter.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets
