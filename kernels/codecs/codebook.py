"""`codebook8`, `codebook4` for signed slots, `ucodebook8`, `ucodebook4` for non-negative ones: learned levels.

An element is divided by its group's largest and rounded stochastically to a level of a codebook, so that the stored
value is unbiased. The codebook is stored with the tensor, as integers on a grid of 1/2048 over [-1, 1] or of 1/4096
over [0, 1]. Scales are bf16, stochastically rounded. The group's largest element takes the top level, or the lowest if
it is negative. What a scale rounded down clips, a scale rounded up gives back on average (`bits.relative`). Values within
2^-20 (relative) of a level count as that level, so that a decoded value encodes to itself. A scale is at least 2^-126
(2^-80 for roots).

| name | levels | bytes per element |
|---|---|---|
| `codebook8`, `ucodebook8` | 255 | 1 + 2/32 (+ 514 a tensor) |
| `codebook4`, `ucodebook4` | 16 | 1/2 + 2/32 (+ 36 a tensor) |

Each tensor also stores a clock of 4 bytes.

Levels (`optimal_levels`; Gefen, arXiv 2606.13894, learns its own by exact dynamic programming) minimize the expected
error of *stochastic* rounding over the slot's own normalized values. `passes/migrate/refresh_codebooks.py` learns them
again when that pays. The initial signed levels are softsign's (8 bits; FlashOptim, arXiv 2602.23349) or NF4's (QLoRA,
arXiv 2305.14314, appendix E), quantiles of a normal distribution. The initial levels of roots are spaced evenly (8 bits)
or evenly in the logarithm (4 bits), which bounds the relative error of the preconditioner 1/sqrt(v).

Non-negative slots are looked up by their square roots, but the rounding is unbiased in the value itself: the next step
averages values, and rounding that is unbiased in the preconditioner drifts (its equilibrium lies above the mean, see
docs/codecs.md). No positive value reads as 0: `ucodebook8` skips level 0, `ucodebook4` has none, so values below
(level_0 scale)^2 read as that.

NaN: the 8-bit codecs have a code for it; with 4 bits it makes the scale NaN, and so the whole group. An infinity is
kept (the scale becomes infinite); finite values in its group read as NaN.

Error: |error| < scale (level[k+1] - level[k]) for the level k below the value; for non-negative slots, with the squares
of scale * level instead. Values within a bf16 step of the group's largest, which the scale clips or raises, have in
addition at most 2^-7 (signed) or 2^-6 (1 + 2^-8) (non-negative) of that largest value. `relative_error` is that of the
initial levels, relative to 2^-126 in groups whose largest is less; learned levels may be coarse where no values were.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.codec import GROUP_SIZE, Codec, Part, Random, Slot, sign_mismatch
from baoc_compile.kernels.codecs.bits import (
    CHANCE,
    TOLERANCE,
    any_in_group,
    as_bf16,
    bits_of,
    group_max,
    group_max_positive,
    larger,
    relative,
    relative_square,
    rounded_scale,
    takes_upper,
)
from baoc_compile.kernels.codecs.learn_codebook import LOWEST_ROOT, learn_from_values


class Codebook(Codec):
    """Learned levels, one code per element, one scale per group.

    bits: 8 or 4.
    signed: whether slots may be negative.
    """

    stochastic = True
    group_size = GROUP_SIZE

    def __init__(self, bits: int, signed: bool):
        self.bits, self.signed = bits, signed
        self.name = f"{'' if signed else 'u'}codebook{bits}"
        #: Number of levels. 255 levels leave one of 256 codes for NaN.
        self.count = 255 if bits == 8 else 16
        self.grid = 2048 if signed else 4096
        self.parts = (
            Part("codes", torch.uint8, "element", bits=bits),
            Part("scales", torch.bfloat16, "group"),
            Part("levels", torch.int16, "codebook", self.count),
            Part("checked_at", torch.int32, "codebook", 1),
        )
        self.expected_harm = 1.0 if bits == 8 else 2.0 if signed else 1.5
        gaps = np.diff(self.default_levels if signed else self.default_levels**2)
        self.relative_error = float(gaps.max()) + (2**-7 if signed else 2**-6)

    @cached_property
    def default_levels(self) -> np.ndarray:
        """The initial levels, ascending and on the grid, float64 `[count]`: in [-1, 1], or roots in [0, 1]."""
        if self.bits == 8:
            k = np.arange(255)
            levels = np.sign(k - 127) * (abs(k - 127) / (254 - abs(k - 127))) if self.signed else k / 254
        elif self.signed:
            quantile = np.vectorize(NormalDist().inv_cdf)
            positive, negative = quantile(np.linspace(0.5, _OFFSET, 9))[1:], quantile(np.linspace(0.5, _OFFSET, 8))[1:]
            levels = np.concatenate([-negative[::-1], [0.0], positive]) / positive[-1]
            levels[0] = -1.0
        else:
            levels = LOWEST_ROOT ** (1 - np.arange(16) / 15)
        return np.round(levels * self.grid) / self.grid

    def initial(self, part: Part, shape: torch.Size, device: torch.device) -> Tensor:
        if part.name != "levels":
            return super().initial(part, shape, device)
        return torch.from_numpy(self.as_entries(self.default_levels)).to(device)

    def learn(self, parts: Mapping[str, Tensor], value: Tensor) -> None:
        learn_from_values(self, parts, value)

    def as_entries(self, levels: np.ndarray) -> np.ndarray:
        """Convert levels to the contents of the "levels" part."""
        return np.round(levels * self.grid).astype(np.int16)

    def as_levels(self, entries: Tensor) -> np.ndarray:
        return entries.cpu().numpy().astype(np.float64) / self.grid

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        codes, scale = stored["codes"], stored["scales"].to(torch.float32)
        levels = self._levels(stored)
        level = _at(levels, torch.clamp_max(codes.to(torch.int32), self.count - 1))
        lost_below = torch.where(torch.isinf(scale), 1.0, 0.0)
        value = torch.where(torch.abs(level) < lost_below, float("nan"), self._value(level, scale))
        return torch.where(codes == 255, float("nan"), value) if self.bits == 8 else value

    def encode_with(self, codebooks: Mapping[str, Tensor], value: Tensor, random: Random) -> dict[str, Tensor]:
        levels, last = self._levels(codebooks), self.count - 1
        if self.signed:
            largest = group_max(value)
            scale, lower = rounded_scale(largest, random.group)
            near = relative(torch.abs(value), largest, scale, lower, top=1.0)
            x = torch.copysign(near, value)
            below = self._search(levels, x + near * TOLERANCE)
            lost = torch.isnan(value)
        else:
            largest = group_max_positive(value)
            scale, lower = rounded_scale(torch.sqrt(largest), random.group, squares=True)
            near = x = relative_square(value, largest, scale, lower, top=1.0)
            below = self._search(levels, torch.sqrt(x) * (1.0 + TOLERANCE))
            lost = torch.logical_not(value >= 0.0)
        above = torch.clamp_max(below + 1, last)
        a, b = (self._value(_at(levels, code), 1.0) for code in (below, above))
        code = torch.where(takes_upper(x - a, (b - a) * CHANCE, near, random.element), above, below)
        if not self.signed and self.bits == 8:
            lowest = torch.where(torch.isinf(scale), 0, 1).to(torch.int32)
            code = torch.where(value > 0.0, larger(code, lowest), code)
        code = torch.where(lost, 255 if self.bits == 8 else last, code)
        if self.bits == 4:
            scale = torch.where(any_in_group(lost), float("nan"), scale)
        return {"codes": code.to(torch.uint8), "scales": as_bf16(scale)}

    def _value(self, level: Tensor, scale: Tensor | float) -> Tensor:
        root = level * scale
        return root if self.signed else root * root

    def _levels(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["levels"].to(torch.float32) * (1.0 / self.grid)

    def _search(self, levels: Tensor, x: Tensor) -> Tensor:
        """Return the largest index whose level is <= x (0 if none is), by bisection."""
        below = torch.bitwise_and(bits_of(x), 0)  # an integer 0 for each element
        step = 1 << (self.count - 1).bit_length() - 1
        while step:
            above = torch.clamp_max(below + step, self.count - 1)
            below = torch.where(_at(levels, above) <= x, above, below)
            step //= 2
        return below

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return super().why_not(slot, shape) or sign_mismatch(self.name, self.signed, slot)


def _at(levels: Tensor, index: Tensor) -> Tensor:
    return torch.take(levels, index.to(torch.int64))


#: NF4's outermost quantile: halfway between those of 15 and of 16 values.
_OFFSET = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
