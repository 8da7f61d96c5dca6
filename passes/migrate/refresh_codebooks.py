"""Learn the levels of codebooks again when the slot's distribution has changed enough.

A codebook is checked when its slot has been stored 1, 2, 4, 8, ..., 1,024 times, and every 1,024 times after that (a
refresh counts as a store). The time of the last check is stored beside the levels, so a resumed run repeats the same
checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baoc_compile.kernels.codecs.bits import unpacked
from baoc_compile.kernels.codecs.codebook import Codebook
from baoc_compile.kernels.codecs.learn_codebook import best_levels, density, expected_error, least_error
from baoc_compile.state.state_tensor import StateTensor

#: The largest number of stores between two checks.
LONGEST_INTERVAL = 1024

#: New levels replace the old ones if their expected squared error is at most this share of the old ones'.
WORTHWHILE = 0.95


@dataclass
class CodebookRefresh:
    """The learned codebooks of a step.

    states: the state tensors; only those with a learned codebook are kept.
    remaining: steps until the next check.
    """

    states: Sequence[StateTensor]
    remaining: int = 0

    def __post_init__(self) -> None:
        self.states = [s for s in self.states if isinstance(s.codec, Codebook) and s.numel()]
        self.remaining = min((steps_until_due(s) for s in self.states), default=0)

    def tick(self) -> None:
        """Check the codebooks that are due. Call this before every step."""
        if self.states and self.remaining <= 0:
            for state in self.states:
                if steps_until_due(state) == 0:
                    refresh_codebook(state)
            self.remaining = max(1, min(map(steps_until_due, self.states)))
        self.remaining -= 1


def steps_until_due(state: StateTensor) -> int:
    """Return the number of stores until the codebook's next check."""
    clock, checked = int(state.parts["clock"]), int(state.parts["checked_at"])
    return max(0, min(max(1, 2 * checked), checked + LONGEST_INTERVAL) - clock)


@torch.no_grad()
def refresh_codebook(state: StateTensor) -> bool:
    """Learn levels from the codes, and store the state with them if that pays; return whether it was stored."""
    codec, parts = state.codec, state.parts
    assert isinstance(codec, Codebook)
    parts["checked_at"].copy_(parts["clock"])
    lanes = torch.arange(state.numel(), device=state.device)
    codes = unpacked(parts["codes"], lanes, state.rows) if codec.bits == 4 else parts["codes"].view(-1)
    old = codec.as_levels(parts["levels"])
    weights = density(codec, codes, old)
    enough = WORTHWHILE * expected_error(codec, weights, old)
    if not weights[1:-1].any() or (codec.bits == 8 and least_error(codec, weights) > enough):
        return False
    new = best_levels(codec, weights)
    if expected_error(codec, weights, new) > enough:
        return False
    value = state.decode()
    parts["levels"].copy_(torch.from_numpy(codec.as_entries(new)))
    state.store(value)
    return True
