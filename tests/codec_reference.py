"""An independent float64 reference of every rounding codec, in NumPy, from their docstrings; imports no baoc.

    parts = encode("sqrt8", values, slot_salt(seed=0, slot="exp_avg_sq"), clock=3)
    values = decode("sqrt8", parts, len(values))

Everything is flat: `values` are float64 (rounded to float32 on entry, as the codecs take them), groups are
`group_size` consecutive elements, the last one may be short. bfloat16 arrays are uint16 bit patterns; `to_numpy`
brings a torch tensor into that form. Codes are one to an entry (`unpacked` makes them so). A codebook's `levels` are
given, as the integers that are stored. `clock` is how often the slot was stored before. `error_bound` is the
docstrings' bound.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import torch

GROUP_SIZE = 32
TINY_BF16 = 2.0**-133  # the smallest positive bfloat16
LOWEST_SCALE = {1: 2.0**-126, 2: 2.0**-80}  # of values and of their square roots


class Codebook(NamedTuple):
    """Which of the codebooks: `power` 1 stores values, 2 their square roots; levels are integers over `grid`."""

    bits: int
    power: int
    group_size: int
    grid: int


CODEBOOKS = {
    f"{prefix}{name}": Codebook(bits, power, size, grid)
    for prefix, power, grid in (("", 1, 2048), ("u", 2, 4096))
    for name, bits, size in (("codebook8", 8, 32), ("codebook4", 4, 64), ("int4:64", 4, 64), ("int4:128", 4, 128))
}


def group_size(codec_name: str) -> int:
    return CODEBOOKS[codec_name].group_size if codec_name in CODEBOOKS else GROUP_SIZE


# random words: lowbias32 over (seed, slot, step, global element index), in unsigned 32-bit arithmetic


def mix(x: np.ndarray) -> np.ndarray:
    """lowbias32: x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16."""
    x = np.asarray(x).astype(np.uint64)
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def slot_salt(seed: int, slot: str) -> int:
    """The (seed, slot) part of a key: crc32 of "seed/slot"."""
    return zlib.crc32(f"{seed}/{slot}".encode())


def step_key(salt: int, clock: int) -> np.ndarray:
    return mix(mix(np.uint64(clock & 0xFFFFFFFF)) ^ np.uint64(salt & 0xFFFFFFFF))


def fold_index(index: np.ndarray) -> np.ndarray:
    """The lower 32 bits, scrambled by the upper ones."""
    index = np.asarray(index, dtype=np.uint64)
    return index & 0xFFFFFFFF ^ (index >> 32) * 0x85EBCA6B & 0xFFFFFFFF


def element_words(salt: int, clock: int, index: np.ndarray) -> np.ndarray:
    """x = index * 0x7feb352d; x ^= x >> 15; x ^= key; x *= 0x846ca68b."""
    x = fold_index(index).astype(np.uint64) * 0x7FEB352D & 0xFFFFFFFF
    return (x ^ x >> 15 ^ step_key(salt, clock)) * 0x846CA68B & 0xFFFFFFFF


def group_words(salt: int, clock: int, first_index: np.ndarray) -> np.ndarray:
    return mix(mix(fold_index(first_index) ^ np.uint64(0x3C6EF372)) ^ step_key(salt, clock))


def uniform(words: np.ndarray) -> np.ndarray:
    """The upper 24 bits as a number in [0, 1)."""
    return (words >> 8) * 2.0**-24


def rounds_up(probability: np.ndarray, words: np.ndarray) -> np.ndarray:
    """True with that probability."""
    return uniform(words) < probability


# bfloat16


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A torch tensor as a flat array; bfloat16 becomes its bits."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.int16).numpy().view(np.uint16) if flat.dtype == torch.bfloat16 else flat.numpy()


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Bits of values that bfloat16 holds exactly."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def neighbours(magnitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bfloat16 numbers around non-negative float32 values: (largest <=, smallest >=)."""
    _, exponent = np.frexp(magnitude)
    step = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    with np.errstate(invalid="ignore"):
        lower = np.where(np.isinf(magnitude), magnitude, np.floor(magnitude / step) * step)
    upper = np.where(lower == magnitude, lower, lower + step)
    return lower, np.where(upper >= 2.0**128, np.inf, upper)


# the codecs


