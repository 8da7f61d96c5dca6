"""Program graph -> C++: one function that steps any number of tensors, threaded, vectorizable, in place.

A block is `width` consecutive elements, one or several groups of each codec. Its loads come first, then its stages
(`CppStages`), then its stores. Scalars are computed once per tensor in double precision before the
parallel part. Tensors that are not contiguous are gathered into and scattered from a buffer of one block.

A program that averages has no stores: lanes are added to the sums of their sets, see `AVERAGE_DRIVER`.
"""

from __future__ import annotations

from torch import fx

from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.cpp.stages import CppStages
from baoc_compile.kernels.cpp.text import (
    AVERAGE_DRIVER,
    AVERAGE_HEADERS,
    DRIVER,
    ENTRIES,
    MEMORY,
    PACKED,
    PRELUDE,
    SHARED,
    TYPES,
)
from baoc_compile.kernels.dialect.nodes import is_constant, is_small, is_taken_from, meta_of, per_of


class CppEmitter(CppStages):
    """`.source` is the C++ text. `derived`: the scalars that the parallel part reads."""

    def __init__(self, graph: ProgramGraph):
        super().__init__(graph)
        self.derived = self._derived()
        self.source = self._emit()

    def _derived(self) -> list[fx.Node]:
        read = [n for n in self.nodes if any(per_of(u) in ("element", "group") for u in n.users)]
        read += [v for name, v in self.new_value.items() if self.operand[name].per != "scalar"]
        read += self.decays.values()
        return [n for n in dict.fromkeys(read) if per_of(n) == "scalar" and not is_constant(n)]

    def _emit(self) -> str:
        sizes = {
            "pointers": len(self.pointers),
            "numbers": max(1, len(self.numbers)),
            "derived": max(1, len(self.derived)),
            "shared": len(self.graph.shared),
            "width": self.width,
        }
        extras = (SHARED if self.graph.shared else "") + (PACKED if any(o.bits == 4 for o in self.pointers) else "")
        extras += ENTRIES if any(per_of(n) == "codebook" and is_small(n) for n in self.nodes) else ""
        driver = AVERAGE_DRIVER if self.graph.averages else DRIVER
        functions = self._scalars() + self._elements() + (self._finish() if self.graph.averages else "")
        title = f"// {self.graph.title}\n"
        headers = AVERAGE_HEADERS if self.graph.averages else ""
        return title + headers + PRELUDE + extras + functions + driver.format(**sizes)

    def _scalars(self) -> str:
        lines = []
        for node in self.nodes:
            if per_of(node) == "scalar" and not is_constant(node):
                lines.append(f"  const {self.ctype(node)} {node.name} = {self.value(node)};")
        for name, value in self.new_value.items():
            operand = self.operand[name]
            if operand.per == "scalar":
                lines.append(f"  *{self.data(operand)} = {self.operand_text(value, TYPES[operand.dtype])};")
        lines += [f"  derived[{i}] = double({node.name});" for i, node in enumerate(self.derived)]
        body = "\n".join(lines)
        return f"\nstatic void scalars(void* const* at, const double* numbers, double* derived) {{\n{body}\n}}\n"

    def _finish(self) -> str:
        """The function that folds the means of one shared operand, number s, into its values."""
        lines = []
        for s, operand in enumerate(self.graph.shared):
            if operand.name in self.decays:
                decay = self.decays[operand.name]
                text = (
                    self.operand_text(decay, "double")
                    if is_constant(decay)
                    else f"derived[{self.derived.index(decay)}]"
                )
                lines.append(
                    f"  if (s == {s}) values = static_cast<float*>(at[{self.pointer(operand)}]), decay = {text};"
                )
        body = "\n".join(lines)
        return (
            "\nstatic void finish(void* const* at, const double* derived, int s, const double* means, int64_t cycle) {\n"
            f"  float* values = nullptr;\n  double decay = 0.0;\n{body}\n"
            "  for (int64_t k = 0; values && k < cycle; ++k) values[k] = float(decay * double(values[k]) + means[k]);\n}\n"
        )

    def _elements(self) -> str:
        out = [
            "",
            "static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t numel,",
            "                     int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,",
            "                     double* const* sums, const int64_t* first_sum) {",
            f"  constexpr int width = {self.width};",
        ]
        out += [
            f"  const {self.ctype(n)} {n.name} = {self.ctype(n)}(derived[{i}]);" for i, n in enumerate(self.derived)
        ]
        for o in self.pointers:
            if o.per == "codebook":
                out.append(f"  const {MEMORY[o.dtype]}* const {o.name}_table = {self.data(o)};")
        out += self._tables()
        out += [
            "  for (int64_t block = first; block < last; ++block) {",
            "    const int64_t start = block * width;",
            "    const int count = int(least<int64_t>(width, numel - start));",
        ]
        if any(o.source in ("index", "group_index") for o in self.graph.operands):
            out += [
                "    const int64_t index = first_index + start;",
                "    const int32_t low = int32_t(uint32_t(index)), page = int32_t(index >> 32) * int32_t(0x85EBCA6B);",
            ]
        lanes = [o for o in self.pointers if o.per in ("element", "shared")]
        for o in lanes:
            ctype = TYPES[o.dtype]
            out.append(f"    {ctype} {o.name}_buffer[width];")
            out.append(f"    {ctype}* const {o.name}_lanes = {self._load(o)};")
        out += self.stage_lines()
        for o in self.pointers:
            if o.per == "group" and o.written:
                out.append(self._store_groups(o))
        out += [f"    {self._store(o)};" for o in lanes if o.written]
        return "\n".join([*out, "  }", "}", ""])

    def _tables(self) -> list[str]:
        """Tables that are computed from stored ones, once per tensor and thread."""
        lines = []
        for n in self.nodes:
            if per_of(n) == "codebook" and n.op != "placeholder":
                given = [i for i in n.all_input_nodes if per_of(i) == "codebook"]
                lines.append(f"  {self.ctype(n)} {n.name}_table[{meta_of(n).count}];")
                lines.append(f"  for (int i = 0; i < {meta_of(n).count}; ++i) {{")
                lines += [f"    const {self.ctype(i)} {i.name} = {i.name}_table[i];" for i in given]
                lines.append(f"    {n.name}_table[i] = {self.value(n)};\n  }}")
            if is_taken_from(n) and is_small(n):
                lines.append(f"  const Entries<{self.ctype(n)}> {n.name}_entries({n.name}_table);")
        return lines

    def _load(self, o: Operand) -> str:
        k = self.pointer(o)
        if o.per == "shared":
            spread = (
                f"spread({o.name}_buffer, at[{k}], sharing + {2 * self.graph.shared.index(o)}, start, count, width)"
            )
            return spread if o.read else f"{o.name}_buffer"
        if o.bits == 4:
            return f"load4({o.name}_buffer, {self.data(o)}, start, count, width)" if o.read else f"{o.name}_buffer"
        call = "load" if o.read else "destination"
        return f"{call}({o.name}_buffer, {self.data(o)}, layouts[{k}], start, count, width)"

    def _store(self, o: Operand) -> str:
        k = self.pointer(o)
        if o.per == "shared":
            s = self.graph.shared.index(o)
            return f"accumulate({o.name}_buffer, sums[{s}], first_sum[{s}], sharing + {2 * s}, start, count)"
        if o.bits == 4:
            return f"store4({o.name}_buffer, {self.data(o)}, start, count, width)"
        return f"store({o.name}_lanes, {o.name}_buffer, {self.data(o)}, layouts[{k}], start, count, width)"

    def _store_groups(self, o: Operand) -> str:
        groups, value = self.width // o.group_size, self.new_value[o.name].name
        have = f"(count - 1) / {o.group_size} + 1"
        return f"    store_groups({value}_of, {self.data(o)} + block * {groups}, {have}, {groups});"
