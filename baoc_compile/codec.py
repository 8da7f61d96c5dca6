"""The codec contract: how one state slot of one tensor is stored.

A codec is a pair of functions over groups of elements, written in the few torch operations listed in
`kernels/dialect.py`. They are the specification, the reference and, traced once, the device code: the emitters
turn the same traced graph into C++ and Triton. A codec is added by adding one file in `kernels/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One stored tensor of a codec: flat, one entry per `"element"` or per `"group"` of elements."""

    name: str
    dtype: torch.dtype
    per: Literal["element", "group"]


@dataclass(frozen=True)
class Random:
    """Uniform random 32-bit words for stochastic rounding, a pure function of (seed, step, slot, element index).

    `element` has one int32 word per element, shape `[groups, width]`; `group` one per group, shape `[groups, 1]`.
    """

    element: Tensor
    group: Tensor


@dataclass(frozen=True)
class Slot:
    """One state tensor of an update rule, of the parameter's shape, under the optimizer's own key.

    `nonnegative`: the rule proves that every new value is >= 0. `exact_reason`: why the slot must not be stored
    lossily (empty when it may be).
    """

    key: str
    nonnegative: bool = False
    exact_reason: str = ""


class Codec(ABC):
    """How the values of one slot are stored.

    Shapes: values are `[groups, width]` in float32 (`width` is `group_size`, or any number when `group_size` is
    None); an "element" part has the same shape, a "group" part is `[groups, 1]`. The last group of a tensor may
    be short; its missing lanes repeat its last element.
    """

    name: str
    parts: tuple[Part, ...]
    #: Largest error of one storing, relative to the largest value of the group (or to the value itself, without groups).
    relative_error: float
    group_size: int | None = None
    stochastic: bool = False

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Storage -> float32 values."""

    @abstractmethod
    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        """float32 values -> storage. `random` is used only by codecs with `stochastic` set."""

    def part_numel(self, part: Part, numel: int) -> int:
        """Entries of `part` for a tensor of `numel` elements."""
        return numel if part.per == "element" else -(-numel // (self.group_size or 1))

    def storage_bytes(self, numel: int) -> int:
        """Exact bytes for a tensor of `numel` elements: every part, and the step clock of a stochastic codec."""
        parts = sum(self.part_numel(part, numel) * part.dtype.itemsize for part in self.parts)
        return parts + (CLOCK_DTYPE.itemsize if self.stochastic else 0)

    def refuses(self, slot: Slot) -> str:
        """Why this codec may not store `slot`; empty when it may."""
        return slot.exact_reason

    def __repr__(self) -> str:
        return self.name


#: The clock of a stochastic slot: how often it was stored, the "step" of its random words.
CLOCK_DTYPE = torch.int32
