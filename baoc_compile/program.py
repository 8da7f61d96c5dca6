"""The program: one rule under one configuration, as a graph over stored operands and as an executable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, fx

from baoc_compile.codec import Codec
from baoc_compile.rule import UpdateRule

Kind = Literal["element", "group", "scalar"]
OperandSource = Literal["param", "grad", "part", "clock", "salt", "counter", "scalar", "index", "group_index"]


@dataclass(frozen=True)
class Operand:
    """One placeholder of a program's graph.

    `source` and `key` say where it comes from: a part of a slot's storage (`key` = "slot.part"), a slot's clock or
    salt, a counter, a scalar of the rule, or the element index itself. "index" and "group_index" are the folded
    32-bit index of an element and of a group's first element.
    """

    name: str
    kind: Kind
    dtype: torch.dtype
    source: OperandSource
    key: str = ""
    written: bool = False
    read: bool = True

    @property
    def in_memory(self) -> bool:
        """Is it a tensor, as opposed to a number handed to the program?"""
        return self.source in ("param", "grad", "part", "clock", "counter")


@dataclass(frozen=True)
class Signature:
    """What a program is specialized on, besides rule and configuration."""

    device: str
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    counter_dtypes: tuple[torch.dtype, ...] = ()

    @property
    def compute_dtype(self) -> torch.dtype:
        """float64 for float64 parameters, float32 for all others."""
        return torch.float64 if self.param_dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class ProgramGraph:
    """decode -> rule -> encode as one graph over groups of `width` elements.

    `gm` takes the operands in order and returns the new values of the written ones, in `outputs` order. Nodes carry
    `meta["kind"]` and `meta["dtype"]`.
    """

    rule: UpdateRule
    configuration: Mapping[str, Codec]
    signature: Signature
    gm: fx.GraphModule
    operands: tuple[Operand, ...]
    outputs: tuple[str, ...]
    width: int

    @property
    def title(self) -> str:
        stored = ", ".join(f"{key}: {codec.name}" for key, codec in self.configuration.items()) or "no state"
        return f"rule {self.rule.key} ({stored}; param {str(self.signature.param_dtype).removeprefix('torch.')})"


@dataclass
class TensorArguments:
    """One parameter's operands: tensors by operand name, and the numbers of the rule's scalars and the salts."""

    numel: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]


class Executable(Protocol):
    """Runs a program in place over any number of tensors, in bounded memory."""

    source: str

    def __call__(self, batch: list[TensorArguments]) -> None: ...
