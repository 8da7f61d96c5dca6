"""Refuse parameters that share memory with one another or with themselves.

A step updates every element independently. If two elements share memory, the result depends on the order of the
updates.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.errors import OptionError
from baoc_compile.core.step_graph import ParameterTable


def refuse_overlap(table: ParameterTable) -> None:
    """Raise OptionError, naming the parameters, if any elements share memory.

    Parameters that own no memory (meta tensors, wrapper subclasses) are not checked.
    """
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
    """Return the addresses of the first and the last byte."""
    reach = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    first = parameter.data_ptr()
    return first, first + (reach + 1) * parameter.element_size() - 1


def _overlaps_itself(parameter: Tensor) -> bool:
    """Return whether two indices refer to the same element.

    They do not if every stride, in ascending order, exceeds the reach of the smaller ones; otherwise all offsets are
    compared.
    """
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
    """Return whether two tensors share a byte, exactly: interleaved views have overlapping extents but share none."""
    return bool(np.intersect1d(_bytes_of(a), _bytes_of(b)).size)


def _bytes_of(parameter: Tensor) -> np.ndarray:
    width = parameter.element_size()
    first = parameter.data_ptr() + _offsets(parameter).astype(np.int64) * width
    return (first[:, None] + np.arange(width)).reshape(-1)


def _offsets(parameter: Tensor) -> np.ndarray:
    """Return the offset of every element from the first, in elements."""
    offsets = np.zeros(1, dtype=np.int64)
    for size, stride in zip(parameter.shape, parameter.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets
