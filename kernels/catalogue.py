"""All codecs, by name, and the formats a user may ask for."""

from __future__ import annotations

import torch
from baoc_compile.kernels.bf16 import Bfloat16
from baoc_compile.kernels.companded8 import Softsign8, Sqrt8
from baoc_compile.kernels.full import Full

from baoc_compile.codec import Codec, Slot
from baoc_compile.errors import PlanError

CODECS: dict[str, Codec] = {c.name: c for c in (Full(), Full(torch.float64), Bfloat16(), Softsign8(), Sqrt8())}

#: Format -> codecs that realize it, the first that accepts a slot is taken. In order of falling precision.
FORMATS: dict[str, tuple[str, ...]] = {"fp32": ("fp32",), "bf16": ("bf16",), "8bit": ("sqrt8", "softsign8")}


def codec_named(name: str) -> Codec:
    """Raises PlanError for an unknown name."""
    if name not in CODECS:
        raise PlanError(f"unknown codec {name!r}; known are {', '.join(CODECS)}")
    return CODECS[name]


def full_precision(parameter_dtype: torch.dtype) -> Codec:
    """fp64 for fp64 parameters, fp32 for all others."""
    return CODECS["fp64" if parameter_dtype == torch.float64 else "fp32"]


def codec_for(choice: str, slot: Slot, parameter_dtype: torch.dtype) -> tuple[Codec, str]:
    """The codec that realizes a format, or a codec's own name, for `slot`; full precision and the reason if refused."""
    if choice not in FORMATS and choice not in CODECS:
        raise PlanError(f"unknown format {choice!r}; formats are {', '.join(FORMATS)}, codecs {', '.join(CODECS)}")
    reasons = []
    for name in FORMATS.get(choice, (choice,)):
        codec = CODECS[name] if name not in ("fp32", "fp64") else full_precision(parameter_dtype)
        reason = codec.refuses(slot)
        if not reason:
            return codec, ""
        reasons.append(reason)
    return full_precision(parameter_dtype), reasons[-1]
