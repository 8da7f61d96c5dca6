"""`fp32`, `fp64` and `bf16`: one number per element, in a type of torch.

bf16 is rounded stochastically. Rounding to nearest freezes an exponential moving average whose relative change per step is
below 2^-9. Unbiased rounding does not (arXiv 2603.16731 shows the freeze for beta2 = 0.999).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Part, Random, Slot
from baoc_compile.kernels.codecs.bits import bits_of
from baoc_compile.kernels.codecs.counter_hash import upper


class Full(Codec):
    """stored = value. Error 0. `dtype.itemsize` bytes per element."""

    expected_harm = 0.0

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.relative_error = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}[dtype]
        self.name = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]
        self.parts = (Part("values", dtype, "element"),)

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["values"]

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        return {"values": value}

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return super().why_not(replace(slot, why_exact="", why_fine=""), shape)


class Bfloat16(Codec):
    """stored = the upper 16 bits of fp32(value) + r, with r uniform in [0, 2^16).

    The result is one of the two bf16 neighbours, chosen with the probability that makes the mean exact:
    |error| < 2^-7 |value| (2^-133 for subnormals) and E[error] = 0. A bf16 value is a fixed point. NaN and infinities
    are preserved. A finite value above the largest bf16 may round to infinity.
    """

    name = "bf16"
    parts = (Part("values", torch.bfloat16, "element"),)
    relative_error = 2.0**-7
    stochastic = True
    expected_harm = 0.5

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["values"].to(torch.float32)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        bits = bits_of(value) + upper(random.element, 16)
        kept = torch.where(torch.isnan(value), 0x7FC0, torch.bitwise_right_shift(bits, 16))
        return {"values": kept.to(torch.int16).view(torch.bfloat16)}
