"""Entries of `optimizer.state`, however they are stored: make them, recognize them, count their bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.kernels.codecs.full import Full
from baoc_compile.state.state_tensor import StateTensor


def fresh(parameter: Tensor, dtype: torch.dtype, value: float, codec: Codec, key: str, seed: int) -> Tensor:
    """Return a new entry of the parameter's shape, every element `value`, without allocating it in full precision.

    dtype: the logical type of the entry.
    key, seed: the slot's key and the seed, which determine its random words.
    """
    if isinstance(codec, Full) and dtype == codec.parts[0].dtype:
        return torch.full_like(parameter, value, dtype=dtype, requires_grad=False).detach()
    state = StateTensor.empty(parameter.shape, dtype, parameter.device, codec, key, seed)
    if value and codec.mechanism != "dropping":
        with torch.no_grad():
            state.fill(value)
    return state


def is_stored_by(value: Tensor, codec: Codec) -> bool:
    """Return whether the entry already has the form that `codec` gives it."""
    if isinstance(value, StateTensor):
        return value.codec is codec
    return isinstance(codec, Full) and value.dtype == codec.parts[0].dtype


def storage_tensors(value: Tensor, codec: Codec) -> dict[str, Tensor]:
    """Return the parts, and the clock, of an entry that `codec` stores, by name."""
    return dict(value.parts) if isinstance(value, StateTensor) else {codec.parts[0].name: value}


def state_tensors(table: ParameterTable) -> list[StateTensor]:
    """Return every compressed entry of the optimizer's state."""
    entries = (table.state(index) for index in range(len(table.parameters)))
    return [v for state in entries for v in state.values() if isinstance(v, StateTensor)]


def bytes_of(value: Any) -> int:
    """Return the exact bytes of one state entry; 0 for numbers and other Python objects."""
    if isinstance(value, StateTensor):
        return value.storage_bytes
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def state_bytes(optimizer: Any) -> int:
    """Return the exact bytes of the state of any optimizer: every code, scale, clock, counter and plain tensor."""
    return sum(
        bytes_of(v) for entries in optimizer.state.values() if isinstance(entries, dict) for v in entries.values()
    )
