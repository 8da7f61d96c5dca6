"""`bf16+16`, `bf16+8`, `bf16+sr`: a master weight's bits, cut in two.

A bf16 is the upper half of a float32. The codec stores B bits of the lower half, too, as a signed number:

    bits(master) = bits(weight) + lower 2^(16 - B)

Floats of one sign order as their bits do. So the weight is the bf16 nearest to the master, and ties round away from zero.

- B = 16: every float32 comes back exactly.
- B = 8: the master has 16 mantissa bits, 15 of them stored, as a float of 24 bits has. Its lowest 8 bits are rounded away
  stochastically: unbiased, |error| < 2^-15 |master|. Rounding to nearest would lose every update below half that.
- `bf16+sr` stores nothing beside the weight. The lower half is rounded away stochastically: unbiased, |error| < 2^-7 |master|.

The bounds hold for normal numbers; below 2^-126 they are those of 2^-126. A weight of 0, an infinity or a NaN is the
master, whatever `lower` is. So are weights that someone else has set to 0. Masters above the largest bf16 round to infinity.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import Part, Random
from baoc_compile.kernels.codecs.bits import bits_of, from_bits
from baoc_compile.kernels.codecs.counter_hash import upper
from baoc_compile.kernels.codecs.weight import Weight

_NAN = 0x7FC00000
_WEIGHT = Part("weight", torch.bfloat16, "element")


class SplitBfloat16(Weight):
    """The weight and 8 or 16 `bits` of the lower half."""

    dtype = torch.bfloat16

    def __init__(self, bits: int):
        self.name = f"bf16+{bits}"
        self.stochastic = bits == 8
        #: Lowest bits of a float32, which are rounded away.
        self.dropped = 16 - bits
        self.parts = (_WEIGHT, Part("lower", torch.int8 if bits == 8 else torch.int16, "element"))
        self.relative_error = 2.0 ** -(7 + bits)

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        weight = stored["weight"].to(torch.float32)
        master = bits_of(weight) + stored["lower"].to(torch.int32) * (1 << self.dropped)
        magnitude = torch.abs(weight)
        is_split = torch.bitwise_and(magnitude > 0.0, magnitude < float("inf"))
        return torch.where(is_split, from_bits(master), weight)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        bits = _orderly_bits(value)
        if self.stochastic:
            bits = bits + upper(random.element, self.dropped)
        lower = torch.bitwise_right_shift(bits, self.dropped)  # its lowest bits: the weight has the others
        return {"weight": _upper_half(bits + 0x8000), "lower": lower.to(self.parts[1].dtype)}


class StochasticBfloat16(Weight):
    """The weight alone, stochastically rounded to one of its two neighbours, unbiased."""

    name = "bf16+sr"
    dtype = torch.bfloat16
    stochastic = True
    parts = (_WEIGHT,)
    relative_error = 2.0**-7

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["weight"].to(torch.float32)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        return {"weight": _upper_half(_orderly_bits(value) + upper(random.element, 16))}


def _orderly_bits(value: Tensor) -> Tensor:
    """Return the bits of float32 numbers; of all NaN, those of one that stays a NaN when its lower half is rounded away."""
    return torch.where(torch.isnan(value), _NAN, bits_of(value))


def _upper_half(bits: Tensor) -> Tensor:
    """Return the bf16 of the upper 16 of int32 bits."""
    return torch.bitwise_right_shift(bits, 16).to(torch.int16).view(torch.bfloat16)
