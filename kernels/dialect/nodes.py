"""What the value of a node stands for, in the graphs of codecs, rules and programs, and predicates on nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from baoc_compile.kernels.dialect.operations import OPERATIONS, name_of

_KEY = "baoc_value"

#: Number of entries of a codebook that C++ looks up by selections instead of gathers.
FEW = 16


@dataclass(frozen=True)
class CodecCall:
    """An inlined call of a codec's function.

    codec: the codec's name.
    verb: "decode", "encode" or "words".
    slot: the slot's key.
    """

    codec: str
    verb: str
    slot: str


@dataclass(frozen=True)
class ValueMeta:
    """What a node's value stands for.

    per: "element", "group" or "scalar": one value per element, group or tensor. "codebook": values that the whole
        tensor shares.
    dtype: type of the value.
    count: entries of a codebook.
    call: the codec call that the node is part of.
    """

    per: Literal["element", "group", "scalar", "codebook"]
    dtype: torch.dtype
    count: int = 0
    call: CodecCall | None = None


def meta_of(node: fx.Node) -> ValueMeta:
    return node.meta[_KEY]


def has_meta(node: fx.Node) -> bool:
    return _KEY in node.meta


def set_meta(node: fx.Node, meta: ValueMeta) -> fx.Node:
    """Replace all of the node's metadata by `meta`. Return the node."""
    node.meta = {_KEY: meta}
    return node


def per_of(node: fx.Node) -> str:
    """Return `ValueMeta.per`; "output" for the output node."""
    return "output" if node.op == "output" else meta_of(node).per


def is_in_lanes(node: fx.Node) -> bool:
    """Tell whether a node is computed in parallel, for elements or groups, not once per tensor."""
    return per_of(node) in ("element", "group")


def is_constant(node: fx.Node) -> bool:
    return node.op == "call_function" and name_of(node.target) == "scalar_tensor"


def is_truth(node: fx.Node) -> bool:
    return meta_of(node).dtype == torch.bool


def is_small(codebook: fx.Node) -> bool:
    """Tell whether a codebook is a computed one of `FEW` entries."""
    return meta_of(codebook).count == FEW


def is_taken_from(codebook: fx.Node) -> bool:
    """Tell whether any node looks values up in the codebook."""
    return any(user.op == "call_function" and name_of(user.target) == "take" for user in codebook.users)


def reduces(node: fx.Node) -> bool:
    """Tell whether the node is the maximum of a group."""
    return node.op == "call_function" and name_of(node.target) == "amax"


def operand_dtypes(node: fx.Node) -> list[torch.dtype]:
    """Return, for each argument of a call, the type that it is converted to."""
    operation, dtype = OPERATIONS[name_of(node.target)], meta_of(node).dtype
    if operation.name == "where":
        return [torch.bool, dtype, dtype]
    return [_compared(node) if operation.is_predicate else dtype] * len(node.args)


def _compared(node: fx.Node) -> torch.dtype:
    """Return the type in which a comparison compares: the widest of its tensors, to which numbers and scalars adapt."""
    nodes = [a for a in node.args if isinstance(a, fx.Node)]
    tensors = [a for a in nodes if per_of(a) != "scalar"] or nodes
    dtype = meta_of(tensors[0]).dtype
    for other in tensors[1:]:
        dtype = torch.promote_types(dtype, meta_of(other).dtype)
    return dtype


def unwidened(index: fx.Node) -> fx.Node:
    """Return a `take` index before it was widened to the 64 bits that torch requires: gathers are faster with it."""
    source = index.args[0] if name_of(index.target) == "_to_copy" else index
    assert isinstance(source, fx.Node)
    return source


def logical_shift(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return x and k if the node is (x >> k) with the sign bits masked away, in int32; torch has no such shift of int32."""
    if node.op != "call_function" or name_of(node.target) != "bitwise_and" or meta_of(node).dtype != torch.int32:
        return None
    shifted, mask = node.args[0], node.args[1]
    if not isinstance(shifted, fx.Node) or shifted.op != "call_function" or isinstance(mask, fx.Node):
        return None
    if name_of(shifted.target) != "bitwise_right_shift":
        return None
    source, bits = shifted.args[0], shifted.args[1]
    if not isinstance(source, fx.Node) or not isinstance(bits, int) or not 0 < bits < 32:
        return None
    return (source, bits) if mask == (1 << (32 - bits)) - 1 else None
