"""Shard: what this process holds of a tensor that several processes hold together, and where it lies in the whole.

torch calls such a tensor a DTensor. Its placements say, for every dimension of a mesh of processes, whether each process
has a part of it (`Shard`) or all of it (`Replicate`). Formats, rules and plans are those of the whole; a step runs on the
local tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from baoc_compile.core.codec import Rows
from baoc_compile.core.torch_private import distributed_like, is_distributed, local_tensor, shard_in_whole


@dataclass(frozen=True)
class Shard:
    """Where the elements of a local tensor lie in the whole. A plain tensor is the whole.

    shape: shape of the whole.
    local_shape: shape of the part.
    offset: index of the part's first element, in each dimension.
    """

    shape: torch.Size
    local_shape: torch.Size
    offset: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> Shard:
        """Return the shard of a DTensor that this process holds, or all of any other tensor."""
        if not is_distributed(tensor):
            return Shard(tensor.shape, tensor.shape, (0,) * tensor.ndim)
        local_shape, offset = shard_in_whole(tensor)
        if 0 in local_shape:
            offset = (0,) * len(offset)  # there is no first element
        return Shard(tensor.shape, torch.Size(local_shape), tuple(offset))

    @property
    def first_lane(self) -> int:
        """Number of the first lane (see `Rows`) among those of the whole.

        Whole rows have the lanes that they have in the whole. Parts of rows can't: those that begin at column c come after c
        times as many lanes as the whole has, rounded up to a power of 2. So no two elements have the same random words.
        """
        if len(self.shape) < 2:
            return self.offset[0] if self.shape else 0
        rows, part = Rows.of(self.shape), Rows.of(self.local_shape)
        if self.local_shape[1:] == self.shape[1:]:
            return self.offset[0] * (rows.padded if rows.are_padded else rows.columns)
        column = 0
        for size, offset in zip(self.shape[1:], self.offset[1:], strict=True):
            column = column * size + offset
        return self.offset[0] * part.padded + (column << (rows.count * rows.padded - 1).bit_length())


def is_divided(tensor: Tensor) -> bool:
    """Return whether no process need hold all elements of a tensor."""
    return is_distributed(tensor) and any(
        placement.is_shard() and tensor.device_mesh.size(dim) > 1  # type: ignore[attr-defined]
        for dim, placement in enumerate(tensor.placements)  # type: ignore[attr-defined]
    )


def cut_of(tensor: Tensor) -> Literal["", "rows", "inside"]:
    """Return how processes hold parts of a tensor: whole rows, parts inside of rows, or all of it ("")."""
    if not is_divided(tensor):
        return ""
    cut = {p.dim for p in tensor.placements if p.is_shard()}  # type: ignore[attr-defined]
    return "rows" if cut == {0} and tensor.ndim > 1 else "inside"


def local_of(value: Any) -> Any:
    """Return what this process holds of a DTensor; any other value itself."""
    return local_tensor(value) if is_distributed(value) else value


def whole_of(parameter: Tensor, value: Any) -> Any:
    """Return state of `parameter` as the optimizer shall see it: a DTensor if the parameter is one and `value` is of its
    local shape; else `value` itself.
    """
    if not is_distributed(parameter) or not isinstance(value, Tensor) or is_distributed(value):
        return value
    return distributed_like(parameter, value) if value.shape == local_tensor(parameter).shape and value.ndim else value


class LocalEntries(MutableMapping[Any, Any]):
    """The state of one DTensor parameter, entry by entry as this process holds it.

    parameter: the parameter.
    entries: its state as the optimizer sees it.
    """

    def __init__(self, parameter: Tensor, entries: MutableMapping[Any, Any]):
        self.parameter, self.entries = parameter, entries

    def __getitem__(self, key: Any) -> Any:
        return local_of(self.entries[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = whole_of(self.parameter, value)

    def __delitem__(self, key: Any) -> None:
        del self.entries[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
