"""An independent float64 reference of every rounding codec, in NumPy, from their docstrings; imports no baoc.

    parts = encode("e3m5", values, slot_salt(seed=0, slot="exp_avg_sq"), clock=3)
    values = decode("e3m5", parts, len(values))

Everything is flat, one row: `values` are float64 (rounded to float32 on entry, as the codecs take them), groups are
`GROUP_SIZE` consecutive elements, the last one may be short. bfloat16 arrays are uint16 bit patterns; `to_numpy`
brings a torch tensor into that form. Codes are one to an entry (`unpacked` makes them so). A codebook's `levels` are
given, as the integers that are stored. `clock` is how often the slot was stored before. `error_bound` is the
docstrings' bound.
"""

from __future__ import annotations

import re
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
    grid: int


CODEBOOKS = {
    f"{prefix}codebook{bits}": Codebook(bits, power, grid)
    for prefix, power, grid in (("", 1, 2048), ("u", 2, 4096))
    for bits in (8, 4)
}


class Minifloat(NamedTuple):
    """`exponent` and `mantissa` bits, and whether a sign bit goes before them."""

    exponent: int
    mantissa: int

    @property
    def signed(self) -> bool:
        return self.exponent + self.mantissa in (3, 7, 15)

    @property
    def sign_bit(self) -> int:
        return 1 << self.exponent + self.mantissa

    def unit(self, e: np.ndarray) -> np.ndarray:
        """The power of two at which subnormal numbers end."""
        return np.ldexp(1.0, e.astype(np.int64) - 125)


def minifloat(codec_name: str) -> Minifloat | None:
    found = re.fullmatch(r"e(\d)m(\d+)", codec_name)
    return Minifloat(int(found[1]), int(found[2])) if found else None


def lowest_largest(codec_name: str) -> float:
    """Groups whose largest magnitude is below that are stored on the grid of those for which it is that."""
    small = minifloat(codec_name)
    return 2.0 ** (2**small.exponent - 127) if small else LOWEST_SCALE[1]


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
    small = minifloat(codec_name)
    if small:
        return _from_minifloat(small, parts["codes"][:numel], parts["exponents"])
    code = parts["codes"][:numel]
    scale = _spread(from_bf16(parts["scales"]), numel)
    with np.errstate(invalid="ignore"):
        book, table = CODEBOOKS[codec_name], _table(codec_name, parts["levels"])
        level = table[np.minimum(code, len(table) - 1)]
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
        if codec_name == "bf16":
            return _bf16(values, salt, clock)
        small = minifloat(codec_name)
        assert small
        return _minifloat(small, values, salt, clock)


