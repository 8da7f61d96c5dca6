"""Candidates: the configurations that a block may get, few enough to try each of them on samples.

All combinations of the formats in `BY_BLOCK` are weighed by exact bytes and by how much each format is expected to hurt
before anything is measured (`Codec.expected_harm`). A combination stays if no other takes at most 1 % more bytes and
is expected to hurt less; and likewise among those without 4-bit formats, which are slow on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.kernels.codecs.catalogue import BY_BLOCK, codec_for, full_precision

#: Two sizes count as equal if they differ by less.
SAME_SIZE = 0.01


@dataclass(frozen=True)
class Configuration:
    """A codec for every slot. `size_bytes`: of one parameter's state; `harm`: expected before anything is measured."""

    codecs: Mapping[str, Codec]
    size_bytes: int
    harm: float

    @property
    def label(self) -> str:
        return configuration_label({key: codec.name for key, codec in self.codecs.items()})


def configuration_label(names: Mapping[str, str]) -> str:
    """ "exp_avg=int4:128 exp_avg_sq=factored" """
    return " ".join(f"{key}={name}" for key, name in names.items())


def list_candidates(
    slots: Sequence[Slot], shape: torch.Size, dtype: torch.dtype, current: Mapping[str, Codec]
) -> list[Configuration]:
    """Full precision first, then by falling size. `current`, what the state is stored as now, is always among them.

    Where row and column factors fit, nothing coarser is shared: it saves next to nothing, and without momentum it cost
    the ViT of the examples 0.18 nats. A slot that is never negative is not dropped: its steady state under one gradient
    is no second moment, and nothing could be restored from it.
    """
    choices = [_codecs(slot, shape, dtype) for slot in slots]
    every = [_configuration(slots, codecs, shape) for codecs in itertools.product(*choices)]
    fast = [c for c in every if not any(_is_packed(codec) for codec in c.codecs.values())]
    kept = {c.label: c for family in (every, fast) for c in _undominated(family)}
    full = _configuration(slots, [full_precision(dtype)] * len(slots), shape)
    now = _configuration(slots, [current[s.key] for s in slots], shape)
    kept = {full.label: full, now.label: now} | kept
    return sorted(kept.values(), key=lambda c: (-c.size_bytes, c.harm))


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


def _configuration(slots: Sequence[Slot], codecs: Sequence[Codec], shape: torch.Size) -> Configuration:
    by_slot = {slot.key: codec for slot, codec in zip(slots, codecs, strict=True)}
    size = sum(codec.storage_bytes(shape) for codec in codecs)
    return Configuration(by_slot, size, sum(codec.expected_harm for codec in codecs))


def _is_packed(codec: Codec) -> bool:
    return any(part.bits < 8 for part in codec.parts)


def _undominated(every: Sequence[Configuration]) -> list[Configuration]:
    def beats(a: Configuration, b: Configuration) -> bool:
        return a.size_bytes <= b.size_bytes * (1 + SAME_SIZE) and (a.harm, a.size_bytes) < (b.harm, b.size_bytes)

    best = {(c.size_bytes, c.harm): c for c in reversed(every) if not any(beats(other, c) for other in every)}
    return [*best.values()]
