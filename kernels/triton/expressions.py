"""Nodes of a program graph -> Triton expressions."""

from __future__ import annotations

import math

import torch
from torch import fx

from baoc_compile.core.errors import CannotEmit
from baoc_compile.kernels.dialect.nodes import is_constant, meta_of, operand_dtypes, per_of, unwidened
from baoc_compile.kernels.dialect.operations import OPERATIONS, bitcast, name_of
from baoc_compile.kernels.dialect.variables import Names

#: Types in memory. bfloat16 is read as its bits.
MEMORY = {
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.int16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int8",
}
_SMALL = (torch.bfloat16, torch.int16, torch.int8, torch.uint8)
#: Types in computations.
TYPES = MEMORY | dict.fromkeys(_SMALL, "tl.int32") | {torch.bool: "tl.int1"}
_POWERS = {2: "{0} * {0}", 3: "{0} * {0} * {0}", 0.5: "square_root({0})", -1: "divide(1.0, {0})"}


def widened(text: str, dtype: torch.dtype) -> str:
    """Convert a loaded value to its type in computations."""
    if dtype == torch.bool:
        return f"{text} != 0"
    return f"{text}.to({TYPES[dtype]})" if dtype in _SMALL else text


def narrowed(text: str, dtype: torch.dtype) -> str:
    """Convert a computed value to its type in memory."""
    return f"{text}.to({MEMORY[dtype]})" if dtype in (*_SMALL, torch.bool) else text


def expression(node: fx.Node, names: Names) -> str:
    """Return a call's value as an expression of the variables that `names` gives to its operands. Raises CannotEmit."""
    name, dtype = name_of(node.target), meta_of(node).dtype
    if bitcast(node.target):
        source = names(node.args[0])
        if torch.int16 in (dtype, meta_of(node.args[0]).dtype):  # to or from bfloat16; both are int32 here
            return source
        return f"{source}.to({TYPES[dtype]}, bitcast=True)"
    if name == "amax":
        return f"group_max({names(node.args[0])}, mask, FULL)"
    if name == "take":
        return _take(node.args[0], unwidened(node.args[1]), names)
    if name == "_to_copy":
        return converted(names(node.args[0]), meta_of(node.args[0]).dtype, dtype)
    if name == "pow" and node.args[1] in _POWERS:
        return _POWERS[node.args[1]].format(argument(node.args[0], dtype, names))
    template = OPERATIONS[name].triton
    if template is None:
        raise CannotEmit(f"{name} has no equivalent in Triton")
    texts = [argument(a, t, names) for a, t in zip(node.args, operand_dtypes(node), strict=True)]
    if dtype == torch.float64 and not any(isinstance(a, fx.Node) for a in node.args[-2:]):
        texts = [texts[0], *(f"tl.full((), {text}, tl.float64)" for text in texts[1:])]
    return template.format(*texts)


def converted(text: str, source: torch.dtype, target: torch.dtype) -> str:
    if source == target:
        return text
    if source == torch.bfloat16:
        text = f"bfloat16_to_float({text})"
        return text if target == torch.float32 else f"{text}.to({TYPES[target]})"
    if target == torch.bfloat16:
        return f"float_to_bfloat16({text if source == torch.float32 else f'{text}.to(tl.float32)'})"
    if target == torch.float16 and source == torch.float64:  # rounded twice, as torch and C++ do
        return f"{text}.to(tl.float32).to(tl.float16)"
    return text if TYPES[source] == TYPES[target] else f"{text}.to({TYPES[target]})"


def argument(value: object, dtype: torch.dtype, names: Names) -> str:
    """Return an operand, converted to the type that the operation computes in."""
    if isinstance(value, fx.Node) and is_constant(value):
        value = value.args[0]
    if isinstance(value, fx.Node):
        return converted(names(value), meta_of(value).dtype, dtype)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return f"({value!r})" if isinstance(value, (int, float)) and value < 0 else repr(value)


def _take(codebook: fx.Node, index: fx.Node, names: Names) -> str:
    """Return codebook entries. Entries of a computed codebook are computed at each lookup, from the stored one."""
    if codebook.op == "placeholder":
        return widened(f"tl.load({names(codebook, 'ptr')} + {names(index)})", meta_of(codebook).dtype)

    def entry(node: fx.Node, role: str = "") -> str:
        return _take(node, index, names) if per_of(node) == "codebook" else names(node, role)

    return f"({expression(codebook, entry)})"
