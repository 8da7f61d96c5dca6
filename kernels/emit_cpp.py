"""Program graph -> C++: one function that steps any number of tensors, threaded, vectorizable, in place.

A block is `width` consecutive elements, one or several groups of each codec. Its loads come first, then its stages, then
its stores. A stage computes group values, group by group, and then the lanes, in runs that no group boundary crosses; it
ends where a reduction of a whole group is needed. Scalars are computed once per tensor in double precision before the
parallel part. Tensors that are not contiguous are gathered into and scattered from a buffer of one block.

A program that averages has no stores: lanes are added to the sums of their sets, see `AVERAGE_DRIVER`.
"""

from __future__ import annotations

from collections import defaultdict

from baoc_compile.kernels.cpp_expressions import CppExpressions, is_constant, is_truth, kind_of, reduces
from baoc_compile.kernels.cpp_text import AVERAGE_DRIVER, DRIVER, PACKED, PRELUDE, SHARED, TYPES
from torch import fx

from baoc_compile.program import Operand, ProgramGraph


class CppEmitter(CppExpressions):
    """`.source` is the C++ text. `derived`: the scalars that the parallel part reads."""

    def __init__(self, graph: ProgramGraph):
        super().__init__(graph)
        self.graph = graph
        self.nodes = [n for n in graph.gm.graph.nodes if n.op != "output"]
        (returned,) = graph.gm.graph.output_node().args
        self.new_value = dict(zip(graph.outputs, returned, strict=False))
        self.decays = {name: returned[len(graph.outputs) + k] for name, k in graph.decays.items()}
        self.stage = self._stages()
        self.stages = range(max(self.stage.values(), default=0) + 1)
        self.derived = self._derived()
        self.source = self._emit()

    # analysis

    def _derived(self) -> list[fx.Node]:
        read = [n for n in self.nodes if any(kind_of(u) in ("element", "group") for u in n.users)]
        read += [v for name, v in self.new_value.items() if self.operand[name].kind != "scalar"]
        read += self.decays.values()
        return [n for n in dict.fromkeys(read) if kind_of(n) == "scalar" and not is_constant(n)]

    def _stages(self) -> dict[fx.Node, int]:
        """The number of group reductions that must be finished before a node can be computed."""
        stage: dict[fx.Node, int] = {}
        for node in self.nodes:
            inputs = [stage[i] for i in node.all_input_nodes if kind_of(i) in ("element", "group")]
            stage[node] = max(inputs, default=0) + (1 if reduces(node) else 0)
        return stage

    def _groups(self, node: fx.Node) -> int:
        """How many groups of a group value there are in a block."""
        return self.width // (node.meta["group_size"] or self.width)

    # text

    def _emit(self) -> str:
        sizes = {
            "pointers": len(self.pointers),
            "numbers": max(1, len(self.numbers)),
            "derived": max(1, len(self.derived)),
            "shared": len(self.graph.shared),
            "width": self.width,
        }
        extras = (SHARED if self.graph.shared else "") + (PACKED if any(o.bits == 4 for o in self.pointers) else "")
        driver = AVERAGE_DRIVER if self.graph.averages else DRIVER
        functions = self._scalars() + self._elements() + (self._finish() if self.graph.averages else "")
        title = f"// {self.graph.title}\n"
        return title + PRELUDE + extras + functions + driver.format(**sizes)

    def _scalars(self) -> str:
        lines = []
        for node in self.nodes:
            if kind_of(node) == "scalar" and not is_constant(node):
                lines.append(f"  const {self.ctype(node)} {node.name} = {self.value(node)};")
        for name, value in self.new_value.items():
            operand = self.operand[name]
            if operand.kind == "scalar":
                ctype = TYPES[operand.dtype]
                lines.append(
                    f"  *static_cast<{ctype}*>(at[{self.pointer(operand)}]) = {self.operand_text(value, ctype)};"
                )
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
            if o.kind == "table":
                ctype = TYPES[o.dtype]
                out.append(f"  const {ctype}* const {o.name} = static_cast<const {ctype}*>(at[{self.pointer(o)}]);")
        out += [
            "  for (int64_t block = first; block < last; ++block) {",
            "    const int64_t start = block * width;",
            "    const int count = int(std::min<int64_t>(width, numel - start));",
        ]
        if any(o.source in ("index", "group_index") for o in self.graph.operands):
            out += [
                "    const int64_t index = first_index + start;",
                "    const int32_t low = int32_t(uint32_t(index)), page = int32_t(index >> 32) * int32_t(0x85EBCA6B);",
                "    const int last_lane = count - 1;",
            ]
        lanes = [o for o in self.pointers if o.kind in ("element", "shared")]
        for o in lanes:
            ctype = TYPES[o.dtype]
            out.append(f"    {ctype} {o.name}_buffer[width];")
            out.append(f"    {ctype}* const {o.name}_lanes = {self._load(o)};")
        out += self._stage_lines()
        for o in self.pointers:
            if o.kind == "group" and o.written:
                out.append(self._store_groups(o))
        out += [f"    {self._store(o)};" for o in lanes if o.written]
        return "\n".join([*out, "  }", "}", ""])

    def _load(self, o: Operand) -> str:
        k = self.pointer(o)
        if o.kind == "shared":
            spread = (
                f"spread({o.name}_buffer, at[{k}], sharing + {2 * self.graph.shared.index(o)}, start, count, width)"
            )
            return spread if o.read else f"{o.name}_buffer"
        if o.bits == 4:
            return f"load4({o.name}_buffer, at[{k}], start, count, width)" if o.read else f"{o.name}_buffer"
        call = "load" if o.read else "destination"
        return f"{call}({o.name}_buffer, at[{k}], layouts[{k}], start, count, width)"

    def _store(self, o: Operand) -> str:
        k = self.pointer(o)
        if o.kind == "shared":
            s = self.graph.shared.index(o)
            return f"accumulate({o.name}_buffer, sums[{s}], first_sum[{s}], sharing + {2 * s}, start, count)"
        if o.bits == 4:
            return f"store4({o.name}_buffer, at[{k}], start, count)"
        return f"store({o.name}_lanes, {o.name}_buffer, at[{k}], layouts[{k}], start, count)"

    def _store_groups(self, o: Operand) -> str:
        ctype, groups = TYPES[o.dtype], self.width // o.group_size
        return (
            f"    for (int i = 0; i * {o.group_size} < count; ++i)\n"
            f"      static_cast<{ctype}*>(at[{self.pointer(o)}])[block * {groups} + i] = {self.new_value[o.name].name}_of[i];"
        )

    # stages

    def _stage_lines(self) -> list[str]:
        lines = [f"    {self.ctype(n)} {n.name}_kept[width];" for n in self._carried()]
        for node in self.nodes:
            if kind_of(node) == "group":
                lines.append(f"    {self.ctype(node)} {node.name}_of[{self._groups(node)}];")
                if reduces(node):
                    lowest = "std::numeric_limits<int32_t>::min()"
                    lines.append(f"    std::fill_n({node.name}_of, {self._groups(node)}, {lowest});")
        for stage in self.stages:
            lines += self._group_loops(stage) + self._lane_loop(stage)
        return lines

    def _group_loops(self, stage: int) -> list[str]:
        """The group values of a stage, for every group size one loop over the groups."""
        by_size: dict[int, list[fx.Node]] = defaultdict(list)
        for node in self.nodes:
            if kind_of(node) == "group" and self.stage[node] == stage and not reduces(node):
                by_size[self._groups(node)].append(node)
        lines = []
        for groups, nodes in by_size.items():
            given = dict.fromkeys(
                i for n in nodes for i in n.all_input_nodes if kind_of(i) == "group" and i not in nodes
            )
            lines.append(f"    for (int i = 0; i < {groups}; ++i) {{")
            lines += [f"      const {self.ctype(n)} {n.name} = {n.name}_of[i];" for n in given]
            lines += [f"      const {self.ctype(n)} {n.name} = {self.value(n)};" for n in nodes]
            lines += [f"      {n.name}_of[i] = {n.name};" for n in nodes]
            lines.append("    }")
        return lines

    def _lane_loop(self, stage: int) -> list[str]:
        """The element values of a stage, run by run of lanes that lie in the same groups."""
        body: list[str] = []
        carried, recalled = self._carried(), self._recalled(stage)
        here = [n for n in self.nodes if kind_of(n) == "element" and self.stage[n] == stage]
        for n in recalled:
            body.append(f"const {self.ctype(n)} {n.name} = {self.value(n) if is_truth(n) else n.name + '_kept[j]'};")
        for n in here:
            body.append(f"const {self.ctype(n)} {n.name} = {self.value(n)};")
            if n in carried:
                body.append(f"{n.name}_kept[j] = {n.name};")
        reductions = [n for n in self.nodes if reduces(n) and self.stage[n] == stage + 1]
        body += [f"{n.name} = std::max({n.name}, {n.args[0].name});" for n in reductions]
        stored: list[fx.Node] = []
        for name, value in self.new_value.items():
            operand = self.operand[name]
            if operand.kind in ("element", "shared") and stage == self._stored_in(value):
                body.append(f"{name}_lanes[j] = {self.operand_text(value, TYPES[operand.dtype])};")
                stored.append(value)
        if not body:
            return []
        read = [i for n in (*recalled, *here) for i in n.all_input_nodes] + stored
        given = dict.fromkeys(i for i in read if kind_of(i) == "group")
        runs = max([self._groups(n) for n in (*given, *reductions)], default=1)
        length = self.width // runs
        lines = [f"    for (int run = 0; run < {runs}; ++run) {{"]
        for n in given:
            lines.append(f"      const {self.ctype(n)} {n.name} = {n.name}_of[run / {runs // self._groups(n)}];")
        for n in reductions:
            lines.append(f"      {self.ctype(n)} {n.name} = {n.name}_of[run / {runs // self._groups(n)}];")
        names = ", ".join(n.name for n in reductions)
        lines.append("#pragma omp simd" + (f" reduction(max : {names})" if reductions else ""))
        lines.append(f"      for (int j = run * {length}; j < (run + 1) * {length}; ++j) {{")
        lines += [f"        {line}" for line in body]
        lines.append("      }")
        lines += [f"      {n.name}_of[run / {runs // self._groups(n)}] = {n.name};" for n in reductions]
        return [*lines, "    }"]

    def _stored_in(self, value: fx.Node) -> int:
        return self.stage[value] if kind_of(value) != "scalar" else 0

    def _recalled(self, stage: int) -> list[fx.Node]:
        """Element values of earlier stages that `stage` reads, in order. Truth values are computed again from theirs."""
        recalled: set[fx.Node] = set()
        stack = [n for n in self.nodes if kind_of(n) == "element" and self.stage[n] == stage]
        while stack:
            for i in stack.pop().all_input_nodes:
                if kind_of(i) == "element" and self.stage[i] < stage and i not in recalled:
                    recalled.add(i)
                    stack += [i] if is_truth(i) else []
        return [n for n in self.nodes if n in recalled]

    def _carried(self) -> list[fx.Node]:
        """Element values that some later stage reads."""
        return list(dict.fromkeys(n for stage in self.stages for n in self._recalled(stage) if not is_truth(n)))