def decode(codec_name: str, parts: dict[str, np.ndarray], numel: int) -> np.ndarray:
    """Storage -> float64 values."""
    if codec_name in ("fp32", "fp64"):
        return parts["values"][:numel].astype(np.float64)
    if codec_name == "bf16":
        return from_bf16(parts["values"])[:numel]
    code = parts["codes"][:numel].astype(np.float64)
    scale = _spread(from_bf16(parts["scales"]), numel, group_size(codec_name))
    with np.errstate(invalid="ignore"):
        if codec_name == "softsign8":
            return np.where(code == -128, np.nan, scale * (code / (254 - abs(code))))
        if codec_name == "sqrt8":
            return np.where(code == 255, np.nan, (scale * code / 254) ** 2)
        book, table = CODEBOOKS[codec_name], _table(codec_name, parts["levels"])
        level = table[np.minimum(parts["codes"][:numel], len(table) - 1)]
        lost = (code == 255) | np.isinf(scale) & (abs(level) < 1)
        return np.where(lost, np.nan, (level * scale) ** book.power)


def encode(
    codec_name: str, values: np.ndarray, salt: int, clock: int, levels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """float64 values -> storage, with the random words of (salt, clock, index)."""
    if codec_name == "fp64":
        return {"values": np.asarray(values, dtype=np.float64)}
    with np.errstate(all="ignore"):
        values = np.asarray(values, dtype=np.float32).astype(np.float64)
        if codec_name == "fp32":
            return {"values": values.astype(np.float32)}
        if codec_name in CODEBOOKS:
            return _codebook(CODEBOOKS[codec_name], values, salt, clock, _table(codec_name, levels))
        return {"bf16": _bf16, "softsign8": _softsign8, "sqrt8": _sqrt8}[codec_name](values, salt, clock)


def unpacked(codes: np.ndarray, numel: int) -> np.ndarray:
    """4-bit codes, two to a byte, the first in the low half."""
    return np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)[:numel]


