"""All codecs by name, and the formats that a user may ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch

from baoc_compile.core.codec import WEIGHT_KEY, Codec, Slot
from baoc_compile.core.errors import PlanError
from baoc_compile.kernels.codecs.bf16_weight import SplitBfloat16, StochasticBfloat16
from baoc_compile.kernels.codecs.codebook import Codebook
from baoc_compile.kernels.codecs.difference import Difference
from baoc_compile.kernels.codecs.dropped import Dropped
from baoc_compile.kernels.codecs.fp16_weight import SplitFloat16, StochasticFloat16
from baoc_compile.kernels.codecs.minifloat import Minifloat
from baoc_compile.kernels.codecs.plain import Bfloat16, Full
from baoc_compile.kernels.codecs.sharing import Factored, Shared
from baoc_compile.kernels.codecs.weight import NearestWeight

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Full(),
        Full(torch.float64),
        Bfloat16(),
        *(Minifloat(e, bits - e) for bits in (7, 8, 3, 4) for e in range(2, min(bits, 6))),
        Difference(2, 5),
        Difference(2, 1),
        Minifloat(2, 13),
        Minifloat(3, 13),
        *(Codebook(bits, signed) for bits in (8, 4) for signed in (True, False)),
        Factored(),
        *(Shared(form) for form in ("row", "column", "tensor")),
        Dropped(),
        NearestWeight(),
        *(split(bits) for bits in (16, 8) for split in (SplitBfloat16, SplitFloat16)),
        StochasticBfloat16(),
        StochasticFloat16(),
    )
}

#: Codecs with a size in their name, such as "head:64".
SIZED: dict[str, Callable[[int], Codec]] = {form: partial(Shared, form) for form in ("head", "column_head", "run")}

#: Format -> codecs that realize it; the first that accepts a slot is used. Formats in order of falling precision. A
#: slot that needs 16 bits gets them whatever the format.
FORMATS: dict[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16",),
    "16bit": ("e3m13", "e2m13"),
    "8bit": ("w+e2m5", "e3m5", "e2m5", "e3m13", "e2m13"),
    "8bit-learned": ("ucodebook8", "codebook8"),
    "4bit": ("w+e2m1", "e3m1", "e2m1", "e3m13", "e2m13"),
    "4bit-learned": ("ucodebook4", "codebook4"),
}

#: The formats tried when only a budget is given: uniformly over all parameters, and per block.
AUTOMATIC = ("fp32", "bf16", "8bit", "4bit", "factored")
BY_BLOCK = (*AUTOMATIC, "row", "column", "tensor", "dropped")

#: Formats of weights. "nearest" rounds to the parameter's own type, as torch does, and stores nothing.
WEIGHT_FORMATS: dict[str, tuple[str, ...]] = {
    "nearest": ("nearest",),
    "32bit": ("bf16+16", "fp16+16"),
    "24bit": ("bf16+8", "fp16+8"),
    "stochastic": ("bf16+sr", "fp16+sr"),
}


def known_choices(slot: str) -> tuple[str, ...]:
    """Return the formats and codec names that a plan may give for a slot; N stands for a size.

    The weight's key may be that of a slot, too.
    """
    formats = (*WEIGHT_FORMATS, *FORMATS) if slot == WEIGHT_KEY else FORMATS
    return tuple(dict.fromkeys((*formats, *CODECS, *(f"{form}:N" for form in SIZED))))


def is_known(choice: str, slot: str) -> bool:
    """Tell whether a plan may give this format or codec name for a slot."""
    form, _, size = choice.partition(":")
    return (choice in known_choices(slot) and size != "N") or (form in SIZED and _is_size(size))


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and text == str(int(text)) and int(text) > 0


@cache
def codec_named(name: str) -> Codec:
    """Return the codec of this name. Raises PlanError for an unknown name."""
    form, _, size = name.partition(":")
    if name in CODECS:
        return CODECS[name]
    if form in SIZED and _is_size(size):
        return SIZED[form](int(size))
    raise PlanError(f"unknown codec {name!r}; known are {', '.join(known_choices(''))}")


def full_precision(parameter_dtype: torch.dtype) -> Codec:
    """Return fp64 for fp64 parameters, fp32 for all others."""
    return CODECS["fp64" if parameter_dtype == torch.float64 else "fp32"]


def codec_for(choice: str, slot: Slot, shape: torch.Size, parameter_dtype: torch.dtype) -> tuple[Codec, str]:
    """Return the codec that realizes a format or codec name for `slot`, and "".

    If every candidate refuses the slot, return full precision and the last reason. Raises PlanError for a format of weights.
    """
    if choice in WEIGHT_FORMATS and choice not in CODECS:
        raise PlanError(
            f"{choice!r} is a format of weights, but {slot.key!r} is state that the optimizer keeps: choose one of "
            f"{', '.join(FORMATS)}"
        )
    reasons = []
    for name in FORMATS.get(choice, (choice,)):
        codec = codec_named(name) if name not in ("fp32", "fp64") else full_precision(parameter_dtype)
        reason = codec.why_not(slot, shape)
        if not reason:
            return codec, ""
        reasons.append(reason)
    return full_precision(parameter_dtype), reasons[-1]


def weight_codec_for(choice: str, slot: Slot, shape: torch.Size) -> tuple[Codec, str]:
    """Return the codec that realizes a weight format or codec name, and ""; if none does, "nearest" and the reason.

    Raises PlanError for a format of state.
    """
    if choice in FORMATS and choice not in CODECS:
        raise PlanError(
            f"{choice!r} is a format of state, but {slot.key!r} is the weight itself: choose one of "
            f"{', '.join(WEIGHT_FORMATS)}"
        )
    reason = ""
    for name in WEIGHT_FORMATS.get(choice, (choice,)):
        codec = codec_named(name)
        reason = codec.why_not(slot, shape)
        if not reason:
            return codec, ""
    return CODECS["nearest"], reason