def encode_rows(codec_name: str, values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """`[rows, columns]` values -> storage, flat: rows are padded to whole groups, by zeros that are then left out."""
    rows, columns = values.shape
    lanes = np.zeros((rows, -(-columns // GROUP_SIZE) * GROUP_SIZE))
    lanes[:, :columns] = values
    stored = encode(codec_name, lanes.reshape(-1), salt, clock)
    per_element = [name for name, part in stored.items() if part.size == lanes.size]
    return stored | {name: stored[name].reshape(lanes.shape)[:, :columns].reshape(-1) for name in per_element}


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


def _minifloat(small: Minifloat, values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """The smallest unit at which nothing is above the top after rounding; then floats of the sum with a unit, below it."""
    magnitude, field_top = abs(values), 2**small.exponent - 1
    r = element_words(salt, clock, np.arange(len(values))) >> (32 - 23 + small.mantissa)
    rounded = np.where(np.isfinite(magnitude), _cut(magnitude, small.mantissa, r), 2.0**128)
    largest = _largest(rounded)
    _, exponent = np.frexp(largest)
    e = np.clip(np.where(largest > 0, exponent + 126, 0) - 2**small.exponent, 0, 255 - 2**small.exponent)
    unit = _spread(small.unit(e), len(values))
    moved = np.maximum(magnitude, (magnitude + unit).astype(np.float32).astype(np.float64) / 2)
    cut = _cut(moved, small.mantissa, r)
    _, exponent = np.frexp(np.where(np.isfinite(cut), cut, 1.0) / unit)
    k = (np.where(np.isfinite(cut), cut, 1.0) / unit / np.ldexp(0.5, exponent) - 1) * 2**small.mantissa
    code = exponent * 2**small.mantissa + k.astype(np.int64)
    code = np.where(np.isinf(magnitude), field_top * 2**small.mantissa, code)
    if small.signed:
        code = code | np.where(np.signbit(values), small.sign_bit, 0)
    else:
        code = np.where(values > 0, np.maximum(code, 1), code)
    code = np.where(np.isnan(magnitude), small.sign_bit - 1, code)
    width = np.uint16 if small.exponent + small.mantissa > 8 else np.uint8
    return {"codes": code.astype(width), "exponents": e.astype(np.uint8)}


def _cut(magnitude: np.ndarray, mantissa: int, r: np.ndarray) -> np.ndarray:
    """float32 magnitudes with fewer mantissa bits: up when what is dropped, in units of float32, plus r carries."""
    _, exponent = np.frexp(np.where(np.isfinite(magnitude), magnitude, 0))
    last = np.ldexp(1.0, np.maximum(exponent, -125) - 24)  # the last place of float32
    step = last * 2.0 ** (23 - mantissa)
    lower = np.floor(magnitude / step) * step
    return np.where((magnitude - lower) / last + r >= 2.0 ** (23 - mantissa), lower + step, lower)


def _from_minifloat(small: Minifloat, codes: np.ndarray, e: np.ndarray) -> np.ndarray:
    codes = codes.astype(np.int64) & ((small.sign_bit << small.signed) - 1)
    field, k = (codes & small.sign_bit - 1) >> small.mantissa, (codes & (1 << small.mantissa) - 1) / 2**small.mantissa
    unit, special = (_spread(a, len(codes)) for a in (small.unit(e), e == 255 - 2**small.exponent))
    value = unit * np.where(field == 0, k, np.ldexp(1 + k, field - 1))
    is_top = special & (field == 2**small.exponent - 1)
    value = np.where(is_top, np.where(k == 0, np.inf, np.nan), value)
    return np.where(codes & small.sign_bit, -value, value) if small.signed else value


def _codebook(book: Codebook, values: np.ndarray, salt: int, clock: int, table: np.ndarray) -> dict[str, np.ndarray]:
    """Code k is (scale table[k])^power. The largest takes the end of its sign. NaN is 255, or with 4 bits the scale."""
    scale, x, is_largest = _scaled(values ** (1 / book.power), book.power, salt, clock)
    code = _rounded(np.copysign(x, values), table, book.power, salt, clock)
    if (book.bits, book.power) == (8, 2):
        code = np.where(_is_finite_positive(values, scale), np.maximum(code, 1), code)
    code = np.where(is_largest, np.where(values < 0, 0, len(table) - 1), code)
    if book.bits == 8:
        code = np.where(np.isnan(values), 255, code)
    else:
        scale = np.where(_largest(np.isnan(values)) > 0, np.nan, scale)
    return {"codes": code.astype(np.uint8), "scales": to_bf16(scale)}


def _table(codec_name: str, levels: np.ndarray) -> np.ndarray:
    return np.asarray(levels, dtype=np.float64) / CODEBOOKS[codec_name].grid


def _scaled(roots: np.ndarray, power: int, salt: int, clock: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scale of each group, a bfloat16 next to its largest magnitude and exact on average in that to `power`; of each
    element its magnitude over the scale, in [0, 1] (infinity and NaN: 1), and whether it is the largest.

    Above `lower`, where a scale that is rounded down clips, one that is rounded up makes good for it."""
    largest = np.maximum(_largest(roots), LOWEST_SCALE[power])
    lower, upper = neighbours(largest)
    chance = (largest**power - lower**power) / (upper**power - lower**power)
    up = rounds_up(chance, group_words(salt, clock, np.arange(0, len(roots), GROUP_SIZE)))
    scale = np.where(up, upper, lower)
    magnitude = abs(roots)
    per_element, low, p = (_spread(part, len(roots)) for part in (scale, lower, np.where(up, chance, 1)))
    raised = (low**power + (magnitude**power - low**power) / p) ** (1 / power)
    magnitude = np.where((magnitude > low) & (per_element > low), raised, magnitude)
    x = np.where(np.isfinite(magnitude), np.minimum(magnitude / per_element, 1), 1)
    return scale, x, (abs(roots) == _spread(largest, len(roots))) & (abs(roots) > 0)


def _rounded(x: np.ndarray, table: np.ndarray, power: int, salt: int, clock: int) -> np.ndarray:
    """Index of one of the two levels around x, exact on average in x^power; below the first level that."""
    k = np.clip(np.searchsorted(table, x, side="right") - 1, 0, len(table) - 2)
    a, b = table[k] ** power, table[k + 1] ** power
    up = rounds_up((x**power - a) / (b - a), element_words(salt, clock, np.arange(len(x))))
    return k + up


def _is_finite_positive(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (values > 0) & ~np.isinf(_spread(scale, len(values)))


def _largest(values: np.ndarray) -> np.ndarray:
    """Largest magnitude of each group, NaN ignored."""
    padded = np.zeros(-(-len(values) // GROUP_SIZE) * GROUP_SIZE)
    padded[: len(values)] = np.where(np.isnan(values), 0, abs(values))
    return padded.reshape(-1, GROUP_SIZE).max(axis=1)


def _spread(per_group: np.ndarray, numel: int) -> np.ndarray:
    return np.repeat(per_group, GROUP_SIZE)[:numel]


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
    small = minifloat(codec_name)
    if small:
        unit = _spread(small.unit(parts["exponents"]), len(values))
        return 2.0**-small.mantissa * np.maximum(magnitude, unit) + 2.0**-24 * unit
    scale, largest = (_spread(a, len(values)) for a in (from_bf16(parts["scales"]), _largest(values)))
    noise = 4 * 2.0**-24 * largest + 2.0**-149
    power = CODEBOOKS[codec_name].power
    beside_largest = magnitude ** (1 / power) > neighbours(largest ** (1 / power))[0]
    top = np.where(beside_largest, (2.0**-7 if power == 1 else 2.0**-6 * (1 + 2.0**-8)) * largest, 0)
    table = _table(codec_name, parts["levels"])
    table = np.union1d(table, 0.0)  # values below the first level read as that
    x = np.clip(np.copysign(magnitude ** (1 / power) / scale, values), -1, 1)
    below = np.clip(np.searchsorted(table, x, side="right") - 1, 0, len(table) - 2)
    gap = table[below + 1] ** power - table[below] ** power
    return scale**power * abs(gap) + top + noise
