"""Rivals' storage formats under torch's own optimizers: state is rounded to what the format keeps after every step.

The update sees fresh moments in full precision, and the rounding touches only what is kept, as in the rivals' own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from ema_fidelity import flashoptim_nonnegative, flashoptim_signed
from torch import Tensor

from evidence.contenders.contender import Contender, Setting
from evidence.contenders.ours import RULES
from evidence.rules import ADAMW, LION, SGD

GROUP = 32  # elements that share a scale in FlashOptim's formats
SLOTS: dict[str, bool] = {**ADAMW.slots, **SGD.slots, **LION.slots}  # whether each is signed


@dataclass(frozen=True)
class Format:
    """`rounded`: whether the slot is signed -> its values as they are decoded; `bytes`: of so many elements."""

    rounded: Mapping[bool, Callable[[Tensor], Tensor]]
    bytes: Callable[[int], int]

    def make(self, setting: Setting) -> Any:
        optimizer = setting.rule.make(setting.parameters, setting.lr, **setting.rule.fused)
        optimizer.register_step_post_hook(self.round)
        return optimizer

    @torch.no_grad()
    def round(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            for slot in state.keys() & SLOTS.keys():
                state[slot].copy_(self.rounded[SLOTS[slot]](state[slot]))

    def state_bytes(self, optimizer: torch.optim.Optimizer) -> int:
        """Return what the state would take in this format, counters left out."""
        return sum(
            self.bytes(state[slot].numel())
            for state in optimizer.state.values()
            for slot in state.keys() & SLOTS.keys()
        )


def _in_groups(rounded: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    flat = value.flatten()
    groups = F.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)
    return rounded(groups).flatten()[: len(flat)].view_as(value)


def _bf16(value: Tensor) -> Tensor:
    return value.bfloat16()


FLASHOPTIM = Format(
    {True: partial(_in_groups, flashoptim_signed), False: partial(_in_groups, flashoptim_nonnegative)},
    lambda count: count + 2 * -(-count // GROUP),
)
BF16 = Format({True: _bf16, False: _bf16}, lambda count: 2 * count)

ROUNDED = (
    Contender(
        "FlashOptim 8bit",
        "FlashOptim's formats (arXiv 2602.23349: softsign int8 and square-root uint8, groups of 32, fp16 scales), "
        "re-implemented in eager torch under torch's own step: the package needs a GPU",
        dict.fromkeys(RULES, FLASHOPTIM.make),
        bytes=FLASHOPTIM.state_bytes,
    ),
    Contender(
        "bf16, nearest",
        "torch's own step with state rounded to the nearest bf16",
        dict.fromkeys(RULES, BF16.make),
        bytes=BF16.state_bytes,
    ),
)
