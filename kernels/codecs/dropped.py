"""`dropped`: 0 bytes. The slot is replaced by the steady state of its recurrence under the current gradient.

For s' = decay * s + increment the step uses s' = (1 - decay^t) / (1 - decay) * increment, where t is the rule's step
count, or the limit 1 / (1 - decay) * increment if the rule counts no steps. AdamW without momentum then is AdamW with
beta1 = 0, bias correction included, and SGD keeps its effective learning rate lr / (1 - momentum).
`passes/rules/reduce_state.py` rewrites the rule. Nothing is stored, so nothing is decoded or encoded here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Part, Slot


class Dropped(Codec):
    """No storage; reads as zeros outside a compiled step. Its one part, an empty codebook, tells torch the device."""

    name = "dropped"
    mechanism = "dropping"
    parts = (Part("nothing", torch.float32, "codebook", count=0),)
    relative_error = 1.0
    expected_harm = 30.0

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("a dropped slot has no values; the step computes them")

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return super().why_not(slot, shape) or slot.why_not_shared or slot.why_not_dropped
