"""Convert every slot in `optimizer.state` to the form that a storage gives it, tensor by tensor."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import WEIGHT_KEY, Codec
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import LocalEntries
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.codecs.learn_codebook import SAMPLE_ELEMENTS
from baoc_compile.passes.migrate.unite_means import UnitedMeans
from baoc_compile.passes.migrate.watched_weights import WatchedWeights
from baoc_compile.state.entries import anchor_state, bytes_of, follows_weights, fresh, is_stored_by
from baoc_compile.state.state_tensor import CHUNK_ELEMENTS, StateTensor

#: Within a budget, a larger entry is moved out of its device's memory before it is converted.
CHUNK_BYTES = 4 * CHUNK_ELEMENTS


def migrate_state(storage: Storage, table: ParameterTable, *, within_budget: bool = False) -> int:
    """Convert the state of `table` to the form that `storage` gives it; return the number of entries that changed.

    The old tensor of an entry is released before the next entry is converted. If an entry cannot be converted, it and
    the entries after it keep their form and their values.

    within_budget: convert entries that shrink first, and keep the old form of a large entry outside the device's memory
        (in host memory, or in a file if the device is the host) while the new one is made. State then never takes more
        than the larger of its old and its new size, and one chunk.
    """
    changes, table = [], table.local
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
        parameter, first_lane = table.parameters[index], table.first_lane(index)
        state[key] = stored(parameter, state[key], codec, key, storage.seed, first_lane)
    means = ((table.wholes[i], table.state(i)[key]) for _, i, key, codec in changes if codec.mechanism == "sharing")
    UnitedMeans(means).unite()
    return len(changes) + migrate_weights(storage, table)


def migrate_weights(storage: Storage, table: ParameterTable) -> int:
    """Create, convert or remove what weight codecs store beside the weights; return the number of entries that changed.

    Nothing is created before the optimizer has made its own state, because many optimizers initialize a parameter only
    if its state is empty.
    """
    changed, table = 0, table.local
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
                new.store_weight(old.decode_weight(parameter), parameter)
            table.put(index, WEIGHT_KEY, new.beginning_at(table.first_lane(index)))
            changed += 1
        elif old is not None:
            del state[WEIGHT_KEY]
            changed += 1
    return changed


@torch.no_grad()
def stored(parameter: Tensor, value: Tensor, codec: Codec, key: str, seed: int, first_lane: int = 0) -> Tensor:
    """Return `value`, a slot of `parameter`, stored by `codec`. Its first lane has number `first_lane`.

    The result is a plain tensor if the codec is full precision in the slot's own type, else a StateTensor. A slot that
    is to be dropped becomes an entry without values, and a slot that was dropped starts at 0.
    """
    new = fresh(parameter, value.dtype, 0.0, codec, key, seed, first_lane)
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


@torch.no_grad()
def decode_state(optimizer: Any, *, but_rounded: bool = False) -> None:
    """Store all state in full precision; what weight codecs keep is dropped.

    but_rounded: leave state as it is that is stored value by value.

    Raises StateError for state that is the difference to weights which have changed; nothing has changed then.
    """
    if follows_weights(optimizer):
        table = ParameterTable.of(optimizer)
        anchor_state(table)
        WatchedWeights(table).check()
    for owner, found in optimizer.state.items():
        if isinstance(found, dict):
            entries = LocalEntries(owner, found)
            for key, value in list(entries.items()):
                if isinstance(value, StateTensor):
                    if value.codec.mechanism == "weight":
                        del entries[key]
                    elif not (but_rounded and value.codec.mechanism == "rounding"):
                        entries[key] = value.decode()


def moved_away(value: Tensor) -> Tensor:
    """Copy an entry out of its device's memory: to the host, or from the host to a temporary file that is mapped."""
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
        Path(file.name).unlink()  # the mapping lives as long as the tensor
    return mapped.view(tensor.shape)
