"""Migration: bring every decided slot in `optimizer.state` into the form its decision asks for, tensor by tensor."""

from __future__ import annotations

import torch
from baoc_compile.kernels.full import Full
from torch import Tensor

from baoc_compile.codec import WEIGHT_KEY, Codec
from baoc_compile.session import Session
from baoc_compile.state_tensor import StateTensor
from baoc_compile.step_graph import ParameterTable


def adopt_state(session: Session, table: ParameterTable) -> int:
    """Returns how many entries changed their form. The old tensor of each is released before the next is converted."""
    changed = 0
    for index, parameter in enumerate(table.parameters):
        state = table.state(index)
        for key, decision in session.decisions.get(parameter, {}).items():
            if decision.codec.kind == "weight":
                continue
            value = state.get(key)
            if isinstance(value, Tensor) and not is_stored_by(value, decision.codec):
                state[key] = stored(value, decision.codec, key, session.seed)
                changed += 1
            del value
    return changed + adopt_weights(session, table)


def adopt_weights(session: Session, table: ParameterTable) -> int:
    """What weight codecs keep beside the weights. Not before the optimizer has made its own state: many look whether
    there is any. Returns how many entries changed."""
    changed = 0
    for index, parameter in enumerate(table.parameters):
        decisions, state = session.decisions.get(parameter, {}), table.state(index)
        codec, old = decisions[WEIGHT_KEY].codec if WEIGHT_KEY in decisions else None, state.get(WEIGHT_KEY)
        is_early = not state and any(d.codec.kind != "weight" for d in decisions.values())
        if codec is None or is_early or (isinstance(old, StateTensor) and old.codec is codec):
            continue
        if codec.stored_parts or codec.stochastic:
            new = StateTensor.empty(parameter.shape, parameter.dtype, parameter.device, codec, WEIGHT_KEY, session.seed)
            if isinstance(old, StateTensor):
                new.store_weight(old.decode_weight(parameter))
            table.optimizer.state[parameter][WEIGHT_KEY] = new
            changed += 1
        elif old is not None:
            del state[WEIGHT_KEY]
            changed += 1
    return changed


def state_tensors(table: ParameterTable) -> list[StateTensor]:
    """Every compressed entry."""
    entries = (table.state(index) for index in range(len(table.parameters)))
    return [v for state in entries for v in state.values() if isinstance(v, StateTensor)]


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
    if codec.kind == "dropping":
        return fresh(plain, plain.dtype, 0.0, codec, key, seed)
    with torch.no_grad():
        return StateTensor.encoded(plain, codec, key, seed)


def fresh(parameter: Tensor, dtype: torch.dtype, value: float, codec: Codec, key: str, seed: int) -> Tensor:
    """A new entry of the parameter's shape, every element `value`, without a full-precision copy of it."""
    if isinstance(codec, Full) and dtype == codec.parts[0].dtype:
        return torch.full_like(parameter, value, dtype=dtype, requires_grad=False).detach()
    state = StateTensor.empty(parameter.shape, dtype, parameter.device, codec, key, seed)
    if value and codec.kind != "dropping":
        with torch.no_grad():
            state.fill(value)
    return state


def storage_tensors(value: Tensor, codec: Codec) -> dict[str, Tensor]:
    """The parts (and clock) of an entry in the form of `codec`."""
    return dict(value.parts) if isinstance(value, StateTensor) else {codec.parts[0].name: value}
