"""What the value of a node stands for, in the graphs of codecs, rules and programs, and what nodes are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from baoc_compile.kernels.dialect.operations import OPERATIONS, name_of

_KEY = "baoc_value"

#: Codebooks of so many entries are looked up by selections rather than gathers in C++.
FEW = 16


@dataclass(frozen=True)
class CodecCall:
    """A call of a codec's function that was inlined: the codec's name, "decode", "encode" or "words", and the slot's key."""

    codec: str
    verb: str
    slot: str


@dataclass(frozen=True)
class ValueMeta:
    """What a node's value stands for.

    per: one value for each "element", for each "group" of elements, for the whole tensor ("scalar"), or a "codebook" that
        the whole tensor shares.
    dtype: of the value.
    group_size: elements to a group, of values per group; 0 for the largest.
    width: elements to a row of values per element that are seen as groups; 0 for the program's.
    count: entries of a codebook.
    call: the codec's function that the node is part of.
    """

    per: Literal["element", "group", "scalar", "codebook"]
    dtype: torch.dtype
    group_size: int = 0
    width: int = 0
    count: int = 0
    call: CodecCall | None = None


def meta_of(node: fx.Node) -> ValueMeta:
    return node.meta[_KEY]


def has_meta(node: fx.Node) -> bool:
    return _KEY in node.meta


def set_meta(node: fx.Node, meta: ValueMeta) -> fx.Node:
    """Makes this all that the node tells. Returns the node."""
    node.meta = {_KEY: meta}
    return node


def per_of(node: fx.Node) -> str:
    """`ValueMeta.per`; "output" for the node that returns."""
    return "output" if node.op == "output" else meta_of(node).per


def is_in_lanes(node: fx.Node) -> bool:
    """Is it computed for elements or groups, in parallel, rather than once for a tensor?"""
    return per_of(node) in ("element", "group")


def is_constant(node: fx.Node) -> bool:
    return node.op == "call_function" and name_of(node.target) == "scalar_tensor"


def is_truth(node: fx.Node) -> bool:
    return meta_of(node).dtype == torch.bool


def is_small(codebook: fx.Node) -> bool:
    """Is it a computed codebook of `FEW` entries?"""
    return meta_of(codebook).count == FEW


def is_taken_from(codebook: fx.Node) -> bool:
    """Does a node look values up in it?"""
    return any(user.op == "call_function" and name_of(user.target) == "take" for user in codebook.users)


def reduces(node: fx.Node) -> bool:
    """Is it the maximum of a group?"""
    return node.op == "call_function" and name_of(node.target) == "amax"


def operand_dtypes(node: fx.Node) -> list[torch.dtype]:
    """What the operands of a call are converted to: for each of its arguments a type."""
    operation, dtype = OPERATIONS[name_of(node.target)], meta_of(node).dtype
    if operation.name == "where":
        return [torch.bool, dtype, dtype]
    return [_compared(node) if operation.is_predicate else dtype] * len(node.args)


def _compared(node: fx.Node) -> torch.dtype:
    """What a comparison compares in: the widest type of its tensors, numbers and scalars adapting to them."""
    nodes = [a for a in node.args if isinstance(a, fx.Node)]
    tensors = [a for a in nodes if per_of(a) != "scalar"] or nodes
    dtype = meta_of(tensors[0]).dtype
    for other in tensors[1:]:
        dtype = torch.promote_types(dtype, meta_of(other).dtype)
    return dtype


def unwidened(index: fx.Node) -> fx.Node:
    """What an index of `take` was before it was widened to torch's 64 bits: gathers are faster with it."""
    source = index.args[0] if name_of(index.target) == "_to_copy" else index
    assert isinstance(source, fx.Node)
    return source
