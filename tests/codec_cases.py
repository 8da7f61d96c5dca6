"""Values to store, states that hold them, and which codecs to try."""

from __future__ import annotations

import codec_reference as reference
import numpy as np
import torch
from hypothesis import strategies as st

from baoc_compile.core.codec import Slot
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.codecs.minifloat import Minifloat
from baoc_compile.state.state_tensor import StateTensor

SIZES = (0, 1, 31, 32, 33, 4097)
ROUNDING = [name for name, codec in CODECS.items() if codec.mechanism == "rounding" and not codec.follows_weight]
STOCHASTIC = [name for name in ROUNDING if CODECS[name].stochastic]
GROUPED = [name for name in ROUNDING if CODECS[name].group_size]
FOUR_BITS = [name for name in ROUNDING if CODECS[name].parts[0].bits == 4]
MINIFLOATS = [name for name in ROUNDING if isinstance(CODECS[name], Minifloat)]
DECAYING = ["bf16", "e2m5", "e3m5", "codebook8", "ucodebook8"]  # the others are alike
NONNEGATIVE = [name for name in ROUNDING if CODECS[name].why_not(Slot("momentum"), torch.Size([1]))]


def empty(value: torch.Tensor, name: str, seed: int = 0, levels_seed: int = 0) -> StateTensor:
    """A state of zeros; with `levels_seed` a learned codebook has drawn levels."""
    state = StateTensor.empty(value.shape, dtype_of(name), value.device, CODECS[name], "slot", seed)
    if levels_seed and "checked_at" in state.parts:
        codec, draw = CODECS[name], np.random.default_rng(levels_seed)
        inner = np.arange(1, codec.grid)
        kept = [-codec.grid, 0] if codec.signed else [0 if codec.bits == 8 else draw.integers(1, 99)]
        inner = np.setdiff1d(np.concatenate([-inner, inner]) if codec.signed else inner[99:], kept)
        drawn = draw.choice(inner, codec.count - len(kept) - 1, replace=False)
        state.parts["levels"].copy_(torch.from_numpy(np.sort([*kept, codec.grid, *drawn])))
    return state


def encoded(value: torch.Tensor, name: str, seed: int = 0, levels_seed: int = 0) -> StateTensor:
    state = empty(value, name, seed, levels_seed)
    state.store(value.to(dtype_of(name)))
    return state


def dtype_of(name: str) -> torch.dtype:
    return torch.float64 if name == "fp64" else torch.float32


def storable(value: torch.Tensor, name: str) -> torch.Tensor:
    """Some codecs store values >= 0 only."""
    return value.abs() if name in NONNEGATIVE else value


def arrays(state: StateTensor) -> dict[str, np.ndarray]:
    """What is stored, in the reference's form."""
    stored = {part.name: reference.to_numpy(state.parts[part.name]) for part in state.codec.parts}
    if state.codec.parts[0].bits == 4:
        stored["codes"] = reference.unpacked(stored["codes"], state.numel())
    if isinstance(state.codec, Minifloat):
        stored["codes"] = stored["codes"].view(np.uint16 if state.codec.bits == 16 else np.uint8)
    return stored


def assert_same_bits(a: StateTensor, b: StateTensor) -> None:
    for part in a.parts:
        assert np.array_equal(reference.to_numpy(a.parts[part]), reference.to_numpy(b.parts[part])), part


@st.composite
def values(draw, special: bool = False) -> torch.Tensor:
    """float32 values of one of the sizes: of one magnitude in each group, from 1e-30 to 1e30, or something nastier.

    `special`: with NaN and infinities.
    """
    numel, seed = draw(st.sampled_from(SIZES)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(numel, generator=generator)
    kind = draw(st.sampled_from(["scaled", "any magnitude", "denormal", "zero", "one outlier", "equal", "few"]))
    magnitude = 10.0 ** draw(st.floats(-30, 29))
    if kind == "any magnitude":
        return normal.sign() * 10.0 ** (60 * torch.rand(numel, generator=generator) - 30)
    if kind == "denormal":
        return normal * 1e-40
    if kind == "one outlier" and numel:
        normal[draw(st.integers(0, numel - 1))] = 1e4
    if kind == "equal":
        normal[:] = draw(st.sampled_from([1.0, 1 / 3, 1 - 2**-20]))
    if kind == "few":
        normal = normal.sign() * (normal.abs() > 1)
    normal = normal * (0.0 if kind == "zero" else magnitude)
    if special and numel:
        number = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        normal[torch.rand(numel, generator=generator) < 0.01] = number
    return normal
