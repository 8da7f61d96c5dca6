"""Counter-based random words: the same bits in torch, C++ and Triton, for every launch shape, order and shard.

The finalizer is lowbias32 (Chris Wellons, "Prospecting for Hash Functions", 2018): two multiplications and three
xor-shifts in wrapping 32-bit arithmetic. Element words omit its outer xor-shifts, so their low bits are weak: read the
upper 24. torch has no unsigned shift for int32, hence `_shift`.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MIX_1 = 0x7FEB352D
_MIX_2 = 0x846CA68B - (1 << 32)  # as a signed 32-bit number
_PAGE = 0x85EBCA6B - (1 << 32)
_GROUP = 0x3C6EF372


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int32 right, filling with zeros."""
    return torch.bitwise_and(torch.bitwise_right_shift(x, bits), (1 << (32 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Scramble int32 words bijectively (lowbias32)."""
    x = torch.bitwise_xor(x, _shift(x, 16)) * _MIX_1
    x = torch.bitwise_xor(x, _shift(x, 15)) * _MIX_2
    return torch.bitwise_xor(x, _shift(x, 16))


def fold_index(index: Tensor) -> Tensor:
    """Fold an int64 element index into an int32 counter: distinct below 2^32, scrambled by the upper word above."""
    low = (index & 0xFFFFFFFF).to(torch.int64)
    low = torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
    return torch.bitwise_xor(low, (index >> 32).to(torch.int32) * _PAGE)


def slot_salt(seed: int, slot: str) -> int:
    """Return the (seed, slot) part of a key, as a signed 32-bit number."""
    salt = zlib.crc32(f"{seed}/{slot}".encode())
    return salt - (1 << 32) if salt >= 1 << 31 else salt


def step_key(salt: Tensor, clock: Tensor) -> Tensor:
    """Return the (seed, slot, step) key, 0-dim int32. `clock`: how often the slot was stored."""
    return mix(torch.bitwise_xor(mix(clock), salt))


def element_words(key: Tensor, counter: Tensor) -> Tensor:
    """Return one word per element from its folded index, good in the upper 24 bits.

    The key enters between the two multiplications of lowbias32. The part before is the same for all slots and steps.
    """
    x = counter * _MIX_1
    return torch.bitwise_xor(torch.bitwise_xor(x, _shift(x, 15)), key) * _MIX_2


def group_words(key: Tensor, counter: Tensor) -> Tensor:
    """Return one word per group from the folded index of its first element, independent of the element words."""
    return mix(torch.bitwise_xor(mix(torch.bitwise_xor(counter, _GROUP)), key))


def upper(words: Tensor, bits: int) -> Tensor:
    """Return the upper `bits` bits of int32 words, at most 24: in [0, 2^bits)."""
    return _shift(words, 32 - bits)


def upper_bits(words: Tensor) -> Tensor:
    """Return the upper 24 bits of int32 words as a whole float32 (exact)."""
    return _shift(words, 8).to(torch.float32)


def uniform(words: Tensor) -> Tensor:
    """Map int32 words to float32 in [0, 1), multiples of 2^-24 (exact)."""
    return upper_bits(words) * 2.0**-24
