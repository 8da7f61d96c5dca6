"""An independent float64 reference of every codec, in NumPy, from the formulas in their docstrings; imports no baoc.

    parts = encode("sqrt8", values, slot_salt(seed=0, slot="exp_avg_sq"), clock=3)
    values = decode("sqrt8", parts, len(values))

Everything is flat: `values` are float64 (rounded to float32 on entry, as the codecs take them), groups are 32
consecutive elements, the last one may be short. bfloat16 arrays are uint16 bit patterns; `to_numpy` brings a torch
tensor into that form. `clock` is how often the slot was stored before. `error_bound` is the docstrings' bound.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

GROUP_SIZE = 32
ON_LEVEL = 2.0**-13  # a probability closer than this to 0 or 1 counts as 0 or 1
TINY_BF16 = 2.0**-133  # the smallest positive bfloat16
CODECS = ("fp32", "fp64", "bf16", "softsign8", "sqrt8")
STOCHASTIC = ("bf16", "softsign8", "sqrt8")


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
    return mix(fold_index(index) ^ step_key(salt, clock))


def group_words(salt: int, clock: int, first_index: np.ndarray) -> np.ndarray:
    return mix(mix(fold_index(first_index) ^ np.uint64(0x3C6EF372)) ^ step_key(salt, clock))


def uniform(words: np.ndarray) -> np.ndarray:
    """The upper 24 bits as a number in [0, 1)."""
    return (words >> 8) * 2.0**-24


def rounds_up(probability: np.ndarray, words: np.ndarray) -> np.ndarray:
    """True with that probability, never below ON_LEVEL, always above 1 - ON_LEVEL."""
    return (uniform(words) < probability) & (probability >= ON_LEVEL) | (probability > 1 - ON_LEVEL)


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
    scale = np.repeat(from_bf16(parts["scales"]), GROUP_SIZE)[:numel]
    with np.errstate(invalid="ignore"):
        if codec_name == "softsign8":
            return np.where(code == -128, np.nan, scale * (code / (254 - abs(code))))
        return np.where(code == 255, np.nan, (scale * code / 254) ** 2)


def encode(codec_name: str, values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """float64 values -> storage, with the random words of (salt, clock, index)."""
    if codec_name == "fp64":
        return {"values": np.asarray(values, dtype=np.float64)}
    with np.errstate(all="ignore"):
        values = np.asarray(values, dtype=np.float32).astype(np.float64)
        if codec_name == "fp32":
            return {"values": values.astype(np.float32)}
        return {"bf16": _bf16, "softsign8": _softsign8, "sqrt8": _sqrt8}[codec_name](values, salt, clock)


def _bf16(values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """Up when the 16 bits below bfloat16 plus a uniform r in [0, 2^16) carry."""
    magnitude = abs(values)
    lower, upper = neighbours(magnitude)
    _, exponent = np.frexp(magnitude)
    below = (magnitude - lower) / np.ldexp(1.0, np.maximum(exponent - 24, -149))
    r = element_words(salt, clock, np.arange(len(values))) & 0xFFFF
    rounded = np.where(below + r >= 2.0**16, upper, lower)
    return {"values": to_bf16(np.where(np.isnan(values), np.nan, np.copysign(rounded, values)))}


def _softsign8(values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """Level k of 0..127 is scale k / (254 - k); the largest magnitude takes 127; -128 is NaN."""
    magnitude, largest = abs(values), _largest(values)
    lower, upper = neighbours(largest)
    chance = (largest - lower) / (upper - lower)
    scale = np.where(rounds_up(chance, _words_of_groups(len(values), salt, clock)), upper, lower)
    x = _relative(magnitude, _spread(scale, len(values)))
    level = np.floor(127 * (2 * x / (1 + x)))
    here, above = level / (254 - level), (level + 1) / (253 - level)
    level += rounds_up((x - here) / (above - here), element_words(salt, clock, np.arange(len(values))))
    level = np.where((magnitude == _spread(largest, len(values))) & (magnitude > 0), 127, level)
    code = np.where(np.isnan(values), -128, np.copysign(level, values))
    return {"codes": code.astype(np.int8), "scales": to_bf16(scale)}


def _sqrt8(values: np.ndarray, salt: int, clock: int) -> dict[str, np.ndarray]:
    """Level k of 0..254 is (scale k / 254)^2; the largest takes 254, positive values at least 1; 255 is NaN."""
    root = np.sqrt(values)
    largest = _largest(root)
    lower, upper = neighbours(largest)
    chance = (largest - lower) * (largest + lower) / ((upper - lower) * (upper + lower))
    scale = np.where(rounds_up(chance, _words_of_groups(len(values), salt, clock)), upper, lower)
    y = 254 * _relative(root, _spread(scale, len(values)))
    level = np.floor(y)
    chance = (y**2 - level**2) / ((level + 1) ** 2 - level**2)
    level += rounds_up(chance, element_words(salt, clock, np.arange(len(values))))
    level = np.where(root > 0, np.maximum(level, 1), level)
    level = np.where((root == _spread(largest, len(values))) & (root > 0), 254, level)
    return {"codes": np.where(np.isnan(root), 255, level).astype(np.uint8), "scales": to_bf16(scale)}


def _largest(values: np.ndarray) -> np.ndarray:
    """Largest magnitude of each group, NaN ignored."""
    padded = np.zeros(-(-len(values) // GROUP_SIZE) * GROUP_SIZE)
    padded[: len(values)] = np.where(np.isnan(values), 0, abs(values))
    return padded.reshape(-1, GROUP_SIZE).max(axis=1)


def _spread(per_group: np.ndarray, numel: int) -> np.ndarray:
    return np.repeat(per_group, GROUP_SIZE)[:numel]


def _words_of_groups(numel: int, salt: int, clock: int) -> np.ndarray:
    return group_words(salt, clock, np.arange(0, numel, GROUP_SIZE))


def _relative(magnitude: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """magnitude / scale in [0, 1]; 0 in an empty group, 1 for infinity."""
    ratio = magnitude / np.where(scale > 0, scale, 1)
    return np.where(np.isinf(magnitude), 1, np.minimum(ratio, 1))


def error_bound(codec_name: str, values: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
    """The largest error of each finite value that the docstrings allow, given what was stored at level k.

    On top of them, what arithmetic in float32 adds: 4 roundings of numbers as large as the group's largest, and the
    coarseness of subnormal scales and values.
    """
    magnitude = abs(values)
    if codec_name in ("fp32", "fp64"):
        return magnitude * {"fp32": 2.0**-24, "fp64": 0.0}[codec_name]
    if codec_name == "bf16":
        return np.maximum(2.0**-7 * magnitude, TINY_BF16)
    scale, largest = _spread(from_bf16(parts["scales"]), len(values)), _spread(_largest(values), len(values))
    noise = 4 * 2.0**-24 * largest
    k = abs(parts["codes"].astype(np.float64))
    if codec_name == "softsign8":
        k = np.minimum(k, 126)  # there is no level above 127
        return scale * 254 / ((254 - k) * (253 - k)) + noise + np.where(scale < 2.0**-126, TINY_BF16, 0)
    top = np.where(k == 254, 2.0**-6 * (1 + 2.0**-8) * largest, 0)  # the largest value's root is rounded to bf16
    return np.maximum(scale**2 * (2 * k + 1) / 254**2, top) + noise + 2.0**-149
