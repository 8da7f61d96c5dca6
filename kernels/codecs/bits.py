"""Primitives that codecs are written in: floats as integers, groups, and stochastic rounding between two neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from baoc_compile.core.codec import Rows
from baoc_compile.kernels.codecs.counter_hash import uniform, upper_bits

#: Bound on the relative error that decoding and encoding again makes in a position between levels: at most 9 roundings
#: of 2^-24, plus 2^-22 where the inverse of a scale is subnormal.
TOLERANCE = 2.0**-20

#: Probability that one unit of a word's upper 24 bits stands for.
CHANCE = 2.0**-24


def bits_of(value: Tensor) -> Tensor:
    """Reinterpret float32 as int32."""
    return value.view(torch.int32)


def from_bits(bits: Tensor) -> Tensor:
    """Reinterpret int32 as float32."""
    return bits.view(torch.float32)


def group_max(value: Tensor) -> Tensor:
    """Return the largest |value| of each group, ignoring NaN: `[groups, width]` -> `[groups, 1]`."""
    return group_max_positive(torch.abs(value))


def group_max_positive(value: Tensor) -> Tensor:
    """Return the largest positive value of each group, or 0, ignoring NaN: `[groups, width]` -> `[groups, 1]`.

    Non-negative floats order as their bit patterns do, and an integer maximum is exact in any order.
    """
    return from_bits(torch.amax(bits_of(larger(value, 0.0)), -1, keepdim=True))


def any_in_group(condition: Tensor) -> Tensor:
    """Reduce a condition by "or" over each group: `[groups, width]` -> `[groups, 1]`."""
    return torch.amax(condition.to(torch.int32), -1, keepdim=True) > 0


def rounds_up(probability: Tensor, words: Tensor) -> Tensor:
    """Return True with the given probability (to 2^-24)."""
    return uniform(words) < probability


def takes_upper(distance: Tensor, gap_chance: Tensor | float, near: Tensor, words: Tensor) -> Tensor:
    """Round stochastically between two neighbouring levels: True (upper) with probability distance / gap, to 2^-24.

    distance: value - lower level.
    gap_chance: gap * CHANCE.
    near: magnitude of the two numbers whose difference is `distance`.
    words: random int32 words.

    A distance of at most 2^-20 * near counts as 0: float32 rounding alone can separate equal numbers by as much. So a
    decoded value encodes to itself. An average therefore stays on its level if it changes by less than 2^-20 of itself per
    step.
    """
    return larger(upper_bits(words) * gap_chance, near * TOLERANCE) < distance


def larger(a: Tensor, b: Tensor | float) -> Tensor:
    """Return the larger of two numbers, `b` if either is NaN."""
    return torch.where(a > b, a, b)


def smaller(a: Tensor, b: Tensor | float) -> Tensor:
    """Return the smaller of two numbers, `b` if either is NaN."""
    return torch.where(a < b, a, b)


def truncate_to_bf16(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bf16 neighbours (lower, upper) of a non-negative float32, as float32; equal if it is a bf16."""
    bits = bits_of(value)
    lower = torch.bitwise_and(bits, -65536)
    upper = torch.where(bits == lower, lower, lower + 65536)
    return from_bits(lower), from_bits(upper)


def rounded_scale(largest: Tensor, words: Tensor, squares: bool = False) -> tuple[Tensor, Tensor]:
    """Round each group's largest magnitude stochastically to a bf16 scale; return it and its lower neighbour.

    Both are `[groups, 1]`. The scale is unbiased; with `squares`, its square is instead. A scale is at least 2^-126, or
    2^-80 with `squares` (the square of 2^-80 is 0 in float32), so every scale has an inverse.
    """
    largest = torch.clamp_min(largest, 2.0**-80 if squares else 2.0**-126)
    lower, upper = truncate_to_bf16(largest)
    chance = (largest - lower) / (upper - lower)
    if squares:
        chance = chance * ((largest + lower) / (upper + lower))
    return torch.where(rounds_up(chance, words), upper, lower), lower


def relative(magnitude: Tensor, largest: Tensor, scale: Tensor, lower: Tensor, top: float) -> Tensor:
    """Return top * magnitude / scale in [0, top], unbiased over the rounding of the scale; top for infinity and NaN.

    A scale rounded down clips the magnitudes above it. To compensate, a scale rounded up, which happens with
    probability p, raises each magnitude x above the lower neighbour to lower + (x - lower) / p, and so the largest to
    the scale.

    top / scale must be finite: a scale may be as small as 2^-126, so `top` must be below 4.
    """
    inverse = top / scale
    return _raised(magnitude * inverse, largest * inverse, lower * inverse, scale > lower, top)


def relative_square(value: Tensor, largest: Tensor, scale: Tensor, lower: Tensor, top: float) -> Tensor:
    """Return top^2 * value / scale^2 in [0, top^2]: `relative` for codecs that scale square roots.

    `largest` is the largest value; `scale` and `lower` belong to its root. The value is multiplied twice by the inverse
    of the scale, whose square may lie outside float32.
    """
    inverse = top / scale
    root = lower * inverse
    return _raised(value * inverse * inverse, largest * inverse * inverse, root * root, scale > lower, top * top)


def _raised(x: Tensor, largest: Tensor, low: Tensor, is_upper: Tensor, top: float) -> Tensor:
    """Raise the positions `x` above `low` if the scale was rounded up, and clip all to `top`.

    The raising line runs from (low, low) to (largest, top), exact at the top; it lies below x for x < low.
    """
    slope = torch.where(is_upper, (top - low) / (largest - smaller(low, largest)), 1.0)
    raised = top - (torch.where(is_upper, largest, float("inf")) - x) * slope
    return smaller(larger(x, raised), top)


def as_bf16(value: Tensor) -> Tensor:
    """Convert a float32 that bf16 represents exactly, by its bits."""
    return torch.bitwise_right_shift(bits_of(value), 16).to(torch.int16).view(torch.bfloat16)


def unpacked(stored: Tensor, index: Tensor, rows: Rows) -> Tensor:
    """Return the 4-bit codes of elements `index`. A byte has two, the first in its low half; a row begins with a byte."""
    position = _nibble(index, rows)
    return torch.bitwise_and(
        torch.bitwise_right_shift(stored.view(-1)[position // 2], (position % 2 * 4).to(torch.uint8)), 15
    )


def pack_into(stored: Tensor, index: Tensor, codes: Tensor, rows: Rows) -> None:
    """Store the 4-bit codes (uint8) of elements `index`, consecutive and beginning a group."""
    if len(index):
        position = _nibble(index, rows)
        first = int(position[0]) // 2
        halves = codes.new_zeros(2 * (int(position[-1]) // 2 - first + 1))
        halves[position - 2 * first] = codes
        low, high = halves.view(-1, 2).unbind(1)
        stored.view(-1)[first : first + len(low)] = torch.bitwise_or(low, torch.bitwise_left_shift(high, 4))


def _nibble(index: Tensor, rows: Rows) -> Tensor:
    """Return the number of the half byte of an element."""
    return index + index // max(rows.columns, 1) if rows.columns % 2 else index