def _bf16(values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """Up when the 16 bits below bfloat16 plus a uniform r in [0, 2^16) carry."""
    magnitude = abs(values)
    lower, upper = neighbours(magnitude)
    _, exponent = np.frexp(magnitude)
    below = (magnitude - lower) / np.ldexp(1.0, np.maximum(exponent - 24, -149))
    r = element_words(salt, clock, np.arange(len(values))) >> 16
    rounded = np.where(below + r >= 2.0**16, upper, lower)
    return {"values": to_bf16(np.where(np.isnan(values), np.nan, np.copysign(rounded, values)))}


def _softsign8(values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """Level k of 0..127 is scale k / (254 - k); the largest magnitude takes 127; -128 is NaN."""
    scale, x, is_largest = _scaled(values, GROUP_SIZE, 1, salt, clock)
    k = np.arange(128)
    level = np.where(is_largest, 127, _rounded(x, k / (254 - k), 1, salt, clock))
    code = np.where(np.isnan(values), -128, np.copysign(level, values))
    return {"codes": code.astype(np.int8), "scales": to_bf16(scale)}


def _sqrt8(values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """Level k of 0..254 is (scale k / 254)^2; the largest takes 254, positive values at least 1; 255 is NaN."""
    scale, x, is_largest = _scaled(np.sqrt(values), GROUP_SIZE, 2, salt, clock)
    level = _rounded(x, np.arange(255) / 254, 2, salt, clock)
    level = np.where(is_largest, 254, np.where(_is_finite_positive(values, scale), np.maximum(level, 1), level))
    return {"codes": np.where(np.isnan(values), 255, level).astype(np.uint8), "scales": to_bf16(scale)}


def _codebook(book: Codebook, values: np.ndarray, salt: int, clock: int, table: np.ndarray) -> dict[str, np.ndarray]:
    """Code k is (scale table[k])^power. The largest takes the end of its sign. NaN is 255, or with 4 bits the scale."""
    scale, x, is_largest = _scaled(values ** (1 / book.power), book.group_size, book.power, salt, clock)
    code = _rounded(np.copysign(x, values), table, book.power, salt, clock)
    if (book.bits, book.power) == (8, 2):
        code = np.where(_is_finite_positive(values, scale), np.maximum(code, 1), code)
    code = np.where(is_largest, np.where(values < 0, 0, len(table) - 1), code)
    if book.bits == 8:
        code = np.where(np.isnan(values), 255, code)
    else:
        scale = np.where(_largest(np.isnan(values), book.group_size) > 0, np.nan, scale)
    return {"codes": code.astype(np.uint8), "scales": to_bf16(scale)}


def _table(codec_name: str, levels: np.ndarray) -> np.ndarray:
    return np.asarray(levels, dtype=np.float64) / CODEBOOKS[codec_name].grid


def _scaled(
    roots: np.ndarray, width: int, power: int, salt: int, clock: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scale of each group, a bfloat16 next to its largest magnitude and exact on average in that to `power`; of each
    element its magnitude over the scale, in [0, 1] (infinity and NaN: 1), and whether it is the largest.

    Above `lower`, where a scale that is rounded down clips, one that is rounded up makes good for it."""
    largest = np.maximum(_largest(roots, width), LOWEST_SCALE[power])
    lower, upper = neighbours(largest)
    chance = (largest**power - lower**power) / (upper**power - lower**power)
    up = rounds_up(chance, group_words(salt, clock, np.arange(0, len(roots), width)))
    scale = np.where(up, upper, lower)
    magnitude = abs(roots)
    per_element, low, p = (_spread(part, len(roots), width) for part in (scale, lower, np.where(up, chance, 1)))
    raised = (low**power + (magnitude**power - low**power) / p) ** (1 / power)
    magnitude = np.where((magnitude > low) & (per_element > low), raised, magnitude)
    x = np.where(np.isfinite(magnitude), np.minimum(magnitude / per_element, 1), 1)
    return scale, x, (abs(roots) == _spread(largest, len(roots), width)) & (abs(roots) > 0)


def _rounded(x: np.ndarray, table: np.ndarray, power: int, salt: int, clock: int) -> np.ndarray:
    """Index of one of the two levels around x, exact on average in x^power; below the first level that."""
    k = np.clip(np.searchsorted(table, x, side="right") - 1, 0, len(table) - 2)
    a, b = table[k] ** power, table[k + 1] ** power
    up = rounds_up((x**power - a) / (b - a), element_words(salt, clock, np.arange(len(x))))
    return k + up


def _is_finite_positive(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (values > 0) & ~np.isinf(_spread(scale, len(values), GROUP_SIZE))


def _largest(values: np.ndarray, width: int) -> np.ndarray:
    """Largest magnitude of each group, NaN ignored."""
    padded = np.zeros(-(-len(values) // width) * width)
    padded[: len(values)] = np.where(np.isnan(values), 0, abs(values))
    return padded.reshape(-1, width).max(axis=1)


def _spread(per_group: np.ndarray, numel: int, width: int) -> np.ndarray:
    return np.repeat(per_group, width)[:numel]


def error_bound(codec_name: str, values: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
    """The largest error of each finite value that the docstrings allow, given what was stored at level k.

    On top of them, what arithmetic in float32 adds: 4 roundings of numbers as large as the group's largest, and the
    coarseness of subnormal values.
    """
    magnitude = abs(values)
    if codec_name in ("fp32", "fp64"):
        return magnitude * {"fp32": 2.0**-24, "fp64": 0.0}[codec_name]
    if codec_name == "bf16":
        return np.maximum(2.0**-7 * magnitude, TINY_BF16)
    width = group_size(codec_name)
    scale, largest = (_spread(a, len(values), width) for a in (from_bf16(parts["scales"]), _largest(values, width)))
    noise = 4 * 2.0**-24 * largest + 2.0**-149
    k = abs(parts["codes"].astype(np.float64))
    power = CODEBOOKS[codec_name].power if codec_name in CODEBOOKS else 2 if codec_name == "sqrt8" else 1
    beside_largest = magnitude ** (1 / power) > neighbours(largest ** (1 / power))[0]
    top = np.where(beside_largest, (2.0**-7 if power == 1 else 2.0**-6 * (1 + 2.0**-8)) * largest, 0)
    if codec_name == "softsign8":
        k = np.minimum(k, 126)  # there is no level above 127
        return scale * 254 / ((254 - k) * (253 - k)) + top + noise
    if codec_name == "sqrt8":
        return scale**2 * (2 * k + 1) / 254**2 + top + noise
    table = _table(codec_name, parts["levels"])
    table = np.union1d(table, 0.0)  # values below the first level read as that
    x = np.clip(np.copysign(magnitude ** (1 / power) / scale, values), -1, 1)
    below = np.clip(np.searchsorted(table, x, side="right") - 1, 0, len(table) - 2)
    gap = table[below + 1] ** power - table[below] ** power
    return scale**power * abs(gap) + top + noise
