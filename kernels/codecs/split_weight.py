"""Weight codecs: low-precision weights that still learn from small updates.

| name | beside the weight | full-precision semantics |
|---|---|---|
| `bf16+8`, `fp16+8` | 8-bit residual | 24-bit master weight |
| `bf16+16`, `fp16+16` | 16-bit residual | 32-bit master weight |
| `bf16+sr`, `fp16+sr` | nothing | stochastic rounding |

Splitting is FlashOptim's (arXiv 2602.23349): theta' = theta rounded to nearest, e = theta - theta', |e| <= h, where h
is half a unit in the last place of theta'. The residual is r = Q e / h, and theta' + r h / Q is read back.

- 8 bits, Q = 127: one unit of r is h / 127, at most 2^-8 / 127 = 3.1e-5 (bf16) or 2^-11 / 127 (fp16) of the weight. r
  is rounded stochastically: |error| < h / 127, unbiased but for less than 2^-17 of a unit, by which it is cut. Rounding to
  nearest (|error| <= h / 254, at most 1.54e-5 of a bf16 weight) would lose every update below half a unit.
- 16 bits, Q = 2^15: h / Q is at most one unit in the last place of fp32 (2^-23 = 1.2e-7 of the weight), so r is rounded
  to nearest, like an fp32 master weight. Every fp32 number comes back exactly, with two exceptions: a tie that was
  rounded down to theta' (r = 2^15 is stored as 2^15 - 1: off by h / Q) and, for bf16, numbers that round up to a power
  of 2, below which fp32 is twice as fine (off by at most one unit of fp32). Below 2^-126 the unit is fp32's smallest
  number.
- Stochastic rounding: |error| < 2 h, unbiased.

NaN and infinities are those of the weight; their residual is 0, and that of weights of 2^127 and more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import WEIGHT_KEY, Codec, Part, Random, Slot
from baoc_compile.kernels.codecs.bits import bits_of, from_bits, larger, smaller
from baoc_compile.kernels.codecs.counter_hash import uniform, upper

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10}
_EXPONENT = 0x7F800000
#: Bits of a residual below its unit, and of the random word that is added to them.
_FINE = 17
_LOWEST_EXPONENT = {torch.bfloat16: 1, torch.float16: 113}  # of normal numbers, as the biased exponent of fp32


class Weight(Codec):
    """Base of the weight codecs whose first part is the parameter itself.

    dtype: the parameter's type, bfloat16 or float16.
    """

    mechanism = "weight"

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.mantissa_bits = _MANTISSA_BITS[dtype]

    @property
    def stored_parts(self) -> tuple[Part, ...]:
        return self.parts[1:]

    def power_below(self, value: Tensor) -> Tensor:
        """Return the bits of the largest power of 2 that is <= |value|; for subnormals of `dtype`, the smallest normal number."""
        return larger(torch.bitwise_and(bits_of(value), _EXPONENT), _LOWEST_EXPONENT[self.dtype] << 23)

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        if slot.weight_dtype is None:
            return f"{self.name} is for weights (plan key {WEIGHT_KEY!r})"
        if slot.weight_dtype != self.dtype:
            return f"{self.name} is for {self.dtype} weights, not {slot.weight_dtype}"
        return ""


class NearestWeight(Codec):
    """The weight alone, rounded to nearest as torch does: updates below half a unit are lost. 0 bytes."""

    name = "nearest"
    mechanism = "weight"
    parts = ()
    relative_error = 2.0**-8

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("a program reads a weight without codec by itself")

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return "" if slot.weight_dtype is not None else f"{self.name} is for weights (plan key {WEIGHT_KEY!r})"


class SplitWeight(Weight):
    """The weight and a residual of 8 or 16 `bits`."""

    def __init__(self, dtype: torch.dtype, bits: int):
        super().__init__(dtype)
        self.name = f"{_NAMES[dtype]}+{bits}"
        self.stochastic = bits == 8
        self.steps = 127.0 if bits == 8 else 2.0**15
        self.largest = 2.0 ** (bits - 1) - 1.0
        self.residual_dtype = torch.int8 if bits == 8 else torch.int16
        self.parts = (Part("weight", dtype, "element"), Part("residual", self.residual_dtype, "element"))
        self.relative_error = 2.0 ** -(self.mantissa_bits + 1) / self.steps

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        weight = stored["weight"].to(torch.float32)
        unit = 2.0 ** -(self.mantissa_bits + 1) / self.steps
        return weight + stored["residual"].to(torch.float32) * unit * from_bits(self.with_inverse(weight))

    def with_inverse(self, value: Tensor) -> Tensor:
        """Return the bits of `power_below(value)`, but at most those of 2^126, whose inverse is a normal number."""
        return smaller(self.power_below(value), 253 << 23)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        weight = value.to(self.dtype)
        near = weight.to(torch.float32)
        inverse = from_bits((254 << 23) - self.with_inverse(near))
        y = (value - near) * inverse * (2.0 ** (self.mantissa_bits + 1) * self.steps)
        y = torch.where(torch.abs(y) <= self.steps, y, 0.0)  # infinity, NaN and 2^127 and more have no residual
        if self.stochastic:
            fine = (y * 2.0**_FINE).to(torch.int32) + upper(random.element, _FINE)
            level = torch.bitwise_right_shift(fine, _FINE)
        else:
            level = torch.clamp_max(torch.round(y), self.largest)
        return {"weight": weight, "residual": level.to(self.residual_dtype)}


class StochasticWeight(Weight):
    """The weight alone, stochastically rounded to one of its two neighbours in `dtype`, unbiased."""

    stochastic = True

    def __init__(self, dtype: torch.dtype):
        super().__init__(dtype)
        self.name = f"{_NAMES[dtype]}+sr"
        self.parts = (Part("weight", dtype, "element"),)
        self.relative_error = 2.0**-self.mantissa_bits

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["weight"].to(torch.float32)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        power, magnitude = from_bits(self.power_below(value)), torch.abs(value)
        units = magnitude / power * 2.0**self.mantissa_bits
        level = torch.floor(units)
        level = level + torch.where(uniform(random.element) < units - level, 1.0, 0.0)
        rounded = level * 2.0**-self.mantissa_bits * power
        rounded = torch.where(torch.isinf(value), magnitude, rounded)
        return {"weight": torch.where(value < 0.0, -rounded, rounded).to(self.dtype)}
