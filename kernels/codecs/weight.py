"""Weight codecs: low-precision weights that still learn from small updates.

| name | beside the weight | full-precision semantics |
|---|---|---|
| `bf16+16`, `fp16+16` | 16-bit residual | 32-bit master weight |
| `bf16+8`, `fp16+8` | 8-bit residual | 24-bit master weight |
| `bf16+sr`, `fp16+sr` | nothing | stochastic rounding |
| `nearest` | nothing | rounding to nearest, as torch does |

Splitting a master weight into a low-precision weight and a residual is FlashOptim's idea (arXiv 2602.23349). A bf16 weight is
the upper half of a float, so that its codecs move bits (`bf16_weight`). An fp16 weight has an exponent of its own, so that
its codecs compute (`fp16_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import WEIGHT_KEY, Codec, Part, Slot


class Weight(Codec):
    """Base of the codecs whose first part is the parameter itself, of type `dtype`."""

    mechanism = "weight"
    dtype: torch.dtype

    @property
    def stored_parts(self) -> tuple[Part, ...]:
        return self.parts[1:]

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        if slot.weight_dtype is None:
            return f"{self.name} is for weights (plan key {WEIGHT_KEY!r})"
        if slot.weight_dtype != self.dtype:
            return f"{self.name} is for {self.dtype} weights, not {slot.weight_dtype}"
        return ""


class NearestWeight(Codec):
    """The weight alone, rounded to nearest as torch does: updates below half a unit are lost. 0 bytes."""

    name = "nearest"
    mechanism = "weight"
    parts = ()
    relative_error = 2.0**-8

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("a program reads a weight without codec by itself")

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return "" if slot.weight_dtype is not None else f"{self.name} is for weights (plan key {WEIGHT_KEY!r})"
