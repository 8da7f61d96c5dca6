"""The program: one rule under one configuration, as a graph over stored operands and as an executable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import Codec, Part, Sharing
from baoc_compile.core.rule import RuleInput, UpdateRule

OperandPer = Literal["element", "group", "scalar", "codebook", "shared"]
OperandSource = Literal[
    "param", "grad", "part", "clock", "salt", "counter", "scalar", "update_scale", "index", "group_index"
]


@dataclass(frozen=True)
class Operand:
    """One placeholder of a program's graph.

    name: an identifier, unique in the program. The rule's inputs keep theirs.
    per: what there is one value for. A "shared" operand is read spread over the elements; one that is written is
        averaged: stored = decay * stored + mean of the new values.
    source: where it comes from: the parameter, the gradient, a part of a slot's storage, a slot's clock or salt, a counter
        or a scalar of the rule, the parameter's update scale, or the element index itself. "index" and "group_index" are
        the folded 32-bit index of an element and of a group's first element.
    slot: the key of the slot, for parts, clocks and salts.
    part: the part of the slot's codec, for parts.
    input: the rule's input, for counters and scalars.
    group_size: elements to a group, for "group" operands.
    """

    name: str
    per: OperandPer
    dtype: torch.dtype
    source: OperandSource
    slot: str = ""
    part: Part | None = None
    input: RuleInput | None = None
    group_size: int = 0
    written: bool = False
    read: bool = True

    @property
    def place(self) -> tuple[str, str, str]:
        """Its source, what of (a slot, a rule's input, a group size), and the part: the same in all programs of a step."""
        of = self.input.name if self.input else str(self.group_size) if self.source == "group_index" else self.slot
        return self.source, of, self.part.name if self.part else ""

    @property
    def bits(self) -> int:
        """4: two elements to a byte."""
        return self.part.bits if self.part else 8

    @property
    def in_memory(self) -> bool:
        """Is it a tensor, as opposed to a number handed to the program?"""
        return self.source in ("param", "grad", "part", "clock", "counter")


@dataclass(frozen=True)
class Signature:
    """What a program is specialized on, besides rule and configuration. `device`: of one launch, such as "cpu" or "cuda:0".
    `counter_dtypes`: by the rule's input name."""

    device: str
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    counter_dtypes: tuple[tuple[str, torch.dtype], ...] = ()
    has_update_scale: bool = False

    @property
    def device_type(self) -> str:
        return torch.device(self.device).type

    @property
    def compute_dtype(self) -> torch.dtype:
        """float64 for float64 parameters, float32 for all others."""
        return torch.float64 if self.param_dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class ProgramGraph:
    """decode -> rule -> encode as one graph over groups of `width` elements.

    `graph` takes the operands in order and returns the new values of the written ones, in `outputs` order, followed by
    the values of `decays`: written "shared" operand -> position of its decay behind `outputs`. What the value of a node
    stands for is its `ValueMeta`; see `kernels/dialect/nodes.py`.
    """

    rule: UpdateRule
    configuration: Mapping[str, Codec]
    signature: Signature
    graph: fx.Graph
    operands: tuple[Operand, ...]
    outputs: tuple[str, ...]
    width: int
    decays: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def gm(self) -> fx.GraphModule:
        """The graph as a module, to look at or to run: torch takes long to write its code."""
        return fx.GraphModule(torch.nn.Module(), self.graph)

    @property
    def shared(self) -> tuple[Operand, ...]:
        return tuple(o for o in self.operands if o.per == "shared")

    @property
    def pointers(self) -> tuple[Operand, ...]:
        """The operands that a compiled program is given as addresses, in its order."""
        return tuple(o for o in self.operands if o.in_memory)

    @property
    def numbers(self) -> tuple[Operand, ...]:
        """The operands that a compiled program is given as numbers, in its order."""
        return tuple(o for o in self.operands if o.source in ("scalar", "salt", "update_scale"))

    @property
    def averages(self) -> bool:
        """Does it compute shared values rather than a step?"""
        return bool(self.decays)

    @property
    def title(self) -> str:
        stored = ", ".join(f"{key}: {codec.name}" for key, codec in self.configuration.items()) or "no state"
        verb = "averages for rule" if self.averages else "rule"
        update_scale = ", update_scale" if self.signature.has_update_scale else ""
        return f"{verb} {self.rule.key} ({stored}; param {str(self.signature.param_dtype).removeprefix('torch.')}{update_scale})"


@dataclass
class TensorArguments:
    """One parameter's operands: tensors by operand name, and the numbers of the rule's scalars and the salts.

    `sharing`: of the "shared" operands. `first_index`: global index of the first element, if this is a shard.
    """

    numel: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    sharing: dict[str, Sharing] = field(default_factory=dict)
    first_index: int = 0


class Table(Protocol):
    """A batch of tensors as a compiled program takes it; built once for a launch."""

    def refresh(self, grads: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        """Takes a step's gradients and changing numbers, and what else has moved in memory."""
        ...


class Executable(Protocol):
    """Runs a program in place over any number of tensors, in bounded memory.

    `varying[i]` of a table: operand name -> which of the changing numbers is that number of tensor i.
    """

    source: str

    def table(self, batch: list[TensorArguments], varying: Sequence[dict[str, int]] = ()) -> Any: ...

    def run(self, table: Any) -> None: ...

    def __call__(self, batch: list[TensorArguments]) -> None: ...
