"""`w+e2m5`, `w+e2m1`: a slot that follows the weights, stored as its difference to them.

    stored = encode(slot - weight)        slot = weight + decode(stored)

The weight is the parameter's value at the same moment: a step decodes with the old one and encodes with the new one. Averages
of weights, such as Schedule-Free's z (Defazio et al. 2024, arXiv:2405.15682) or the slow weights of Lookahead (Zhang et al. 2019,
arXiv:1907.08610), stay close to them. A code's error is relative to that small distance, where a code of the slot itself has an
error relative to the weights, which is as large as many updates.

The difference is rounded to float32 before it is encoded, and so is the sum: the slot has an error of half the last place of the
weight besides. Whoever changes a weight between two steps changes the slot by as much. So baoc compares the weights with what
they were after the last step, see `passes/migrate/watched_weights.py`.
"""

from __future__ import annotations

import torch

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.kernels.codecs.minifloat import Minifloat


class Difference(Minifloat):
    """The difference to the weight, as a `Minifloat` with a sign."""

    follows_weight = True

    def __init__(self, exponent_bits: int, mantissa_bits: int):
        super().__init__(exponent_bits, mantissa_bits)
        self._of_difference = Minifloat(exponent_bits, mantissa_bits)
        self.name = f"w+{self.name}"

    @property
    def inner(self) -> Codec:
        return self._of_difference

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        if not slot.follows_weight:
            return f"{slot.key!r} is not known to follow a float32 weight"
        return super().why_not(slot, shape)
