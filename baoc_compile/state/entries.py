"""Entries of `optimizer.state`: made, recognized, and counted in bytes, however they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.kernels.codecs.full import Full
from baoc_compile.state.state_tensor import StateTensor


def fresh(parameter: Tensor, dtype: torch.dtype, value: float, codec: Codec, key: str, seed: int) -> Tensor:
    """A new entry of the parameter's shape, every element `value`, without a full-precision copy of it."""
    if isinstance(codec, Full) and dtype == codec.parts[0].dtype:
        return torch.full_like(parameter, value, dtype=dtype, requires_grad=False).detach()
    state = StateTensor.empty(parameter.shape, dtype, parameter.device, codec, key, seed)
    if value and codec.mechanism != "dropping":
        with torch.no_grad():
            state.fill(value)
    return state


def is_stored_by(value: Tensor, codec: Codec) -> bool:
    """Is this entry already in the form that `codec` gives it?"""
    if isinstance(value, StateTensor):
        return value.codec is codec
    return isinstance(codec, Full) and value.dtype == codec.parts[0].dtype


def storage_tensors(value: Tensor, codec: Codec) -> dict[str, Tensor]:
    """The parts (and clock) of an entry in the form of `codec`."""
    return dict(value.parts) if isinstance(value, StateTensor) else {codec.parts[0].name: value}


def state_tensors(table: ParameterTable) -> list[StateTensor]:
    """Every compressed entry."""
    entries = (table.state(index) for index in range(len(table.parameters)))
    return [v for state in entries for v in state.values() if isinstance(v, StateTensor)]


def bytes_of(value: Any) -> int:
    """Exact bytes of one state entry; numbers and other Python objects count nothing."""
    if isinstance(value, StateTensor):
        return value.storage_bytes
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def state_bytes(optimizer: Any) -> int:
    """Exact bytes of optimizer state, of any optimizer: every code, scale, clock, counter and plain tensor."""
    return sum(
        bytes_of(v) for entries in optimizer.state.values() if isinstance(entries, dict) for v in entries.values()
    )
