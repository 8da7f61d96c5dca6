"""Program: one rule under one configuration, as a graph over stored operands and as an executable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import Codec, Part, Rows, Sharing
from baoc_compile.core.rule import RuleInput, UpdateRule

OperandPer = Literal["element", "group", "scalar", "codebook", "shared"]
OperandSource = Literal[
    "param",
    "grad",
    "part",
    "clock",
    "salt",
    "counter",
    "lines",
    "scalar",
    "reduced",
    "exported",
    "index",
    "group_index",
]


@dataclass(frozen=True)
class Operand:
    """One placeholder of a program's graph.

    name: an identifier, unique in the program. The rule's inputs keep their names.
    per: what has one value: each "element", each "group", each set of elements that share a value ("shared"), the whole
        launch or tensor ("scalar"), or each entry of a "codebook". A "shared" operand is read spread over the elements;
        one that is written is folded.
    dtype: the type in memory.
    source: where the value comes from, or goes: the parameter ("param"), the gradient ("grad"), a part of a slot's storage
        ("part"), a slot's "clock" or "salt", a "counter", "lines", "scalar" or "reduced" input of the rule, a number that it has
        "exported", or the lane's number. "index" and "group_index" are the folded 32-bit
        number of an element's lane and of a group's first lane (see `Rows`).
    slot: key of the slot, for parts, clocks and salts.
    part: part of the slot's codec, for parts.
    input: input of the rule, for counters, lines, scalars and what is reduced.
    written: whether the program writes it.
    read: whether the program reads it.
    fold: how the new values of elements make a stored one: "average" is decay * stored + mean; "mean"; "most" is the maximum.
        Empty unless it is written and "shared".
    """

    name: str
    per: OperandPer
    dtype: torch.dtype
    source: OperandSource
    slot: str = ""
    part: Part | None = None
    input: RuleInput | None = None
    written: bool = False
    read: bool = True
    fold: Literal["average", "mean", "most", ""] = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Its source, its owner (a slot or a rule's input) and its part. Equal in all programs of a step."""
        of = self.input.name if self.input else self.slot
        return self.source, of, self.part.name if self.part else ""

    @property
    def bits(self) -> int:
        """Bits per entry; with 4, a byte holds two entries."""
        return self.part.bits if self.part else 8

    @property
    def in_memory(self) -> bool:
        """Whether it is a tensor, as opposed to a number handed to the program."""
        return self.source in ("param", "grad", "part", "clock", "counter", "lines", "reduced", "exported")


@dataclass(frozen=True)
class Signature:
    """What a program is specialized on besides rule and configuration.

    device: device of one launch, such as "cpu" or "cuda:0".
    param_dtype: type of the parameters.
    grad_dtype: type of the gradients.
    counter_dtypes: (name of the rule's input, type) of every counter, and of lines.
    """

    device: str
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    counter_dtypes: tuple[tuple[str, torch.dtype], ...] = ()

    @property
    def device_type(self) -> str:
        """The device without its number, such as "cuda"."""
        return torch.device(self.device).type

    @property
    def compute_dtype(self) -> torch.dtype:
        """float64 for float64 parameters, float32 for all others."""
        return torch.float64 if self.param_dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class ProgramGraph:
    """Decode, rule and encode as one graph over groups of `GROUP_SIZE` elements.

    rule: the update rule.
    configuration: slot key -> codec.
    signature: what else the program is specialized on.
    graph: takes the operands in order. Returns the new values of `outputs`, in their order, followed by the decays.
    operands: the placeholders, in order.
    outputs: names of the operands that are written.
    decays: written "shared" operand -> position of its decay, counted behind `outputs`.

    Each node carries a `ValueMeta`, which says what its value stands for; see `kernels/dialect/nodes.py`.
    """

    rule: UpdateRule
    configuration: Mapping[str, Codec]
    signature: Signature
    graph: fx.Graph
    operands: tuple[Operand, ...]
    outputs: tuple[str, ...]
    decays: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def gm(self) -> fx.GraphModule:
        """The graph as a module, to look at or to run. It is made on demand: torch takes long to write its code."""
        return fx.GraphModule(torch.nn.Module(), self.graph)

    @property
    def shared(self) -> tuple[Operand, ...]:
        """The "shared" operands."""
        return tuple(o for o in self.operands if o.per == "shared")

    @property
    def pointers(self) -> tuple[Operand, ...]:
        """The operands that a compiled program receives as addresses, in its order."""
        return tuple(o for o in self.operands if o.in_memory)

    @property
    def numbers(self) -> tuple[Operand, ...]:
        """The operands that a compiled program receives as numbers, in its order."""
        return tuple(o for o in self.operands if o.source in ("scalar", "salt"))

    @property
    def has_groups(self) -> bool:
        """Whether anything in it depends on how elements form groups. If not, rows need no padding."""
        return any(o.per == "group" or o.source == "index" for o in self.operands)

    @property
    def folds(self) -> bool:
        """Whether the program computes shared or reduced values rather than a step."""
        return any(o.fold for o in self.operands)

    @property
    def exports(self) -> bool:
        """Whether the program computes numbers for the prelude and for other parameters."""
        return any(o.source == "exported" for o in self.operands)

    @property
    def title(self) -> str:
        """Rule, storage and parameter type as one line."""
        stored = ", ".join(f"{key}: {codec.name}" for key, codec in self.configuration.items()) or "no state"
        kinds = {"averages for rule": self.decays, "reductions for rule": self.folds, "exports of rule": self.exports}
        verb = next((kind for kind, is_so in kinds.items() if is_so), "rule")
        return f"{verb} {self.rule.key} ({stored}; param {str(self.signature.param_dtype).removeprefix('torch.')})"


@dataclass
class TensorArguments:
    """The operands of one parameter.

    numel: elements of the parameter, or of its shard.
    tensors: operand name -> tensor.
    numbers: operand name -> number: the rule's scalars, the salts, the update scale.
    sharing: "shared" operand -> which elements have values in common.
    first_index: global number of the first lane, if this is a shard.
    rows: the parameter's rows, or the shard's; None if they need no padding.
    """

    numel: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    sharing: dict[str, Sharing] = field(default_factory=dict)
    first_index: int = 0
    rows: Rows | None = None

    @property
    def lanes(self) -> int:
        """Elements, and what pads their rows."""
        return self.numel if self.rows is None else self.rows.lane_count


class Table(Protocol):
    """A batch of tensors as a compiled program takes it; built once for a launch."""

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        """Take the step's gradients and changing numbers, and read all addresses anew. Return whether one changed."""
        ...


class Executable(Protocol):
    """A program that runs in place over any number of tensors, in bounded memory.

    source: its source text.

    `varying[i]` of `table` maps an operand name to the position of tensor i's number among the changing numbers.
    """

    source: str

    def table(self, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()) -> Any: ...

    def run(self, table: Any) -> None: ...

    def __call__(self, batch: list[TensorArguments]) -> None: ...
