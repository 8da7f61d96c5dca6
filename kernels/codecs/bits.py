"""Floats as integers, and stochastic rounding between two neighbours: the small words that codecs are written in."""

from __future__ import annotations

import torch
from torch import Tensor

from baoc_compile.kernels.codecs.counter_hash import uniform, upper_bits

#: More than the relative error of a position between levels after decoding and encoding: 9 roundings of 2^-24 at most,
#: and 2^-22 more where the inverse of a scale is subnormal.
TOLERANCE = 2.0**-20

#: What one step of a word's upper 24 bits is worth.
CHANCE = 2.0**-24


def bits_of(value: Tensor) -> Tensor:
    """The bit pattern of float32 as int32."""
    return value.view(torch.int32)


def from_bits(bits: Tensor) -> Tensor:
    """int32 -> the float32 with that bit pattern."""
    return bits.view(torch.float32)


def group_max(value: Tensor) -> Tensor:
    """Largest |value| of each group, NaN ignored: `[groups, width]` -> `[groups, 1]`."""
    return group_max_positive(torch.abs(value))


def group_max_positive(value: Tensor) -> Tensor:
    """Largest positive value of each group, 0 if there is none, NaN ignored: `[groups, width]` -> `[groups, 1]`.

    Non-negative floats order as their bit patterns do, and an integer maximum is exact in any order.
    """
    return from_bits(torch.amax(bits_of(larger(value, 0.0)), -1, keepdim=True))


def any_in_group(condition: Tensor) -> Tensor:
    """Is it true of any element of the group? `[groups, width]` -> `[groups, 1]`."""
    return torch.amax(condition.to(torch.int32), -1, keepdim=True) > 0


def rounds_up(probability: Tensor, words: Tensor) -> Tensor:
    """True with the given probability (to 2^-24)."""
    return uniform(words) < probability


def takes_upper(distance: Tensor, gap_chance: Tensor | float, near: Tensor, words: Tensor) -> Tensor:
    """Stochastic rounding between two neighbours that are a gap apart: true with chance distance / gap, to 2^-24.
    `gap_chance` is gap * CHANCE.

    `distance`, to the lower one, is a difference of two numbers of about the size of `near`. Up to 2^-20 of that it
    counts as 0: float32 makes as much of equal ones, and what was decoded encodes to itself. For values just below a
    level `floor_of` does the same. So an average is frozen on a level if it changes by less than 2^-20 of itself a step.
    """
    return larger(upper_bits(words) * gap_chance, near * TOLERANCE) < distance


def larger(a: Tensor, b: Tensor | float) -> Tensor:
    """The larger of two numbers, `b` if one of them is NaN."""
    return torch.where(a > b, a, b)


def smaller(a: Tensor, b: Tensor | float) -> Tensor:
    """The smaller of two numbers, `b` if one of them is NaN."""
    return torch.where(a < b, a, b)


def floor_of(position: Tensor) -> Tensor:
    """The integer below, or the one less than 2^-20 above: what was decoded never falls below its own level."""
    return torch.floor(position * (1.0 + TOLERANCE))


def truncate_to_bf16(value: Tensor) -> tuple[Tensor, Tensor]:
    """A non-negative float32 between its bf16 neighbours: (lower, upper), both float32; equal if it is one."""
    bits = bits_of(value)
    lower = torch.bitwise_and(bits, -65536)
    upper = torch.where(bits == lower, lower, lower + 65536)
    return from_bits(lower), from_bits(upper)


def rounded_scale(largest: Tensor, words: Tensor, squares: bool = False) -> tuple[Tensor, Tensor]:
    """A group's bf16 scale, one of the two neighbours of its largest magnitude, and the lower one: `[groups, 1]` each.

    Exact on average; with `squares` the square of the scale is. No scale is below 2^-126, nor, for `squares`, below
    2^-80, which no float32 is the square of, so that every scale has an inverse.
    """
    largest = torch.clamp_min(largest, 2.0**-80 if squares else 2.0**-126)
    lower, upper = truncate_to_bf16(largest)
    chance = (largest - lower) / (upper - lower)
    if squares:
        chance = chance * ((largest + lower) / (upper + lower))
    return torch.where(rounds_up(chance, words), upper, lower), lower


def relative(magnitude: Tensor, largest: Tensor, scale: Tensor, lower: Tensor, top: float) -> Tensor:
    """top * magnitude / scale in [0, top], exact on average over the rounding of the scale; top for infinity and NaN.

    A scale that is rounded down clips the magnitudes above it. In return one that is rounded up, which happens with
    chance p, raises the magnitudes x above its lower neighbour to lower + (x - lower) / p, and so the largest to the
    scale itself.

    `top` / scale has to be finite: a scale may be as small as 2^-126, so `top` is below 4.
    """
    inverse = top / scale
    return _raised(magnitude * inverse, largest * inverse, lower * inverse, scale > lower, top)


def relative_square(value: Tensor, largest: Tensor, scale: Tensor, lower: Tensor, top: float) -> Tensor:
    """`relative` for squares: top^2 * value / scale^2 in [0, top^2]; `largest` is the largest value, `scale` and `lower`
    are of its root. Multiplied twice by the inverse of the scale, whose square may lie outside of float32."""
    inverse = top / scale
    root = lower * inverse
    return _raised(value * inverse * inverse, largest * inverse * inverse, root * root, scale > lower, top * top)


def _raised(x: Tensor, largest: Tensor, low: Tensor, is_upper: Tensor, top: float) -> Tensor:
    """Positions `x`, those above `low` raised if the scale is the upper one, and none above `top`.

    The line from `low` to the largest, which it takes to the top exactly, lies below x up to `low`.
    """
    slope = torch.where(is_upper, (top - low) / (largest - smaller(low, largest)), 1.0)
    raised = top - (torch.where(is_upper, largest, float("inf")) - x) * slope
    return smaller(larger(x, raised), top)


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
