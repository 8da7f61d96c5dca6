"""Migration: bring every decided slot in `optimizer.state` into the form its decision asks for, tensor by tensor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from baoc_compile.core.codec import WEIGHT_KEY, Codec
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.kernels.codecs.full import Full
from baoc_compile.kernels.codecs.learn_codebook import SAMPLE_ELEMENTS
from baoc_compile.runtime.session import Session
from baoc_compile.state.state_tensor import CHUNK_ELEMENTS, StateTensor, bytes_of

#: Entries up to this size are converted beside their old form; larger ones may be moved out of the way first.
CHUNK_BYTES = 4 * CHUNK_ELEMENTS


def migrate_state(session: Session, table: ParameterTable, *, within_budget: bool = False) -> int:
    """Returns how many entries changed their form. The old tensor of each is released before the next is converted.

    `within_budget`: entries that shrink come first, and the old form of a large one waits outside the device's memory (in
    host memory, or in a file if the device is the host) while the new one is made: state never takes more than before
    or after, and one chunk. If an entry cannot be converted, it and those that follow keep their form, and their values.
    """
    changes = []
    for index, parameter in enumerate(table.parameters):
        state = table.state(index)
        for key, decision in session.decisions.get(parameter, {}).items():
            value, codec = state.get(key), decision.codec
            if codec.mechanism != "weight" and isinstance(value, Tensor) and not is_stored_by(value, codec):
                changes.append((codec.storage_bytes(value.shape) - bytes_of(value), index, key, codec))
            del value
    if within_budget:
        changes.sort(key=lambda change: change[:2])
    for _, index, key, codec in changes:
        state = table.state(index)
        if within_budget and bytes_of(state[key]) > CHUNK_BYTES:
            state[key] = moved_away(state[key])
        state[key] = stored(table.parameters[index], state[key], codec, key, session.seed)
    return len(changes) + migrate_weights(session, table)


def migrate_weights(session: Session, table: ParameterTable) -> int:
    """What weight codecs keep beside the weights. Not before the optimizer has made its own state: many look whether
    there is any. Returns how many entries changed."""
    changed = 0
    for index, parameter in enumerate(table.parameters):
        decisions, state = session.decisions.get(parameter, {}), table.state(index)
        decided = [d.codec for d in decisions.values() if d.codec.mechanism == "weight"]  # a slot may have its key
        codec, old = decided[0] if decided else None, state.get(WEIGHT_KEY)
        is_early = not state and any(d.codec.mechanism != "weight" for d in decisions.values())
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


@torch.no_grad()
def stored(parameter: Tensor, value: Tensor, codec: Codec, key: str, seed: int) -> Tensor:
    """`value`, a slot of `parameter`, in the form of `codec`: a plain tensor where that holds the same numbers. What was
    dropped starts at 0."""
    new = fresh(parameter, value.dtype, 0.0, codec, key, seed)
    if codec.mechanism == "dropping":
        return new
    flat = value if isinstance(value, StateTensor) else value.detach().reshape(-1)

    def read(start: int, stop: int) -> Tensor:
        if not isinstance(flat, StateTensor):
            return flat[start:stop].to(parameter.device)
        return flat.decode_at(torch.arange(start, stop, device=flat.device)).to(parameter.device)

    spans = [(a, min(a + CHUNK_ELEMENTS, value.numel())) for a in range(0, value.numel(), CHUNK_ELEMENTS)]
    if isinstance(new, StateTensor):
        if any(part.per == "codebook" for part in codec.parts) and spans:
            codec.learn(new.parts, torch.cat([read(*span) for span in spans[: SAMPLE_ELEMENTS // CHUNK_ELEMENTS]]))
        new.store_chunks(read)
        return new
    flat_new = new.view(-1) if new.is_contiguous() else torch.empty(value.numel(), dtype=new.dtype, device=new.device)
    for start, stop in spans:
        flat_new[start:stop] = read(start, stop)
    return new if new.is_contiguous() else new.copy_(flat_new.view(new.shape))


def moved_away(value: Tensor) -> Tensor:
    """The same entry outside the memory of its device: on the host, or, from there, in a temporary file that is mapped."""
    move = _in_file if value.device.type == "cpu" else Tensor.cpu
    return value.like(move) if isinstance(value, StateTensor) else move(value)


def _in_file(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return tensor
    with tempfile.NamedTemporaryFile(prefix="baoc-", delete=False) as file:
        flat = tensor.detach().reshape(-1)
        for start in range(0, len(flat), CHUNK_ELEMENTS):
            file.write(flat[start : start + CHUNK_ELEMENTS].contiguous().view(torch.uint8).numpy().tobytes())
    try:
        mapped = torch.from_file(file.name, shared=False, size=len(flat), dtype=tensor.dtype)
    finally:
        Path(file.name).unlink()  # the mapping stays until the tensor goes
    return mapped.view(tensor.shape)


def fresh(parameter: Tensor, dtype: torch.dtype, value: float, codec: Codec, key: str, seed: int) -> Tensor:
    """A new entry of the parameter's shape, every element `value`, without a full-precision copy of it."""
    if isinstance(codec, Full) and dtype == codec.parts[0].dtype:
        return torch.full_like(parameter, value, dtype=dtype, requires_grad=False).detach()
    state = StateTensor.empty(parameter.shape, dtype, parameter.device, codec, key, seed)
    if value and codec.mechanism != "dropping":
        with torch.no_grad():
            state.fill(value)
    return state


def storage_tensors(value: Tensor, codec: Codec) -> dict[str, Tensor]:
    """The parts (and clock) of an entry in the form of `codec`."""
    return dict(value.parts) if isinstance(value, StateTensor) else {codec.parts[0].name: value}
