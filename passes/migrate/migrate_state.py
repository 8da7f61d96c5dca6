"""Migration: bring every slot in `optimizer.state` into the form that a storage gives it, tensor by tensor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from baoc_compile.core.codec import WEIGHT_KEY, Codec
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.codecs.learn_codebook import SAMPLE_ELEMENTS
from baoc_compile.state.entries import bytes_of, fresh, is_stored_by
from baoc_compile.state.state_tensor import CHUNK_ELEMENTS, StateTensor

#: Entries up to this size are converted beside their old form; larger ones may be moved out of the way first.
CHUNK_BYTES = 4 * CHUNK_ELEMENTS


def migrate_state(storage: Storage, table: ParameterTable, *, within_budget: bool = False) -> int:
    """Returns how many entries changed their form. The old tensor of each is released before the next is converted.

    `within_budget`: entries that shrink come first, and the old form of a large one waits outside the device's memory (in
    host memory, or in a file if the device is the host) while the new one is made: state never takes more than before
    or after, and one chunk. If an entry cannot be converted, it and those that follow keep their form, and their values.
    """
    changes = []
    for index in range(len(table.parameters)):
        state = table.state(index)
        for key, codec in storage.of(index).codecs.items():
            value = state.get(key)
            if codec.mechanism != "weight" and isinstance(value, Tensor) and not is_stored_by(value, codec):
                changes.append((codec.storage_bytes(value.shape) - bytes_of(value), index, key, codec))
            del value
    if within_budget:
        changes.sort(key=lambda change: change[:2])
    for _, index, key, codec in changes:
        state = table.state(index)
        if within_budget and bytes_of(state[key]) > CHUNK_BYTES:
            state[key] = moved_away(state[key])
        state[key] = stored(table.parameters[index], state[key], codec, key, storage.seed)
    return len(changes) + migrate_weights(storage, table)


def migrate_weights(storage: Storage, table: ParameterTable) -> int:
    """What weight codecs keep beside the weights. Not before the optimizer has made its own state: many look whether
    there is any. Returns how many entries changed."""
    changed = 0
    for index, parameter in enumerate(table.parameters):
        codecs, state = storage.of(index).codecs, table.state(index)
        decided = [c for c in codecs.values() if c.mechanism == "weight"]  # a slot may have its key
        codec, old = decided[0] if decided else None, state.get(WEIGHT_KEY)
        is_early = not state and any(c.mechanism != "weight" for c in codecs.values())
        if codec is None or is_early or (isinstance(old, StateTensor) and old.codec is codec):
            continue
        if codec.stored_parts or codec.stochastic:
            new = StateTensor.empty(parameter.shape, parameter.dtype, parameter.device, codec, WEIGHT_KEY, storage.seed)
            if isinstance(old, StateTensor):
                new.store_weight(old.decode_weight(parameter))
            table.optimizer.state[parameter][WEIGHT_KEY] = new
            changed += 1
        elif old is not None:
            del state[WEIGHT_KEY]
            changed += 1
    return changed


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
