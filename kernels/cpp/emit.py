"""Program graph -> C++: one function that steps any number of tensors in place, threaded and vectorizable.

A tile is a run of consecutive elements that holds whole groups of every codec. A tile loads, then computes its stages
(`CppStages`), then stores. Scalars are computed once per tensor, in double precision, before the parallel part. Tensors
that are not contiguous are gathered into a buffer of one tile and scattered from it.

A program that folds stores nothing per element: lanes are added to the sums of their sets, see `average_driver.h`.
"""

from __future__ import annotations

from functools import cached_property

from torch import float64

from baoc_compile.core.program_graph import Operand
from baoc_compile.kernels.cpp.expressions import LANES, MEMORY, TYPES, argument, type_of
from baoc_compile.kernels.cpp.stages import CppStages
from baoc_compile.kernels.cpp.text import AVERAGE_DRIVER, DRIVER, ENTRIES, PACKED, PRELUDE, SHARED
from baoc_compile.kernels.dialect.nodes import is_small, is_taken_from, meta_of, per_of


class CppEmitter(CppStages):
    """Emitter of C++ source that defines `run`; see `driver.h`."""

    @property
    def before(self) -> str:
        found = [PRELUDE]
        found += [SHARED] if self.graph.shared else []
        found += [PACKED] if any(o.bits == 4 for o in self.graph.pointers) else []
        found += [ENTRIES] if any(per_of(n) == "codebook" and is_small(n) for n in self.nodes) else []
        return "\n".join(found)

    @property
    def after(self) -> str:
        return "\n" + (AVERAGE_DRIVER if self.graph.folds else DRIVER)

    @cached_property
    def body(self) -> str:
        sizes = {
            "POINTERS": len(self.graph.pointers),
            "NUMBERS": max(1, len(self.graph.numbers)),
            "DERIVED": max(1, len(self.derived)),
            "SHARED": len(self.graph.shared),
            "TILE": self.tile,
        }
        constants = f"constexpr int {', '.join(f'{name} = {size}' for name, size in sizes.items())};\n"
        if self.graph.folds:
            same = {o: alike[0] for alike in self.folded for o in alike}
            numbers = [str(self.graph.shared.index(same.get(o, o))) for o in self.graph.shared]
            most = [str(o.fold == "most").lower() for o in self.graph.shared]
            constants += f"constexpr int SAME[SHARED] = {{{', '.join(numbers)}}};\n"
            constants += f"constexpr bool MOST[SHARED] = {{{', '.join(most)}}};\n"
        functions = self._scalars() + self._elements() + (self._finish() if self.graph.folds else "")
        return self.variables.named(f"\n// {self.title}\n{constants}{functions}", self.before + self.after)

    def _scalars(self) -> str:
        lines = [f"  {self.declared(node, self.value(node))}" for node in self.scalars]
        for operand, value in self.new_scalars:
            lines.append(f"  *{self.data(operand)} = {argument(value, operand.dtype, self.variables)};")
        lines += [f"  derived[{i}] = double({self.variables(node)});" for i, node in enumerate(self.derived)]
        body = "\n".join(lines)
        return f"\nstatic void scalars(void* const* at, const double* numbers, double* derived) {{\n{body}\n}}\n"

    def _finish(self) -> str:
        """Return the function that stores the means, or maxima, of shared operand number s."""
        lines = [
            f"  for (int64_t k = 0; s == {s} && k < cycle; ++k) {self.data(operand)}[k] = folded[k];"
            for s, operand in enumerate(self.graph.shared)
            if operand.fold in ("mean", "most")
        ]
        for s, operand in enumerate(self.graph.shared):
            if operand.name in self.decays:
                decay = self.decays[operand.name]
                text = f"derived[{self.derived.index(decay)}]" if decay in self.derived else ""
                text = text or argument(decay, float64, self.variables)
                values = f"static_cast<float*>(at[{self.pointer(operand)}])"
                lines.append(f"  if (s == {s}) values = {values}, decay = {text};")
        body = "\n".join(lines)
        return (
            "\nstatic void finish(void* const* at, const double* derived, int s, const double* folded, int64_t cycle) {\n"
            f"  float* values = nullptr;\n  double decay = 0.0;\n{body}\n"
            "  for (int64_t k = 0; values && k < cycle; ++k) values[k] = float(decay * double(values[k]) + folded[k]);\n}\n"
        )

    def _elements(self) -> str:
        out = [
            "",
            "static void elements(void* const* at, const int64_t* const* layouts, const double* derived, int64_t lanes,",
            "                     int64_t columns, int64_t first, int64_t last, int64_t first_index, const int64_t* sharing,",
            "                     double* const* sums, const int64_t* first_sum) {",
        ]
        out += [f"  {self.declared(n, f'{type_of(n)}(derived[{i}])')}" for i, n in enumerate(self.derived)]
        out += self._codebooks()
        for o in self.graph.shared:
            if o.read:
                place = f"at[{self.pointer(o)}], sharing + {2 * self.graph.shared.index(o)}"
                out.append(f"  Spread<TILE, {TYPES[o.dtype]}> {self.variable(o, 'spread')}({place});")
        for alike in self.folded:
            sums = [f"{{sums[{s}], first_sum[{s}], sharing + {2 * s}}}" for s in map(self.graph.shared.index, alike)]
            out.append(f"  const Sums {self.variable(alike[0], 'sums')}[] = {{{', '.join(sums)}}};")
        out += [
            "  for (int64_t number = first; number < last; ++number) {",
            "    const Tile<TILE> tile(number * TILE, lanes, columns);",
        ]
        if any(o.source in ("index", "group_index") for o in self.graph.operands):
            out += [
                "    const int64_t index = first_index + tile.start;",
                "    const int32_t low = int32_t(uint32_t(index)), page = int32_t(index >> 32) * int32_t(0x85EBCA6B);",
            ]
        elements = [o for o in self.graph.pointers if o.per == "element"]
        for o in elements:
            lane = LANES[o.dtype]
            out.append(f"    {lane} {self.variable(o, 'buffer')}[TILE];")
            out.append(f"    {lane}* const {self.variable(o, 'lanes')} = {self._load(o)};")
        for o in self.graph.shared:
            if o.read:
                lanes, spread = self.variable(o, "lanes"), self.variable(o, "spread")
                out.append(f"    const {TYPES[o.dtype]}* const {lanes} = {spread}.lanes(tile);")
        out += [f"    {LANES[self.lane_dtype(o)]} {self.variable(o, 'new')}[TILE];" for o, *_ in self.folded]
        out += self.stage_lines()
        for o in self.graph.pointers:
            if o.per == "group" and o.written:
                out.append(self._store_groups(o))
        out += [f"    {self._store(o)};" for o in elements if o.written]
        if self.folded:
            out += [
                f"    read_ahead({self.data(o)}, layouts[{self.pointer(o)}], tile);" for o in elements if o.bits != 4
            ]
        for o, *_ in self.folded:
            verb = "keep_most" if o.fold == "most" else "accumulate"
            out.append(f"    {verb}({self.variable(o, 'new')}, {self.variable(o, 'sums')}, tile);")
        return "\n".join([*out, "  }", "}", ""])

    def _codebooks(self) -> list[str]:
        """Return the stored codebooks, and those computed from them once per tensor and thread."""
        lines = []
        for n in self.nodes:
            if per_of(n) != "codebook":
                continue
            entries, operand = self.variables(n, "codebook"), self.operand_of(n)
            if operand is not None:
                lines.append(f"  const {MEMORY[operand.dtype]}* const {entries} = {self.data(operand)};")
            else:
                count = meta_of(n).count
                given = [i for i in n.all_input_nodes if per_of(i) == "codebook"]
                lines.append(f"  {type_of(n)} {entries}[{count}];")
                lines.append(f"  for (int i = 0; i < {count}; ++i) {{")
                lines += [f"    {self.declared(i, self.variables(i, 'codebook') + '[i]')}" for i in given]
                lines.append(f"    {entries}[i] = {self.value(n)};\n  }}")
            if is_taken_from(n) and is_small(n):
                lines.append(f"  const Entries<{type_of(n)}> {self.variables(n, 'entries')}({entries});")
        return lines

    def _load(self, o: Operand) -> str:
        buffer, k = self.variable(o, "buffer"), self.pointer(o)
        if o.bits == 4:
            return f"load4({buffer}, {self.data(o)}, tile)" if o.read else buffer
        call = "load" if o.read else "destination"
        return f"{call}({buffer}, {self.data(o)}, layouts[{k}], tile)"

    def _store(self, o: Operand) -> str:
        buffer, k = self.variable(o, "buffer"), self.pointer(o)
        if o.bits == 4:
            return f"store4({buffer}, {self.data(o)}, tile)"
        return f"store({self.variable(o, 'lanes')}, {buffer}, {self.data(o)}, layouts[{k}], tile)"

    def _store_groups(self, o: Operand) -> str:
        value = self.variables(self.new_value[o.name], "of")
        return f"    store_groups({value}, {self.data(o)}, tile);"
