"""Floats as integers, and stochastic rounding between two neighbours: the small words that codecs are written in."""

from __future__ import annotations

import torch
from baoc_compile.kernels.counter_hash import uniform
from torch import Tensor


def bits_of(value: Tensor) -> Tensor:
    """The bit pattern of float32 as int32."""
    return value.view(torch.int32)


def from_bits(bits: Tensor) -> Tensor:
    """int32 -> the float32 with that bit pattern."""
    return bits.view(torch.float32)


def group_max(value: Tensor) -> Tensor:
    """Largest |value| of each group, NaN ignored: `[groups, width]` -> `[groups, 1]`.

    Non-negative floats order as their bit patterns do, and an integer maximum is exact in any order.
    """
    magnitude = torch.where(torch.isnan(value), 0, torch.bitwise_and(bits_of(value), 0x7FFFFFFF))
    return from_bits(torch.amax(magnitude, -1, keepdim=True))


def any_in_group(condition: Tensor) -> Tensor:
    """Is it true of any element of the group? `[groups, width]` -> `[groups, 1]`."""
    return torch.amax(condition.to(torch.int32), -1, keepdim=True) > 0


def rounds_up(probability: Tensor, words: Tensor) -> Tensor:
    """True with the given probability (to 2^-24)."""
    return uniform(words) < probability


def takes_upper(value: Tensor, lower: Tensor, upper: Tensor, probability: Tensor, words: Tensor) -> Tensor:
    """Stochastic rounding of `value` to one of the numbers that two neighbouring codes decode to.

    A value that is one of them, bit for bit, is that one, whatever float32 makes of the probability: what was decoded
    encodes to itself.
    """
    return rounds_up(torch.where(value == lower, 0.0, torch.where(value == upper, 1.0, probability)), words)


def truncate_to_bf16(value: Tensor) -> tuple[Tensor, Tensor]:
    """A non-negative float32 between its bf16 neighbours: (lower, upper), both float32; equal if it is one."""
    bits = bits_of(value)
    lower = torch.bitwise_and(bits, -65536)
    upper = torch.where(bits == lower, lower, lower + 65536)
    return from_bits(lower), from_bits(upper)


def rounded_scale(largest: Tensor, words: Tensor, squares: bool = False) -> tuple[Tensor, Tensor]:
    """A group's bf16 scale, one of the two neighbours of its largest magnitude, and the lower one: `[groups, 1]` each.

    Exact on average; with `squares` the square of the scale is.
    """
    lower, upper = truncate_to_bf16(largest)
    chance = (largest - lower) / (upper - lower)
    if squares:
        chance = chance * ((largest + lower) / (upper + lower))
    return torch.where(rounds_up(chance, words), upper, lower), lower


def relative(magnitude: Tensor, largest: Tensor, scale: Tensor, lower: Tensor, squares: bool = False) -> Tensor:
    """magnitude / scale in [0, 1], exact on average over the rounding of the scale: 0 for an empty group, 1 for infinity.

    A scale that is rounded down clips the magnitudes above it. In return one that is rounded up, which happens with
    chance p, raises the magnitudes x above its lower neighbour to lower + (x - lower) / p, and so the largest to the
    scale itself. With `squares`, squares take the place of all these numbers.
    """
    divisor = torch.where(scale > 0.0, scale, 1.0)
    ratio, low = magnitude / divisor, lower / divisor
    share = (magnitude - lower) / (largest - lower)
    if squares:
        share = share * ((magnitude + lower) / (largest + lower))
        raised = torch.sqrt(low * low + share * (1.0 - low * low))
    else:
        raised = low + share * (1.0 - low)
    above = torch.where(scale > lower, lower, float("inf"))
    ratio = torch.where(magnitude > above, raised, ratio)
    return torch.where(torch.isinf(magnitude), 1.0, torch.clamp_max(ratio, 1.0))


def as_bf16(value: Tensor) -> Tensor:
    """A float32 that bf16 holds exactly -> bf16, by its bits."""
    return torch.bitwise_right_shift(bits_of(value), 16).to(torch.int16).view(torch.bfloat16)


def packed(codes: Tensor) -> Tensor:
    """4-bit codes (uint8, flat) -> two to a byte, the first in the low half; the last half byte may be 0."""
    pairs = torch.cat([codes, codes.new_zeros(codes.numel() % 2)]).view(-1, 2)
    return torch.bitwise_or(pairs[:, 0], torch.bitwise_left_shift(pairs[:, 1], 4))


def unpacked(stored: Tensor, lanes: Tensor) -> Tensor:
    """The codes of elements `lanes` from `packed` ones."""
    return torch.bitwise_and(torch.bitwise_right_shift(stored[lanes // 2], (lanes % 2 * 4).to(torch.uint8)), 15)
