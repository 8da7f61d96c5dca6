"""Migration: bring every decided slot in `optimizer.state` into the form its decision asks for, tensor by tensor."""

from __future__ import annotations

import torch
from baoc_compile.kernels.full import Full
from torch import Tensor

from baoc_compile.codec import Codec
from baoc_compile.session import Session
from baoc_compile.state_tensor import StateTensor
from baoc_compile.step_graph import ParameterTable


def adopt_state(session: Session, table: ParameterTable) -> int:
    """Returns how many entries changed their form. The old tensor of each is released before the next is converted."""
    changed = 0
    for index, parameter in enumerate(table.parameters):
        state = table.state(index)
        for key, decision in session.decisions.get(parameter, {}).items():
            value = state.get(key)
            if isinstance(value, Tensor) and not is_stored_by(value, decision.codec):
                state[key] = stored(value, decision.codec, key, session.seed)
                changed += 1
            del value
    return changed


def is_stored_by(value: Tensor, codec: Codec) -> bool:
    """Is this entry already in the form that `codec` gives it?"""
    if isinstance(value, StateTensor):
        return value.codec is codec
    return isinstance(codec, Full) and value.dtype == codec.parts[0].dtype


def stored(value: Tensor, codec: Codec, key: str, seed: int) -> Tensor:
    """`value` in the form of `codec`: a plain tensor where that holds the same numbers."""
    plain = value.decode() if isinstance(value, StateTensor) else value
    if isinstance(codec, Full) and plain.dtype == codec.parts[0].dtype:
        return plain
    with torch.no_grad():
        return StateTensor.encoded(plain, codec, key, seed)


def fresh(parameter: Tensor, dtype: torch.dtype, value: float, codec: Codec, key: str, seed: int) -> Tensor:
    """A new entry of the parameter's shape, every element `value`, without a full-precision copy of it."""
    if isinstance(codec, Full) and dtype == codec.parts[0].dtype:
        return torch.full_like(parameter, value, dtype=dtype, requires_grad=False).detach()
    state = StateTensor.empty(parameter.shape, dtype, parameter.device, codec, key, seed)
    if value:
        with torch.no_grad():
            state.fill(value)
    return state


def storage_tensors(value: Tensor, codec: Codec) -> dict[str, Tensor]:
    """The parts (and clock) of an entry in the form of `codec`."""
    return dict(value.parts) if isinstance(value, StateTensor) else {codec.parts[0].name: value}
