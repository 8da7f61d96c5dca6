"""Candidates: the configurations that a block may get, few enough to try each of them on samples.

All combinations of the formats in `BY_BLOCK` are weighed by exact bytes and by how much each format is expected to hurt
before anything is measured (`Codec.expected_harm`). A combination stays if no other takes at most 1 % more bytes and
is expected to hurt less; and likewise among those without 4-bit formats, which are slow on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.core.configuration import Configuration
from baoc_compile.kernels.codecs.catalogue import BY_BLOCK, codec_for, full_precision

#: Two sizes count as equal if they differ by less.
SAME_SIZE = 0.01


def list_candidates(
    slots: Sequence[Slot], shape: torch.Size, dtype: torch.dtype, current: Mapping[str, Codec]
) -> list[Configuration]:
    """Full precision first, then by falling size. `current`, what the state is stored as now, is always among them.

    Where row and column factors fit, nothing coarser is shared: it saves next to nothing, and without momentum it cost
    the ViT of the examples 0.18 nats. A slot that is never negative is not dropped: its steady state under one gradient
    is no second moment, and nothing could be restored from it.
    """
    choices = [_codecs(slot, shape, dtype) for slot in slots]
    every = [_configuration(slots, codecs) for codecs in itertools.product(*choices)]
    fast = [c for c in every if not any(_is_packed(codec) for codec in c.codecs.values())]
    kept = {c.label: c for family in (every, fast) for c in _undominated(family, shape)}
    full = _configuration(slots, [full_precision(dtype)] * len(slots))
    now = _configuration(slots, [current[s.key] for s in slots])
    kept = {full.label: full, now.label: now} | kept
    return sorted(kept.values(), key=lambda c: (-c.storage_bytes(shape), c.expected_harm))


def _codecs(slot: Slot, shape: torch.Size, dtype: torch.dtype) -> list[Codec]:
    found: dict[str, Codec] = {}
    for choice in BY_BLOCK:
        codec, refused = codec_for(choice, slot, shape, dtype)
        unwise = (
            slot.nonnegative if codec.mechanism == "dropping" else codec.mechanism == "sharing" and not slot.nonnegative
        )
        coarser = codec.mechanism == "sharing" and "factored" in found
        if not refused and not unwise and not coarser:
            found[codec.name] = codec
    return [*found.values()] or [full_precision(dtype)]


def _configuration(slots: Sequence[Slot], codecs: Sequence[Codec]) -> Configuration:
    return Configuration({slot.key: codec for slot, codec in zip(slots, codecs, strict=True)})


def _is_packed(codec: Codec) -> bool:
    return any(part.bits < 8 for part in codec.parts)


def _undominated(every: Sequence[Configuration], shape: torch.Size) -> list[Configuration]:
    costs = [(c.expected_harm, c.storage_bytes(shape)) for c in every]

    def is_beaten(cost: tuple[float, int]) -> bool:
        return any(other < cost and other[1] <= cost[1] * (1 + SAME_SIZE) for other in costs)

    best = {cost: c for cost, c in reversed([*zip(costs, every, strict=True)]) if not is_beaten(cost)}
    return [*best.values()]
