"""The codec contract: how one state slot, or the weight itself, of one tensor is stored.

A codec is a pair of functions over groups of elements, written in the few torch operations listed in
`kernels/dialect/operations.py`. They are the specification, the reference and, traced once, the device code: the emitters
turn the same traced graph into C++ and Triton. A codec is added by adding one file in `kernels/codecs/`.

There are four kinds, and a test says which it checks:

- "rounding": the step uses the fresh value; only what is stored for the next step is rounded.
- "sharing": the stored numbers are means over elements, and the step uses what they decode to after the step's own
  values were averaged in. Needs a linear recurrence, s' = decay * s + increment.
- "dropping": nothing is stored; the step uses the recurrence's steady state under the current gradient.
- "weight": the parameter's own tensor plus what it lacks of full precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Mechanism = Literal["rounding", "sharing", "dropping", "weight"]

#: What plans and `optimizer.state[p]` call the weight's own entry.
WEIGHT_KEY = "param"

#: The clock of a stochastic slot: how often it was stored, the "step" of its random words.
CLOCK_DTYPE = torch.int32


@dataclass(frozen=True)
class Part:
    """One stored tensor of a codec, flat.

    One entry per "element" or per "group" of elements, `count` entries in a "codebook" that the whole tensor shares, or
    one per set of elements that have a value in common ("shared"). `bits` = 4: two entries to a byte, the first in the
    low half; functions see them unpacked.
    """

    name: str
    dtype: torch.dtype
    per: Literal["element", "group", "codebook", "shared"]
    count: int = 0
    bits: int = 8


class Sharing(NamedTuple):
    """Which shared value element i has: number (i // run) % cycle, i the row-major index."""

    run: int
    cycle: int

    def of(self, lanes: Tensor) -> Tensor:
        """The numbers of the values that these elements (row-major indices) have."""
        return lanes // max(self.run, 1) % max(self.cycle, 1)


@dataclass(frozen=True)
class Random:
    """Uniform random 32-bit words for stochastic rounding, a pure function of (seed, step, slot, element index).

    `element` has one int32 word per element, shape `[groups, width]`; `group` one per group, shape `[groups, 1]`.
    """

    element: Tensor
    group: Tensor


@dataclass(frozen=True)
class Slot:
    """One state tensor of an update rule, of the parameter's shape, under the optimizer's own key; or the weight.

    `nonnegative`: the rule proves that every new value is >= 0. `why_exact`: why the slot must not be stored
    lossily. `why_not_shared`: why it can't be shared, `why_not_dropped`: why it can't be dropped (all empty when it
    may be). `weight_dtype`: the parameter's type if this is the weight.
    """

    key: str
    nonnegative: bool = False
    why_exact: str = ""
    why_not_shared: str = "its update is not known as a rule"
    why_not_dropped: str = "its update is not known as a rule"
    weight_dtype: torch.dtype | None = None


def sign_mismatch(name: str, signed: bool, slot: Slot) -> str:
    """Why a codec for signed, or for non-negative, slots does not fit; empty if it does.

    A quantizer for signed values has a level 0. A second moment that reads 0 beside a momentum that does not divides an
    update by eps alone, so slots that are >= 0 need one that never rounds a positive value to 0.
    """
    if signed and slot.nonnegative:
        return f"{slot.key!r} is never negative, and {name} would round its small values to 0"
    if not signed and not slot.nonnegative:
        return f"the rule does not prove that {slot.key!r} stays >= 0"
    return ""


def weight_slots(parameter: Tensor, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """The slot of a low-precision weight; none for other parameters, or if the optimizer uses its key itself."""
    if parameter.dtype not in (torch.bfloat16, torch.float16) or any(s.key == WEIGHT_KEY for s in slots):
        return ()
    return (Slot(WEIGHT_KEY, weight_dtype=parameter.dtype),)


def weight_entry(configuration: Mapping[str, Codec]) -> str | None:
    """The key of the weight's own codec, if that is more than rounding. A slot called the same has another mechanism."""
    return next((key for key, codec in configuration.items() if codec.mechanism == "weight" and codec.parts), None)


class Codec(ABC):
    """How the values of one slot are stored.

    Shapes: values are `[groups, width]` in float32 (`width` is `group_size`, or any number when `group_size` is
    None); an "element" part has the same shape, a "group" part is `[groups, 1]`, a "codebook" part is `[count]`, and
    a "shared" part comes spread over the elements. The last group of a tensor may be short; its missing lanes repeat
    its last element.
    """

    name: str
    parts: tuple[Part, ...]
    mechanism: ClassVar[Mechanism] = "rounding"
    #: Largest error of one storing, relative to the largest value of the group (or to the value itself, without groups).
    relative_error: float
    #: How much a slot stored so is expected to hurt learning before anything is measured; 8 bits are 1 (docs/learning.md
    #: gives the order).
    expected_harm: float = 1.0
    group_size: int | None = None
    stochastic: bool = False

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Storage -> float32 values."""

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        """float32 values -> the "element" and "group" parts. `random` is used only by codecs with `stochastic` set.

        A codec with a codebook has it beside the values: see `encode_with`.
        """
        raise NotImplementedError(f"{self.name} does not store values one by one")

    def encode_with(self, codebooks: Mapping[str, Tensor], value: Tensor, random: Random) -> dict[str, Tensor]:
        """`encode`, for codecs that look values up in their "codebook" parts."""
        return self.encode(value, random)

    def sharing(self, part: Part, shape: torch.Size) -> Sharing:
        """Which elements of a tensor of `shape` have an entry of a "shared" part in common."""
        raise NotImplementedError(f"{self.name} shares nothing")

    def initial(self, part: Part, shape: torch.Size, device: torch.device) -> Tensor:
        """The part of a tensor of zeros."""
        return torch.zeros(self.entries(part, shape), dtype=part.dtype, device=device)

    def learn(self, parts: Mapping[str, Tensor], value: Tensor) -> None:  # noqa: B027  (nothing to learn is the rule)
        """Sets "codebook" parts from the first full-precision values that a slot is to store; most codecs have none to learn."""

    @property
    def stored_parts(self) -> tuple[Part, ...]:
        """The parts that the codec keeps in optimizer state; a weight codec's first part is the parameter."""
        return self.parts

    def entries(self, part: Part, shape: torch.Size) -> int:
        """Length of the part's tensor, for a slot of `shape`."""
        numel = torch.Size(shape).numel()
        if part.per == "codebook":
            return part.count
        if part.per == "shared":
            return self.sharing(part, torch.Size(shape)).cycle if numel else 0
        count = numel if part.per == "element" else -(-numel // (self.group_size or 1))
        return -(-count * part.bits // 8) if part.bits < 8 else count

    def storage_bytes(self, shape: torch.Size) -> int:
        """Exact bytes for a tensor of `shape`: every part, and the step clock of a stochastic codec."""
        parts = sum(self.entries(part, shape) * part.dtype.itemsize for part in self.stored_parts)
        return parts + (CLOCK_DTYPE.itemsize if self.stochastic else 0)

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        """Why this codec may not store `slot` of a tensor of `shape`; empty when it may."""
        if slot.weight_dtype is not None:
            return f"{self.name} stores state, not weights"
        return slot.why_exact

    def __repr__(self) -> str:
        return self.name
