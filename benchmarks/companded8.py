"""`softsign8` and `sqrt8`, the 8-bit codecs of version 0.3, to compare those of today with.

The companding curves are FlashOptim's (arXiv 2602.23349). Rounding is stochastic and unbiased in the stored value; scales are
bf16, stochastically rounded, and the group's largest element takes the top level.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE, Codec, Part, Random
from baoc_compile.kernels.codecs.bits import (
    CHANCE,
    TOLERANCE,
    as_bf16,
    group_max,
    group_max_positive,
    larger,
    relative,
    relative_square,
    rounded_scale,
    takes_upper,
)


def floor_of(position: Tensor) -> Tensor:
    """Round down, but round positions less than 2^-20 (relative) below an integer up to it.

    A decoded value therefore never falls below its own level.
    """
    return torch.floor(position * (1.0 + TOLERANCE))


class Softsign8(Codec):
    """Signed slots. Level k of 0..127 stands for scale * k / (254 - k), that is z / (2 - z) with z = k / 127.

    Encodes z = 2|x| / (1 + |x|), x = value / scale. |error| < scale * 254 / ((254 - k) (253 - k)), from scale/253 near
    0 to scale/64 at the top. Values within a bf16 step of the group's largest have at most 2^-7 of it in addition.
    int8 codes, -128 is NaN.
    """

    name = "softsign8"
    parts = (Part("codes", torch.int8, "element"), Part("scales", torch.bfloat16, "group"))
    relative_error = 1 / 64 + 2**-7
    group_size = GROUP_SIZE
    stochastic = True

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        value = self._value(stored["codes"].to(torch.float32), stored["scales"].to(torch.float32))
        return torch.where(stored["codes"] == -128, float("nan"), value)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        magnitude = torch.abs(value)
        largest = group_max(value)
        scale, lower = rounded_scale(largest, random.group)
        ratio = relative(magnitude, largest, scale, lower, top=1.0)
        level = torch.floor(ratio * (254.0 * (1.0 + TOLERANCE)) / (1.0 + ratio))  # floor_of, saving one product
        rest = 253.0 - level  # probability: (ratio (254 - level) - level) rest / 254
        distance = (ratio * (rest + 1.0) - level) * rest
        up = takes_upper(distance, 254.0 * CHANCE, level * rest, random.element)
        level = torch.where(up, level + 1.0, level)
        code = torch.where(torch.isnan(value), -128.0, torch.copysign(level, value))
        return {"codes": code.to(torch.int8), "scales": as_bf16(scale)}

    @staticmethod
    def _value(level: Tensor, scale: Tensor) -> Tensor:
        return level / (254.0 - torch.abs(level)) * scale


class Sqrt8(Codec):
    """Non-negative slots. Level k of 0..254 stands for (scale * k / 254)^2.

    Encodes y = 254 sqrt(value) / scale, with scale about the group's largest square root.
    |error| < scale^2 (2k + 1) / 254^2. Values within a bf16 step of the group's largest root have at most
    2^-6 (1 + 2^-8) of the largest in addition. uint8 codes, 255 is NaN.
    """

    name = "sqrt8"
    parts = (Part("codes", torch.uint8, "element"), Part("scales", torch.bfloat16, "group"))
    relative_error = 2**-7 + 2**-6 * (1 + 2**-8)
    group_size = GROUP_SIZE
    stochastic = True

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        value = self._value(stored["codes"].to(torch.float32), stored["scales"].to(torch.float32))
        return torch.where(stored["codes"] == 255, float("nan"), value)

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        largest = group_max_positive(value)
        scale, lower = rounded_scale(torch.sqrt(largest), random.group, squares=True)
        square = relative_square(value, largest, scale, lower, top=254.0)
        level = floor_of(torch.sqrt(square))
        up = takes_upper(square - level * level, level * (2.0 * CHANCE) + CHANCE, square, random.element)
        level = torch.where(up, level + 1.0, level)
        lowest = torch.where(torch.isinf(scale), 0.0, 1.0)
        level = torch.where(value > 0.0, larger(level, lowest), level)
        code = torch.where(value >= 0.0, level, 255.0)
        return {"codes": code.to(torch.uint8), "scales": as_bf16(scale)}

    @staticmethod
    def _value(level: Tensor, scale: Tensor) -> Tensor:
        root = level * (scale / 254.0)  # divided first, so that level 254 is the scale exactly
        return root * root
