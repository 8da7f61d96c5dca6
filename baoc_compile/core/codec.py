"""Codec: how one state slot of one tensor, or the weight itself, is stored.

A codec is a pair of functions, `decode` and `encode`, over groups of elements. They use only the torch operations
listed in `kernels/dialect/operations.py`. The same two functions are specification, reference and device code: they are
traced once, and the emitters turn the graph into C++ and Triton. To add a codec, add a file in `kernels/codecs/` and a
line in its `catalogue.py`.

A codec has one of four mechanisms:

- "rounding": the step uses the fresh value; only what is stored for the next step is rounded.
- "sharing": the stored numbers are means over elements. The step averages its new values into them, and then uses what
  they decode to. The slot must be a linear recurrence, s' = decay * s + increment.
- "dropping": nothing is stored. The step uses the steady state of the recurrence under the current gradient.
- "weight": the parameter's own tensor, and beside it what the tensor lacks of full precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Mechanism = Literal["rounding", "sharing", "dropping", "weight"]

#: The key of the weight's own entry in plans and in `optimizer.state[p]`.
WEIGHT_KEY = "param"

#: Type of a stochastic slot's clock, which counts how often the slot was stored. It is the "step" of the random words.
CLOCK_DTYPE = torch.int32


#: Elements per group of every grouped codec. The last group of a row may be short.
GROUP_SIZE = 32


@dataclass(frozen=True)
class Rows:
    """A tensor as rows, which no group crosses: its first dimension, and the product of all others.

    A tensor of fewer than two dimensions is one row. So a shard along the first of several dimensions has whole groups.

    Random words are keyed by the *lane* of an element: its row-major index in a tensor whose rows are padded to whole groups.
    """

    count: int
    columns: int

    @staticmethod
    def of(shape: torch.Size) -> Rows:
        numel = torch.Size(shape).numel()
        count = shape[0] if len(shape) > 1 else 1
        return Rows(count, numel // count if count else 0)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // GROUP_SIZE)

    @property
    def padded(self) -> int:
        """Lanes of a row."""
        return self.groups * GROUP_SIZE

    @property
    def are_padded(self) -> bool:
        """Whether lanes and elements differ."""
        return self.count > 1 and self.columns % GROUP_SIZE != 0

    @property
    def lane_count(self) -> int:
        """Lanes of the tensor: as many as elements if no row is padded."""
        return self.count * (self.padded if self.are_padded else self.columns)

    def lanes(self, index: Tensor) -> Tensor:
        """Return the lanes of elements with these row-major indices."""
        if not self.are_padded:
            return index
        row = index // self.columns
        return index + row * (self.padded - self.columns)

    def elements(self, lane: Tensor) -> Tensor:
        """Return the row-major indices of the elements at these lanes; of the row's last where there is none."""
        if not self.are_padded:
            return torch.clamp_max(lane, max(self.count * self.columns - 1, 0))
        row = lane // self.padded
        return row * self.columns + torch.clamp_max(lane - row * self.padded, self.columns - 1)


@dataclass(frozen=True)
class Part:
    """One tensor that a codec stores.

    name: its name, unique in the codec.
    dtype: the type of its entries in memory.
    per: what has one entry: each "element", each "group" of elements, each set of elements with a value in common
        ("shared"), or nothing: a "codebook" has `count` entries for the whole tensor.
    count: entries of a "codebook".
    bits: bits per entry. With 4, a byte holds two entries, the first in its low half; the codec's functions see them
        unpacked.
    """

    name: str
    dtype: torch.dtype
    per: Literal["element", "group", "codebook", "shared"]
    count: int = 0
    bits: int = 8


class Sharing(NamedTuple):
    """A map from elements to shared values: element i (row-major) has value number (i // run) % cycle.

    run: consecutive elements that have one value.
    cycle: number of values.
    """

    run: int
    cycle: int

    def is_of_rows(self, shape: torch.Size) -> bool:
        """Return whether each row of a tensor of `shape` has a value of its own."""
        rows = Rows.of(shape)
        return self == (rows.columns, rows.count)

    def of(self, index: Tensor) -> Tensor:
        """Return the number of the shared value of each element in `index`, which holds row-major indices."""
        return index // max(self.run, 1) % max(self.cycle, 1)


