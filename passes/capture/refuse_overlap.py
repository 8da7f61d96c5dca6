"""Refuse parameters and state that share memory with one another, with a gradient or with themselves.

A step updates every element independently. If two elements share memory, the result depends on the order of the
updates. A slot that is the gradient or the parameter itself would change with it, and once stored by a codec it cannot.
"""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.errors import OptionError, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.torch_private import FakeTensor, is_distributed, is_wrapper
from baoc_compile.passes.capture.leaves import leaves_of

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


def refuse_overlap(table: ParameterTable) -> None:
    """Raise an error that names the tensors if any elements of parameters and state share memory.

    It is an OptionError for parameters. It is an UnsupportedStep for state; its step then runs as written, and is
    traced again when the state no longer is the same tensor. State counts if it has its parameter's shape. Gradients
    may share memory with one another. Tensors that own no memory (meta tensors, wrapper subclasses) are not checked.
    """
    table = table.local
    for name, parameter in zip(table.names, table.parameters, strict=True):
        if _owns_memory(parameter) and _overlaps_itself(parameter):
            raise OptionError(
                f"{name}: several of its elements share memory (shape {tuple(parameter.shape)}, strides "
                f"{parameter.stride()}), so its update is not defined; make it contiguous before you create the optimizer"
            )
    _refuse(_tensors(table))


def refuse_wrappers(table: ParameterTable) -> None:
    """Raise an OptionError that names the first parameter whose class keeps its elements elsewhere and is no DTensor."""
    for name, parameter in zip(table.names, table.parameters, strict=True):
        is_known = is_distributed(parameter) or isinstance(parameter, FakeTensor) or parameter.is_meta
        if is_wrapper(parameter) and not is_known and parameter.numel() and not _address(parameter):
            raise OptionError(
                f"{name} is of class {type(parameter).__name__}, whose elements are in other tensors, so it can't be stepped; "
                "give the optimizer these tensors, or parameters of torch's own classes (DTensor is one)"
            )


def refuse_overlap_of_others(table: ParameterTable) -> None:
    """Raise UnsupportedStep if a tensor in an attribute, a group or a container of state shares memory with another tensor."""
    others: dict[int, tuple[str, str, Tensor]] = {}
    for source, value in leaves_of(table.optimizer, table.parameters):
        if isinstance(value, Tensor) and (source.kind != "state" or len(source.path) > 1):
            others.setdefault(id(value), ("state", str(source), value))
    if others:
        _refuse([*_tensors(table), *others.values()])


def _refuse(named: Iterable[tuple[str, str, Tensor]]) -> None:
    tensors = [(role, name, tensor) for role, name, tensor in named if _owns_memory(tensor)]
    by_memory: dict[tuple[torch.device, int], list[tuple[int, int, int]]] = defaultdict(list)
    for position, (_, _, tensor) in enumerate(tensors):
        memory = tensor.device, tensor.untyped_storage().data_ptr()
        by_memory[memory].append((*_extent(tensor), position))
    for spans in by_memory.values():
        spans.sort()
        for earlier, (_, last, position) in enumerate(spans):
            for first, _, other in spans[earlier + 1 :]:
                if first > last:
                    break
                a, b = sorted((position, other))
                roles = {tensors[a][0], tensors[b][0]}
                if roles == {"gradient"} or not _share_bytes(tensors[a][2], tensors[b][2]):
                    continue
                shared = f"{tensors[a][1]} and {tensors[b][1]} share memory"
                if "state" in roles:
                    raise UnsupportedStep(f"{shared}; keep a copy (`.clone()`) in the state")
                raise OptionError(
                    f"{shared}, so both would be stepped in it; give the optimizer one of them, or copies"
                )


def _tensors(table: ParameterTable) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (role, name, tensor) of all parameters, then of their gradients, then of their state."""
    for name, parameter in zip(table.names, table.parameters, strict=True):
        yield "parameter", name, parameter
    for name, parameter in zip(table.names, table.parameters, strict=True):
        if parameter.grad is not None:
            yield "gradient", f"the gradient of {name}", parameter.grad
    for index, (name, parameter) in enumerate(zip(table.names, table.parameters, strict=True)):
        for key, value in table.state(index).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield "state", f"state {key!r} of {name}", value


def _owns_memory(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.numel() > 0 and _address(tensor) != 0


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor without storage
        return 0


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the first and the last byte."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size() - 1


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two indices refer to the same element.

    They do not if every stride, in ascending order, exceeds the reach of the smaller ones; otherwise all offsets are
    compared.
    """
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1:
            if stride <= reach:
                offsets = offsets_of(tensor)
                return len(np.unique(offsets)) < offsets.size
            reach += (size - 1) * stride
    return False


def _share_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors share a byte, exactly: interleaved views have overlapping extents but share none."""
    return a.data_ptr() == b.data_ptr() or bool(np.intersect1d(_bytes_of(a), _bytes_of(b)).size)


def _bytes_of(tensor: Tensor) -> np.ndarray:
    width = tensor.element_size()
    first = tensor.data_ptr() + offsets_of(tensor).astype(np.int64) * width
    return (first[:, None] + np.arange(width)).reshape(-1)


def offsets_of(tensor: Tensor) -> np.ndarray:
    """Return the offset of every element from the first, in elements."""
    offsets = np.zeros(1, dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size) * stride).reshape(-1)
    return offsets
