"""Program graph -> C++: one function that steps any number of tensors, threaded, vectorizable, in place.

A block is one group of `width` elements. Its loads come first, then one loop over the lanes for each stage (a stage
ends where a reduction of the whole group is needed), then its stores. Scalars are computed once per tensor in double
precision before the parallel part. Tensors that are not contiguous are gathered into and scattered from a buffer of
one block.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from baoc_compile.kernels.cpp_text import DRIVER, PRELUDE, TYPES
from baoc_compile.kernels.dialect import CPP, PREDICATES, bitcast, name_of
from torch import fx

from baoc_compile.program import Operand, ProgramGraph


class CppEmitter:
    """`.source` is the C++ text. `pointers`, `numbers` are the operands in the order `run` expects them."""

    def __init__(self, graph: ProgramGraph):
        self.graph = graph
        self.pointers = [o for o in graph.operands if o.in_memory]
        self.numbers = [o for o in graph.operands if o.source in ("scalar", "salt")]
        self.nodes = [n for n in graph.gm.graph.nodes if n.op != "output"]
        (returned,) = graph.gm.graph.output_node().args
        self.new_value = dict(zip(graph.outputs, returned, strict=True))
        self.operand = {o.name: o for o in graph.operands}
        self.stage = self._stages()
        self.derived = [
            n
            for n in self.nodes
            if self._kind(n) == "scalar"
            and not _is_constant(n)
            and any(self._kind(u) in ("element", "group") for u in n.users)
        ] + [n for n in self._scalar_outputs_for_elements() if self._kind(n) == "scalar"]
        self.source = self._emit()

    # analysis

    @staticmethod
    def _kind(node: fx.Node) -> str:
        return "output" if node.op == "output" else node.meta["kind"]

    def _scalar_outputs_for_elements(self) -> list[fx.Node]:
        found = [v for name, v in self.new_value.items() if self.operand[name].kind != "scalar"]
        return [
            v
            for v in dict.fromkeys(found)
            if not _is_constant(v) and not any(self._kind(u) in ("element", "group") for u in v.users)
        ]

    def _stages(self) -> dict[fx.Node, int]:
        """The number of group reductions that must be finished before a node can be computed."""
        stage: dict[fx.Node, int] = {}
        for node in self.nodes:
            inputs = [stage[i] for i in node.all_input_nodes if self._kind(i) != "scalar"]
            reduces = node.op == "call_function" and name_of(node.target) == "amax"
            stage[node] = max(inputs, default=0) + (1 if reduces else 0)
        return stage

    # text

    def _emit(self) -> str:
        title = f"// {self.graph.title}\n"
        sizes = {
            "pointers": len(self.pointers),
            "numbers": max(1, len(self.numbers)),
            "derived": max(1, len(self.derived)),
        }
        return title + PRELUDE + self._scalars() + self._elements() + DRIVER.format(**sizes)

    def _scalars(self) -> str:
        lines = []
        for node in self.nodes:
            if self._kind(node) == "scalar" and not _is_constant(node):
                lines.append(f"  const {self._ctype(node)} {node.name} = {self._value(node)};")
        for name, value in self.new_value.items():
            operand = self.operand[name]
            if operand.kind == "scalar":
                ctype = TYPES[operand.dtype]
                lines.append(
                    f"  *static_cast<{ctype}*>(at[{self._pointer(operand)}]) = {self._operand_text(value, ctype)};"
                )
        lines += [f"  derived[{i}] = double({node.name});" for i, node in enumerate(self.derived)]
        body = "\n".join(lines)
        return f"\nstatic void scalars(void* const* at, const double* numbers, double* derived) {{\n{body}\n}}\n"

    def _elements(self) -> str:
        width = self.graph.width
        memory = [o for o in self.pointers if o.kind == "element"]
        groups = [o for o in self.pointers if o.kind == "group"]
        out = [
            "",
            "static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,",
            "                     int64_t first, int64_t last) {",
            f"  constexpr int width = {width};",
        ]
        out += [
            f"  const {self._ctype(n)} {n.name} = {self._ctype(n)}(derived[{i}]);" for i, n in enumerate(self.derived)
        ]
        out += [
            "  for (int64_t block = first; block < last; ++block) {",
            "    const int64_t start = block * width;",
            "    const int count = int(std::min<int64_t>(width, numel - start));",
        ]
        if any(o.source in ("index", "group_index") for o in self.graph.operands):
            out += [
                "    const int32_t low = int32_t(uint32_t(start)), page = int32_t(start >> 32) * int32_t(0x85EBCA6B);",
                "    const int last_lane = count - 1;",
            ]
        for o in memory:
            ctype, k = TYPES[o.dtype], self._pointer(o)
            call = "load" if o.read else "destination"
            out.append(f"    {ctype} {o.name}_buffer[width];")
            out.append(
                f"    {ctype}* const {o.name}_lanes = {call}({o.name}_buffer, at[{k}], layouts[{k}], start, count, width);"
            )
        for o in groups:
            if o.read:
                ctype = TYPES[o.dtype]
                out.append(f"    const {ctype} {o.name} = static_cast<const {ctype}*>(at[{self._pointer(o)}])[block];")
        out += self._stage_lines()
        for o in groups:
            if o.written:
                ctype, value = TYPES[o.dtype], self.new_value[o.name]
                out.append(f"    static_cast<{ctype}*>(at[{self._pointer(o)}])[block] = {value.name};")
        for o in memory:
            if o.written:
                k = self._pointer(o)
                out.append(f"    store({o.name}_lanes, {o.name}_buffer, at[{k}], layouts[{k}], start, count);")
        return "\n".join([*out, "  }", "}", ""])

    def _stage_lines(self) -> list[str]:
        """For every stage: its group values, then one loop over the lanes."""
        body: dict[int, list[str]] = defaultdict(list)
        head: dict[int, list[str]] = defaultdict(list)
        reductions: dict[int, list[str]] = defaultdict(list)
        carried = self._carried()
        for node in self.nodes:
            stage, kind = self.stage[node], self._kind(node)
            if kind == "element":
                body[stage].append(f"const {self._ctype(node)} {node.name} = {self._value(node)};")
                if node in carried:
                    body[stage].append(f"{node.name}_kept[j] = {node.name};")
            elif kind == "group" and node.op == "call_function" and name_of(node.target) == "amax":
                operand = node.args[0].name
                reductions[stage - 1].append(node.name)
                head[stage - 1].append(f"int32_t {node.name} = std::numeric_limits<int32_t>::min();")
                body[stage - 1].append(f"{node.name} = std::max({node.name}, {operand});")
            elif kind == "group" and not (node.op == "placeholder" and self.operand[node.target].in_memory):
                head[stage].append(f"const {self._ctype(node)} {node.name} = {self._value(node)};")
        for name, value in self.new_value.items():
            operand = self.operand[name]
            if operand.kind == "element":
                stored = self._operand_text(value, TYPES[operand.dtype])
                body[self.stage[value] if self._kind(value) != "scalar" else 0].append(f"{name}_lanes[j] = {stored};")
        lines = [f"    {self._ctype(node)} {node.name}_kept[width];" for node in carried]
        for stage in range(max(self.stage.values(), default=0) + 1):
            lines += [f"    {line}" for line in head[stage]]
            if not body[stage]:
                continue
            reduced = f" reduction(max : {', '.join(reductions[stage])})" if reductions[stage] else ""
            lines += [f"#pragma omp simd{reduced}", "    for (int j = 0; j < width; ++j) {"]
            for n in self._recalled(stage):
                lines.append(
                    f"      const {self._ctype(n)} {n.name} = {self._value(n) if _is_truth(n) else n.name + '_kept[j]'};"
                )
            lines += [f"      {line}" for line in body[stage]]
            lines.append("    }")
        return lines

    def _recalled(self, stage: int) -> list[fx.Node]:
        """Element values of earlier stages that `stage` reads, in order. Truth values are computed again from theirs."""
        recalled: set[fx.Node] = set()
        stack = [n for n in self.nodes if self._kind(n) == "element" and self.stage[n] == stage]
        while stack:
            for i in stack.pop().all_input_nodes:
                if self._kind(i) == "element" and self.stage[i] < stage and i not in recalled:
                    recalled.add(i)
                    stack += [i] if _is_truth(i) else []
        return [n for n in self.nodes if n in recalled]

    def _carried(self) -> list[fx.Node]:
        """Element values that some later stage reads."""
        stages = range(max(self.stage.values(), default=0) + 1)
        return list(dict.fromkeys(n for stage in stages for n in self._recalled(stage) if not _is_truth(n)))

    def _pointer(self, operand: Operand) -> int:
        return self.pointers.index(operand)

    @staticmethod
    def _ctype(node: fx.Node) -> str:
        return TYPES[node.meta["dtype"]]

    def _value(self, node: fx.Node) -> str:
        return self._placeholder(node) if node.op == "placeholder" else self._call(node)

    def _placeholder(self, node: fx.Node) -> str:
        operand = self.operand[node.target]
        if operand.source == "index":
            return "(low + std::min(j, last_lane)) ^ page"
        if operand.source == "group_index":
            return "low ^ page"
        if operand.source in ("scalar", "salt"):
            return f"{self._ctype(node)}(numbers[{self.numbers.index(operand)}])"
        if operand.kind == "scalar":
            return f"*static_cast<const {self._ctype(node)}*>(at[{self._pointer(operand)}])"
        return f"{operand.name}_lanes[j]"

    def _call(self, node: fx.Node) -> str:
        name, result = name_of(node.target), self._ctype(node)
        if bitcast(node.target):
            source = node.args[0]
            return f"{result}({source.name})" if result == "bf16" else f"bits_as<{result}>({source.name})"
        if name == "_to_copy":
            return f"cast<{result}>({self._cast_input(node.args[0], result)})"
        operand_type = self._operand_type(node) if name in PREDICATES else result
        if name == "rsub":
            return f"({self._operand_text(node.args[1], result)} - {self._operand_text(node.args[0], result)})"
        if name == "pow" and node.args[1] in (2, 3, 0.5, -1):
            base = self._operand_text(node.args[0], result)
            return {
                2: f"({base} * {base})",
                3: f"({base} * {base} * {base})",
                0.5: f"std::sqrt({base})",
                -1: f"({result}(1) / {base})",
            }[node.args[1]]
        types = [operand_type] * len(node.args)
        if name == "where":
            types = ["bool", result, result]
        texts = [self._operand_text(a, t) for a, t in zip(node.args, types, strict=True)]
        return CPP[name].format(*texts, t=result, o=operand_type)

    @staticmethod
    def _cast_input(source: fx.Node, result: str) -> str:
        """bf16 and fp16 convert from float, as torch does."""
        return f"float({source.name})" if result in ("bf16", "fp16") else source.name

    def _operand_type(self, node: fx.Node) -> str:
        """What a comparison compares in: the widest type of its tensors, numbers and scalars adapting to them."""
        nodes = [a for a in node.args if isinstance(a, fx.Node)]
        tensors = [a for a in nodes if self._kind(a) != "scalar"] or nodes
        dtype = tensors[0].meta["dtype"]
        for other in tensors[1:]:
            dtype = torch.promote_types(dtype, other.meta["dtype"])
        return TYPES[dtype]

    @staticmethod
    def _operand_text(argument: object, ctype: str) -> str:
        if isinstance(argument, fx.Node) and _is_constant(argument):
            argument = argument.args[0]
        if isinstance(argument, fx.Node):
            return argument.name if TYPES[argument.meta["dtype"]] == ctype else f"cast<{ctype}>({argument.name})"
        if isinstance(argument, bool) or not isinstance(argument, (int, float)):
            return str(argument).lower()
        if isinstance(argument, float) and not math.isfinite(argument):
            limits = f"std::numeric_limits<{ctype}>"
            if math.isnan(argument):
                return f"{limits}::quiet_NaN()"
            return f"{'-' if argument < 0 else ''}{limits}::infinity()"
        return f"{ctype}({argument!r})"


def _is_constant(node: fx.Node) -> bool:
    return node.op == "call_function" and name_of(node.target) == "scalar_tensor"


def _is_truth(node: fx.Node) -> bool:
    return node.meta["dtype"] == torch.bool
