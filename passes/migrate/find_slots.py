"""Find the slots of an optimizer whose step is not read: state tensors of their parameter's shape that nobody else holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Slot
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.core.torch_private import base_of, holders_of_memory
from baoc_compile.state.entries import follows_weight, is_stored_by
from baoc_compile.state.state_tensor import StateTensor


def is_settled(table: ParameterTable, storage: Storage) -> bool:
    """Return whether every entry that may be a slot is stored as `storage` says: a glance at each, for every step."""
    table = table.local
    for index, parameter in enumerate(table.parameters):
        slots = storage.of(index).slots
        for key, value in table.state(index).items():
            if isinstance(value, Tensor) and not (key in slots and is_stored_by(value, slots[key].codec)):
                may_be = isinstance(key, str) and value.ndim and value.shape == parameter.shape
                if may_be and not is_sparse(parameter):
                    return False
    return True


def find_slots(table: ParameterTable) -> dict[int, tuple[Slot, ...]]:
    """Return the slots by parameter index. Nothing is known of their updates.

    A step on sparse gradients changes a few rows: to decode and encode all of them would cost more than it saves.
    """
    found, table = {}, table.local
    for index, parameter in enumerate(table.parameters):
        if is_sparse(parameter):
            continue
        entries = table.state(index)
        keys = [key for key in entries if isinstance(key, str) and is_slot(entries, key, parameter)]
        if keys:
            found[index] = tuple(Slot(key, follows_weight=follows_weight(parameter, entries[key])) for key in keys)
    return found


def is_sparse(parameter: Tensor) -> bool:
    """Return whether a parameter has a sparse gradient."""
    return parameter.grad is not None and parameter.grad.layout != torch.strided


def is_slot(entries: Mapping[Any, Any], key: str, parameter: Tensor) -> bool:
    """Return whether an entry of a parameter's state may be stored in another form."""
    value = entries[key]
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.ndim:
        return False
    if isinstance(value, StateTensor):
        return value.codec.mechanism == "rounding"
    is_plain = type(value) is Tensor and value.layout == torch.strided and value.device == parameter.device
    if not is_plain or not value.is_floating_point() or value.requires_grad or base_of(value) is not None:
        return False
    is_own = sys.getrefcount(value) <= 3 and holders_of_memory(value) <= 1  # the dictionary, `value`, the argument
    return is_own and value.untyped_storage().nbytes() == value.numel() * value.element_size()
