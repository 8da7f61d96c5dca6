"""Entries of `optimizer.state`, however they are stored: make them, recognize them, count their bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import cut_of, is_divided, local_of
from baoc_compile.core.torch_private import is_distributed
from baoc_compile.kernels.codecs.plain import Full
from baoc_compile.state.state_tensor import CHUNK_ELEMENTS, StateTensor


def fresh(
    parameter: Tensor, dtype: torch.dtype, value: float, codec: Codec, key: str, seed: int, first_lane: int = 0
) -> Tensor:
    """Return a new entry of the parameter's shape, every element `value`, without allocating it in full precision.

    dtype: the logical type of the entry.
    key, seed, first_lane: the slot's key, the seed and the number of its first lane, which determine its random words.
    """
    if isinstance(codec, Full) and dtype == codec.parts[0].dtype:
        return torch.full_like(parameter, value, dtype=dtype, requires_grad=False).detach()
    state = StateTensor.empty(parameter.shape, dtype, parameter.device, codec, key, seed).anchored(parameter)
    state.first_lane = first_lane
    if (value or codec.follows_weight) and codec.mechanism != "dropping":
        with torch.no_grad():
            state.fill(value)
    return state


def is_stored_by(value: Tensor, codec: Codec) -> bool:
    """Return whether the entry already has the form that `codec` gives it."""
    if isinstance(value, StateTensor):
        return value.codec is codec
    return isinstance(codec, Full) and value.dtype == codec.parts[0].dtype


def as_found(slot: Slot, parameter: Tensor, value: Any) -> Slot:
    """Return a slot of `parameter` with what its present value `value` says of it: its sign, and whether it follows the weights;
    and with the fact that several processes hold parts of it.

    A rule proves by induction that a slot stays >= 0; the proof holds only if the slot begins there.
    """
    slot = replace(slot, divided=cut_of(parameter)) if is_divided(parameter) else slot
    if slot.weight_dtype is None and follows_weight(parameter, value, is_signed=slot.nonnegative):
        return replace(slot, follows_weight=True, nonnegative=False)
    if not slot.nonnegative or not isinstance(value, Tensor) or not _has_negative(slot, value):
        return slot
    return replace(slot, nonnegative=False)


def _has_negative(slot: Slot, value: Tensor) -> bool:
    value = local_of(value)
    if not isinstance(value, StateTensor):
        return bool((value < 0).any())
    if value.codec.mechanism != "rounding":
        return False  # shared state is stored by codecs of either sign, and only if the slot was >= 0
    if value.codec.why_not(slot, value.shape):
        return True  # a codec for signed slots was chosen, so the slot has been negative
    spans = range(0, value.numel(), CHUNK_ELEMENTS)
    parts = (torch.arange(a, min(a + CHUNK_ELEMENTS, value.numel()), device=value.device) for a in spans)
    return any(bool((value.decode_at(part) < 0).any()) for part in parts)


#: Elements that are looked at, and how far from the weights a slot that follows them may be, relative to their length.
FEW, CLOSE = 4096, 0.5


def follows_weight(parameter: Tensor, value: Any, *, is_signed: bool = False) -> bool:
    """Return whether a slot can be stored as its difference to the weights: a copy of them, or close to one.

    is_signed: whether it must have negative values, too, because the rule keeps those >= 0 that begin so.

    Of a DTensor nothing is found out by its values, which each process would judge by its own part.
    """
    value = local_of(value)
    if isinstance(value, StateTensor):
        return value.codec.follows_weight
    alike = (
        isinstance(value, Tensor)
        and not is_distributed(parameter)
        and value.shape == parameter.shape
        and value.dtype == parameter.dtype
    )
    if not alike or parameter.dtype != torch.float32 or not parameter.numel() or value.device != parameter.device:
        return False
    weights, values = (t.detach().reshape(-1)[:FEW] for t in (parameter, value))
    size = float(weights.norm())
    is_close = size > 0 and float((values - weights).norm()) <= CLOSE * size
    return is_close and (not is_signed or bool((values < 0).any()))


def storage_tensors(value: Tensor, codec: Codec) -> dict[str, Tensor]:
    """Return the parts, and the clock, of an entry that `codec` stores, by name."""
    return dict(value.parts) if isinstance(value, StateTensor) else {codec.parts[0].name: value}


def state_tensors(table: ParameterTable) -> list[StateTensor]:
    """Return every compressed entry of the optimizer's state that this process holds."""
    table = table.local
    entries = (table.state(index) for index in range(len(table.parameters)))
    return [v for state in entries for v in state.values() if isinstance(v, StateTensor)]


def follows_weights(optimizer: Any) -> bool:
    """Return whether any state is stored as the difference to its parameter."""
    entries = (e for e in optimizer.state.values() if isinstance(e, dict))
    values = (local_of(v) for e in entries for v in e.values())
    return any(isinstance(v, StateTensor) and v.codec.follows_weight for v in values)


def anchor_state(table: ParameterTable) -> None:
    """Let state that is stored as the difference to the weights belong to the optimizer's parameters, and let all state
    know which lanes it has.

    What was loaded from a file must find the weights with which it was saved.
    """
    table = table.local
    for index, parameter in enumerate(table.parameters):
        entries, first_lane = table.state(index), table.first_lane(index)
        for key, value in list(entries.items()):
            if isinstance(value, StateTensor):
                value.first_lane = first_lane
            if isinstance(value, StateTensor) and value.codec.follows_weight and value.anchor is not parameter:
                stamp = value.stamp if value.anchor is None else None
                entries[key] = value.like(lambda part: part).anchored(parameter)
                entries[key].stamp = stamp


def bytes_of(value: Any) -> int:
    """Return the exact bytes that this process holds of one state entry; 0 for numbers and other Python objects."""
    value = local_of(value)
    if isinstance(value, StateTensor):
        return value.storage_bytes
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def whole_bytes(optimizer: Any) -> int:
    """Return the exact bytes of an optimizer's state on all processes that hold parts of it."""
    entries = (e for e in optimizer.state.values() if isinstance(e, dict))
    return sum(_whole_bytes_of(value) for e in entries for value in e.values())


def _whole_bytes_of(value: Any) -> int:
    local = local_of(value)
    if local is not value and isinstance(local, StateTensor):
        return local.codec.storage_bytes(value.shape)
    return bytes_of(value) if local is value else value.numel() * value.element_size()


def state_bytes(optimizer: Any) -> int:
    """Return the exact bytes of the state of any optimizer: every code, scale, clock, counter and plain tensor."""
    return sum(
        bytes_of(v) for entries in optimizer.state.values() if isinstance(entries, dict) for v in entries.values()
    )
