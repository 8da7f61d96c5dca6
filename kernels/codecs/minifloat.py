"""`e2m5`, `e3m5`, `e2m1`, `e3m1` and other splits: floats of 16, 8 or 4 bits under one power of two for 32 elements.

A name gives exponent bits E and mantissa bits M. E + M = 15, 7 or 3: one more bit is the sign. E + M = 16, 8 or 4: for slots
that are never negative. Codes are those of the minifloats of the OCP microscaling formats (MX, OCP specification 1.0, 2023):
field c = code >> M, mantissa k = code mod 2^M, without codes for NaN or infinity. With unit u, a power of two,

    value = u k / 2^M                     c = 0: subnormal numbers, evenly spaced
    value = u 2^(c - 1) (1 + k / 2^M)     c = 1 ... 2^E - 1

The group's byte e sets u = 2^(e - 125). It is the smallest at which no element exceeds the top code *after rounding*, so nothing
clips, and the largest element has the top field c = 2^E - 1. An element takes 2, 1 or 1/2 bytes and 1/32, and a tensor a clock
of 4 bytes.

Rounding is stochastic and unbiased: a random word below the last kept bit is added to the float's bits. Everything else is
exact, as scaling by a power of two is. So a decoded value encodes to itself, bit for bit: it lies on the grid, and the group's
largest has kept its exponent. No division, no root and no table is needed.

Encoding adds the word to the bits of F = max(|x|, (|x| + u) / 2), which is |x| for normal numbers, and for subnormal ones moves
along one octave while x moves evenly from 0 to u. Decoding inverts that: |x| = min(F, 2 F - u).

|error| < 2^-M |x| for normal numbers, u 2^-M for subnormal ones. Values below u 2^-M are rounded to 0 or to u 2^-M. If a slot
is never negative, a positive value reads as u 2^-M at least: a second moment that reads 0 beside a nonzero momentum would
divide an update by eps alone. `relative_error` holds for groups whose largest element is at least 2^(2^E - 127).

A group with an infinity or a NaN has the largest e. They are kept as the top field, an infinity with k = 0, a NaN as the top
code. Finite values in such a group are rounded as all others are: u is 2^(130 - 2^E), so most of them read as 0 or as u 2^-M.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE, Codec, Part, Random, Slot, sign_mismatch
from baoc_compile.kernels.codecs.bits import bits_of, from_bits, larger, smaller
from baoc_compile.kernels.codecs.counter_hash import upper

_SIGN = -(1 << 31)
_ONE_EXPONENT = 1 << 23


class Minifloat(Codec):
    """`exponent_bits` (2 to 5) and `mantissa_bits` (1 or more), together 15, 7 or 3 with a sign, 16, 8 or 4 without."""

    stochastic = True
    group_size = GROUP_SIZE

    def __init__(self, exponent_bits: int, mantissa_bits: int):
        kept = exponent_bits + mantissa_bits
        self.signed = kept in (3, 7, 15)
        self.bits = kept + self.signed
        self.name = f"e{exponent_bits}m{mantissa_bits}"
        self.exponent_bits, self.mantissa_bits = exponent_bits, mantissa_bits
        self.top_code = (1 << kept) - 1
        #: Bits of a float's mantissa that are rounded away.
        self.dropped = 23 - mantissa_bits
        #: A float's biased exponent less the group's byte, if it has the top field.
        self.bias = 1 << exponent_bits
        #: Whether codes as integers have their first bit as their sign.
        self.wraps = self.bits == 16 or (self.signed and self.bits == 8)
        dtype = torch.int16 if self.bits == 16 else torch.int8 if self.wraps else torch.uint8
        codes = Part("codes", dtype, "element", bits=min(self.bits, 8))
        self.parts = (codes, Part("exponents", torch.uint8, "group"))
        self.relative_error = 2.0**-mantissa_bits
        # of two slots, 16 and 4 bits are worse than 8 and 8
        self.expected_harm = {16: 0.6, 8: 1.0, 4: 2.0 if self.signed else 1.5}[self.bits]

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        codes = stored["codes"].to(torch.int32)
        base, unit = _scale(stored["exponents"].to(torch.int32))
        magnitude = torch.bitwise_and(codes, self.top_code) if self.signed or self.wraps else codes
        bits = magnitude * (1 << self.dropped) + base
        value = from_bits(bits)
        bits = smaller(bits, bits_of((value + value) - unit))  # floats >= 0 order as their bits do
        if self.signed:
            sign = codes if self.wraps else codes * (1 << (32 - self.bits))  # int8 and int16 have it in front already
            bits = torch.bitwise_or(bits, torch.bitwise_and(sign, _SIGN))
        return from_bits(bits)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        bits = bits_of(value)
        word = upper(random.element, self.dropped)
        # with the sign bit set, the sum can't overflow, not even that of a NaN
        most = torch.amax(torch.bitwise_or(bits, _SIGN) + word, -1, keepdim=True)
        exponent = torch.bitwise_right_shift(most, 23) + (256 - self.bias)
        exponent = torch.clamp_min(torch.clamp_max(exponent, 255 - self.bias), 0)
        base, unit = _scale(exponent)
        magnitude = torch.bitwise_and(bits, ~_SIGN) if self.signed else bits
        moved = larger(magnitude, bits_of((from_bits(magnitude) + unit) * 0.5))
        code = torch.bitwise_right_shift(moved - base + word, self.dropped)
        if self.signed:
            sign = torch.bitwise_and(torch.bitwise_right_shift(bits, 32 - self.bits), self.top_code + 1)
            code = torch.bitwise_or(code, sign)
        else:
            code = torch.where(value > 0.0, larger(code, 1), 0)
        code = torch.where(torch.isnan(value), self.top_code, code)  # whatever its sign and bits
        return {"codes": code.to(self.parts[0].dtype), "exponents": exponent.to(torch.uint8)}

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return super().why_not(slot, shape) or sign_mismatch(self.name, self.signed, slot)


def _scale(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bits of code 0 before subnormal numbers are moved, those of u / 2, and the unit u."""
    base = (exponent + 1) * _ONE_EXPONENT
    return base, from_bits(base + _ONE_EXPONENT)