@dataclass(frozen=True)
class Random:
    """Uniform random 32-bit words for stochastic rounding, a pure function of (seed, step, slot, element index).

    element: int32 `[groups, width]`, one word per element.
    group: int32 `[groups, 1]`, one word per group.
    """

    element: Tensor
    group: Tensor


#: Relative error of codecs of 16 bits, at most: what slots are stored with that move by little, such as averages of weights.
FINE = 2.0**-11


@dataclass(frozen=True)
class Slot:
    """One state tensor of the parameter's shape, under the optimizer's own key; or the weight itself.

    key: the state key, or "param" for the weight.
    nonnegative: whether the rule proves that every new value is >= 0.
    why_exact: why the slot must not be stored lossily; empty if it may be.
    why_fine: why codecs whose `relative_error` exceeds `FINE` must not store it; empty if they may.
    follows_weight: whether it begins as a float32 parameter, or is close to it: averages of weights, and weights of before.
    why_not_shared: why its values can't be shared; empty if they may be.
    why_not_dropped: why it can't be dropped; empty if it may be.
    weight_dtype: the parameter's type if this is the weight, else None.
    divided: how several processes hold parts of it: whole "rows", or parts "inside" of rows; empty if each holds all.
    """

    key: str
    nonnegative: bool = False
    why_exact: str = ""
    why_fine: str = ""
    follows_weight: bool = False
    why_not_shared: str = "its update is not known as a rule"
    why_not_dropped: str = "its update is not known as a rule"
    weight_dtype: torch.dtype | None = None
    divided: Literal["", "rows", "inside"] = field(
        default="", repr=False
    )  # a rule is the same on any number of processes


def sign_mismatch(name: str, signed: bool, slot: Slot) -> str:
    """Return why the codec called `name` does not fit the slot's sign; empty if it fits.

    signed: whether the codec stores negative values.

    A codec for signed values has a level at 0, and rounds small values to it. A second moment that reads 0 beside a
    momentum that is not 0 would divide the update by eps alone. So a slot that is >= 0 needs a codec that never rounds
    a positive value to 0.
    """
    if signed and slot.nonnegative:
        return f"{slot.key!r} is never negative, and {name} would round its small values to 0"
    if not signed and not slot.nonnegative:
        return f"the rule does not prove that {slot.key!r} stays >= 0"
    return ""


