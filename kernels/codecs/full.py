"""`fp32`: full precision, one fp32 number per element (`fp64` for fp64 parameters)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Part, Random, Slot


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
