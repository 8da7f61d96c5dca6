"""`fp16+16`, `fp16+8`, `fp16+sr`: an fp16 weight and what rounding took from it.

As in FlashOptim (arXiv 2602.23349): theta' = theta rounded to nearest, e = theta - theta', |e| <= h, where h is half a unit
in the last place of theta'. The residual is r = Q e / h, and theta' + r h / Q is read back.

- 8 bits, Q = 127: one unit of r is h / 127, at most 2^-11 / 127 of the weight. r is rounded stochastically: |error| < h / 127,
  unbiased but for less than 2^-17 of a unit, by which it is cut. Rounding to nearest would lose every update below half a unit.
- 16 bits, Q = 2^15: every fp32 number comes back exactly, but for a tie that was rounded down to theta' (r = 2^15 is stored
  as 2^15 - 1: off by h / Q).
- Stochastic rounding: |error| < 2 h, unbiased.

Below 2^-14 h is constant, 2^-25. NaN and infinities are those of the weight; their residual is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import Part, Random
from baoc_compile.kernels.codecs.bits import bits_of, from_bits, larger, smaller
from baoc_compile.kernels.codecs.counter_hash import uniform, upper
from baoc_compile.kernels.codecs.weight import Weight

_EXPONENT = 0x7F800000
_MANTISSA_BITS = 10
_LOWEST, _HIGHEST = (127 - 14) << 23, (127 + 15) << 23  # powers of 2 among the normal numbers, as fp32 bits
#: Bits of a residual below its unit, and of the random word that is added to them.
_FINE = 17
_WEIGHT = Part("weight", torch.float16, "element")


class SplitFloat16(Weight):
    """The weight and a residual of 8 or 16 `bits`."""

    dtype = torch.float16

    def __init__(self, bits: int):
        self.name = f"fp16+{bits}"
        self.stochastic = bits == 8
        self.steps = 127.0 if bits == 8 else 2.0**15
        self.largest = 2.0 ** (bits - 1) - 1.0
        self.parts = (_WEIGHT, Part("residual", torch.int8 if bits == 8 else torch.int16, "element"))
        self.relative_error = 2.0 ** -(_MANTISSA_BITS + 1) / self.steps

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        weight = stored["weight"].to(torch.float32)
        return weight + stored["residual"].to(torch.float32) * self.relative_error * from_bits(_power_below(weight))

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        weight = value.to(torch.float16)
        near = weight.to(torch.float32)
        inverse = from_bits((254 << 23) - _power_below(near))
        y = (value - near) * inverse * (1.0 / self.relative_error)
        y = torch.where(torch.abs(y) <= self.steps, y, 0.0)  # infinity and NaN have no residual
        if self.stochastic:
            fine = (y * 2.0**_FINE).to(torch.int32) + upper(random.element, _FINE)
            level = torch.bitwise_right_shift(fine, _FINE)
        else:
            level = torch.clamp_max(torch.round(y), self.largest)
        return {"weight": weight, "residual": level.to(self.parts[1].dtype)}


class StochasticFloat16(Weight):
    """The weight alone, stochastically rounded to one of its two neighbours, unbiased."""

    name = "fp16+sr"
    dtype = torch.float16
    stochastic = True
    parts = (_WEIGHT,)
    relative_error = 2.0**-_MANTISSA_BITS

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["weight"].to(torch.float32)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        power, magnitude = from_bits(_power_below(value)), torch.abs(value)
        units = magnitude / power * 2.0**_MANTISSA_BITS
        level = torch.floor(units)
        level = level + torch.where(uniform(random.element) < units - level, 1.0, 0.0)
        rounded = level * 2.0**-_MANTISSA_BITS * power
        rounded = torch.where(torch.isinf(value), magnitude, rounded)
        return {"weight": torch.where(value < 0.0, -rounded, rounded).to(torch.float16)}


def _power_below(value: Tensor) -> Tensor:
    """Return the bits of the largest power of 2 that is <= |value|, within those of fp16's normal numbers."""
    return smaller(larger(torch.bitwise_and(bits_of(value), _EXPONENT), _LOWEST), _HIGHEST)