def weight_slots(parameter: Tensor, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """Return the slot of a bf16 or fp16 weight.

    There is none for other parameters, nor if the optimizer uses the key "param" itself.
    """
    if parameter.dtype not in (torch.bfloat16, torch.float16) or any(s.key == WEIGHT_KEY for s in slots):
        return ()
    return (Slot(WEIGHT_KEY, weight_dtype=parameter.dtype),)


def weight_entry(configuration: Mapping[str, Codec]) -> str | None:
    """Return the key of the weight if its codec stores anything, else None. A state slot called "param" is not the weight."""
    return next((key for key, codec in configuration.items() if codec.mechanism == "weight" and codec.parts), None)


class Codec(ABC):
    """How the values of one slot are stored.

    name: what plans call the codec.
    parts: the tensors that it stores.
    mechanism: "rounding", "sharing", "dropping" or "weight"; see the module.
    relative_error: largest error of storing once, relative to the largest magnitude in the group, or to the value
        itself without groups.
    expected_harm: expected damage to learning before anything is measured, relative to 8 bits, which are 1;
        docs/learning.md gives the order.
    group_size: `GROUP_SIZE`; None for a codec without groups.
    follows_weight: whether it stores the difference to the parameter.
    stochastic: whether it rounds stochastically, and so needs random words and a clock.
    unites_rows: whether its means over some rows and over the others make those over all.

    Shapes: values are float32 `[groups, width]`, where `width` is `GROUP_SIZE`, or any number if `group_size` is None. An
    "element" part has the shape of the values, a "group" part is `[groups, 1]`, a "codebook" part is `[count]`. A
    "shared" part is given spread over the elements. The last group of a row may be short; its missing lanes repeat the
    row's last element, or count for nothing in `amax`.
    """

    name: str
    parts: tuple[Part, ...]
    mechanism: ClassVar[Mechanism] = "rounding"
    relative_error: float
    expected_harm: float = 1.0
    group_size: int | None = None
    follows_weight: bool = False
    stochastic: bool = False
    unites_rows: bool = False

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the float32 values of the parts in `stored`."""

    def encode(self, value: Tensor, random: Random) -> dict[str, Tensor]:
        """Return the "element" and "group" parts of float32 values.

        Only codecs with `stochastic` set read `random`. Codecs with a codebook override `encode_with` instead.
        """
        raise NotImplementedError(f"{self.name} does not store values one by one")

    def encode_with(self, codebooks: Mapping[str, Tensor], value: Tensor, random: Random) -> dict[str, Tensor]:
        """Encode as `encode` does, with the "codebook" parts at hand."""
        return self.encode(value, random)

    def sharing(self, part: Part, shape: torch.Size) -> Sharing:
        """Return which elements of a tensor of `shape` have an entry of a "shared" part in common."""
        raise NotImplementedError(f"{self.name} shares nothing")

    def initial(self, part: Part, shape: torch.Size, device: torch.device) -> Tensor:
        """Return the part of a tensor of zeros."""
        return torch.zeros(self.part_shape(part, shape), dtype=part.dtype, device=device)

    def learn(self, parts: Mapping[str, Tensor], value: Tensor) -> None:  # noqa: B027  (nothing to learn is the rule)
        """Set the "codebook" parts from the first values that the slot stores; most codecs learn nothing."""

    @property
    def inner(self) -> Codec:
        """The codec of what is stored: of the difference, if the codec follows the weight; else itself."""
        return self

    @property
    def stored_parts(self) -> tuple[Part, ...]:
        """The parts that lie in optimizer state. For a weight codec these exclude the first part, the parameter itself."""
        return self.parts

    def part_shape(self, part: Part, shape: torch.Size) -> torch.Size:
        """Return the shape of the part's tensor for a slot of `shape`.

        "element" and "group" parts have the slot's first dimension. Two 4-bit entries of a row count once.
        """
        shape = torch.Size(shape)
        if part.per == "codebook":
            return torch.Size([part.count])
        if part.per == "shared":
            return torch.Size([self.sharing(part, shape).cycle if shape.numel() else 0])
        if part.per == "element" and part.bits == 8:
            return shape
        rows = Rows.of(shape)
        length = rows.groups if part.per == "group" else -(-rows.columns * part.bits // 8)
        return torch.Size([length]) if len(shape) < 2 else torch.Size([rows.count, length])

    def storage_bytes(self, shape: torch.Size) -> int:
        """Return the exact bytes for a slot of `shape`: every part, and the clock of a stochastic codec."""
        parts = sum(self.part_shape(part, shape).numel() * part.dtype.itemsize for part in self.stored_parts)
        return parts + (CLOCK_DTYPE.itemsize if self.stochastic else 0)

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        """Return why this codec may not store `slot` of a tensor of `shape`; empty if it may."""
        if slot.weight_dtype is not None:
            return f"{self.name} stores state, not weights"
        if slot.follows_weight and self.mechanism in ("sharing", "dropping"):
            return f"{slot.key!r} follows the weights, no two of which have a value in common"
        of_all = any(part.per in ("shared", "codebook") for part in self.parts)
        if of_all and slot.divided and not (slot.divided == "rows" and self.unites_rows):
            return f"several processes hold parts of {slot.key!r}, and {self.name} is made of all its elements"
        return slot.why_exact or (slot.why_fine if self.relative_error > FINE else "")

    def __deepcopy__(self, memo: Any) -> Codec:
        return self  # codecs are known by identity

    def __repr__(self) -> str:
        return self.name
