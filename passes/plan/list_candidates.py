"""Candidates: the configurations that a block may get, few enough to try each of them on samples.

All combinations of the formats in `BY_BLOCK` are compared by their exact bytes and by their expected harm before
anything is measured (`Codec.expected_harm`). A combination stays unless another one takes at most 1 % more bytes and is
expected to harm less. The same comparison among combinations without 4-bit formats adds more, since 4-bit formats are
slow on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.core.configuration import Configuration
from baoc_compile.kernels.codecs.catalogue import BY_BLOCK, codec_for, full_precision

#: Fraction of a size by which another may exceed it and still count as equal.
SAME_SIZE = 0.01


def list_candidates(
    slots: Sequence[Slot], shape: torch.Size, dtype: torch.dtype, current: Mapping[str, Codec]
) -> list[Configuration]:
    """Return the candidates of a block: full precision first, then by falling size.

    slots: the slots of the block's parameters.
    shape: the shape of each of these parameters.
    dtype: the type of these parameters.
    current: state key -> the codec in use now.

    Full precision and `current` are always among the candidates. Where row and column factors fit, nothing coarser is
    shared: it saves next to nothing, and without momentum it cost the ViT of the examples 0.18 nats. A slot that is
    never negative is not dropped: its steady state under one gradient is not a second moment, and nothing could restore
    it.
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
    """Return the codecs that a slot may get; full precision if there is no other."""
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
    """Return the configuration that gives each slot its codec."""
    return Configuration({slot.key: codec for slot, codec in zip(slots, codecs, strict=True)})


def _is_packed(codec: Codec) -> bool:
    """Return whether the codec packs several codes into one byte."""
    return any(part.bits < 8 for part in codec.parts)


def _undominated(every: Sequence[Configuration], shape: torch.Size) -> list[Configuration]:
    """Return the configurations that no other one beats in expected harm at about the same size or less."""
    costs = [(c.expected_harm, c.storage_bytes(shape)) for c in every]

    def is_beaten(cost: tuple[float, int]) -> bool:
        return any(other < cost and other[1] <= cost[1] * (1 + SAME_SIZE) for other in costs)

    best = {cost: c for cost, c in reversed([*zip(costs, every, strict=True)]) if not is_beaten(cost)}
    return [*best.values()]
