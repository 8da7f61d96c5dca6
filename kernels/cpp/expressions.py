"""Nodes of a program graph -> C++ expressions."""

from __future__ import annotations

import math

import torch
from torch import fx

from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.cpp.text import MEMORY, TYPES
from baoc_compile.kernels.dialect.nodes import compared_dtype, is_constant, is_small, meta_of, unwidened
from baoc_compile.kernels.dialect.operations import CPP, PREDICATES, bitcast, name_of

#: Elements that are loaded, computed and stored together: enough for full vectors of group values, too.
BLOCK = 512


class CppExpressions:
    """`pointers`, `numbers`: the operands in the order `run` expects them.

    Expressions stand in lane j, group i of a block, over the variables that the emitter declares.
    """

    def __init__(self, graph: ProgramGraph):
        self.width = graph.width * max(1, BLOCK // graph.width)
        self.operand = {o.name: o for o in graph.operands}
        self.pointers, self.numbers = graph.pointers, graph.numbers

    def pointer(self, operand: Operand) -> int:
        return self.pointers.index(operand)

    @staticmethod
    def ctype(node: fx.Node) -> str:
        return TYPES[meta_of(node).dtype]

    def value(self, node: fx.Node) -> str:
        return self._placeholder(node) if node.op == "placeholder" else self._call(node)

    def _placeholder(self, node: fx.Node) -> str:
        operand = self.operand[node.target]
        if operand.source == "index":
            return "(low + j) ^ page"
        if operand.source == "group_index":
            return f"(low + i * {operand.group_size}) ^ page"
        if operand in self.numbers:
            return f"{self.ctype(node)}(numbers[{self.numbers.index(operand)}])"
        if operand.per == "scalar":
            return f"{self.ctype(node)}(*{self.data(operand)})"
        return f"{operand.name}_of[i]" if operand.per == "group" else f"{operand.name}_lanes[j]"

    def data(self, operand: Operand) -> str:
        """The operand's tensor, as a typed pointer."""
        return f"static_cast<{MEMORY[operand.dtype]}*>(at[{self.pointer(operand)}])"

    def _call(self, node: fx.Node) -> str:
        name, result = name_of(node.target), self.ctype(node)
        if bitcast(node.target):
            source = node.args[0]
            if torch.int16 in (meta_of(node).dtype, meta_of(source).dtype):  # to or from bf16, both 32 bits here
                return f"{result}({source.name})"
            return f"bits_as<{result}>({source.name})"
        if name == "view":
            return str(node.args[0])
        if name == "take":
            table, index = node.args[0], unwidened(node.args[1])
            return f"{table.name}_entries.at({index.name})" if is_small(table) else f"{table.name}_table[{index.name}]"
        if name == "_to_copy":
            return f"cast<{result}>({self._cast_input(node.args[0], result)})"
        operand_type = TYPES[compared_dtype(node)] if name in PREDICATES else result
        if name == "rsub":
            return f"({self.operand_text(node.args[1], result)} - {self.operand_text(node.args[0], result)})"
        suffix = "f" if result == "float" else ""
        if name == "pow" and node.args[1] in (2, 3, 0.5, -1):
            base = self.operand_text(node.args[0], result)
            return {
                2: f"({base} * {base})",
                3: f"({base} * {base} * {base})",
                0.5: f"__builtin_sqrt{suffix}({base})",
                -1: f"({result}(1) / {base})",
            }[node.args[1]]
        types = [operand_type] * len(node.args)
        if name == "where":
            types = ["bool", result, result]
        texts = [self.operand_text(a, t) for a, t in zip(node.args, types, strict=True)]
        return CPP[name].format(*texts, t=result, o=operand_type, f=suffix)

    @staticmethod
    def _cast_input(source: fx.Node, result: str) -> str:
        """bf16 and fp16 convert from float, as torch does."""
        return f"float({source.name})" if result in ("bf16", "fp16") else source.name

    @staticmethod
    def operand_text(argument: object, ctype: str) -> str:
        if isinstance(argument, fx.Node) and is_constant(argument):
            argument = argument.args[0]
        if isinstance(argument, fx.Node):
            return argument.name if TYPES[meta_of(argument).dtype] == ctype else f"cast<{ctype}>({argument.name})"
        if isinstance(argument, bool) or not isinstance(argument, (int, float)):
            return str(argument).lower()
        if isinstance(argument, float) and not math.isfinite(argument):
            return (
                f'{ctype}(__builtin_nan(""))'
                if math.isnan(argument)
                else f"{ctype}({'-' * (argument < 0)}__builtin_inf())"
            )
        return f"{ctype}({argument!r})"
