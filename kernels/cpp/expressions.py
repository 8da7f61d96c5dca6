"""Nodes of a program graph -> C++ expressions."""

from __future__ import annotations

import math

import torch
from torch import fx

from baoc_compile.kernels.dialect.nodes import is_constant, is_small, logical_shift, meta_of, operand_dtypes, unwidened
from baoc_compile.kernels.dialect.operations import OPERATIONS, bitcast, name_of
from baoc_compile.kernels.dialect.variables import Names

#: Types in memory.
MEMORY = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "uint16_t",
    torch.float16: "fp16",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
#: Types in computations. Small types take 32 bits, so that vectors of all types have the same number of lanes.
TYPES = MEMORY | {torch.bfloat16: "bf16"} | dict.fromkeys((torch.int16, torch.int8, torch.uint8), "int32_t")
#: Types of the lanes of a tile in memory or in arrays. Bytes are widened beforehand: in a loop over bytes and floats, g++ takes
#: 64 lanes at a time, which are more than a group has.
LANES = MEMORY | dict.fromkeys((torch.int8, torch.uint8), "int32_t")
_POWERS = {2: "({0} * {0})", 3: "({0} * {0} * {0})", 0.5: "__builtin_sqrt{f}({0})", -1: "({t}(1) / {0})"}


def type_of(node: fx.Node) -> str:
    return TYPES[meta_of(node).dtype]


def expression(node: fx.Node, names: Names) -> str:
    """Return a call's value as an expression of the variables that `names` gives to its operands."""
    name, dtype = name_of(node.target), meta_of(node).dtype
    result = TYPES[dtype]
    if bitcast(node.target):
        source = node.args[0]
        if torch.int16 in (dtype, meta_of(source).dtype):  # to or from bf16; both take 32 bits here
            return f"{result}({names(source)})"
        return f"bits_as<{result}>({names(source)})"
    if name == "take":
        return _take(node.args[0], unwidened(node.args[1]), names)
    if name == "_to_copy":
        return f"cast<{result}>({_cast_input(names(node.args[0]), result)})"
    shifted = logical_shift(node)
    if shifted is not None:
        return f"int32_t(uint32_t({argument(shifted[0], dtype, names)}) >> {shifted[1]})"
    if name == "pow" and node.args[1] in _POWERS:
        base = argument(node.args[0], dtype, names)
        return _POWERS[node.args[1]].format(base, t=result, f=_suffix(dtype))
    types = operand_dtypes(node)
    texts = [argument(a, t, names) for a, t in zip(node.args, types, strict=True)]
    return OPERATIONS[name].cpp.format(*texts, t=result, o=TYPES[types[0]], f=_suffix(dtype))


def argument(value: object, dtype: torch.dtype, names: Names) -> str:
    """Return an operand, converted to the type that the operation computes in."""
    ctype = TYPES[dtype]
    if isinstance(value, fx.Node) and is_constant(value):
        value = value.args[0]
    if isinstance(value, fx.Node):
        return names(value) if type_of(value) == ctype else f"cast<{ctype}>({names(value)})"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return f'{ctype}(__builtin_nan(""))'
    if isinstance(value, float) and math.isinf(value):
        return f"{ctype}({'-' * (value < 0)}__builtin_inf())"
    return f"{ctype}({value!r})"


def _take(codebook: fx.Node, index: fx.Node, names: Names) -> str:
    """Return a codebook entry. A codebook has an array of its own; a small one has an `Entries` object, too."""
    if is_small(codebook):
        return f"{names(codebook, 'entries')}.at({names(index)})"
    return f"{names(codebook, 'codebook')}[{names(index)}]"


def _cast_input(text: str, result: str) -> str:
    """Convert to float first for bf16 and fp16, as torch does."""
    return f"float({text})" if result in ("bf16", "fp16") else text


def _suffix(dtype: torch.dtype) -> str:
    return "f" if dtype == torch.float32 else ""
