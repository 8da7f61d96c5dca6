"""Program graph -> the C++ between the loads and stores of a tile, stage by stage.

A stage first computes group values, group by group, and then lanes, in runs that no group boundary crosses. It ends
where a reduction over a whole group is needed. Lanes that a later stage reads are kept in arrays.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import fx

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.cpp.expressions import LANES, MEMORY, TYPES, argument, expression, type_of
from baoc_compile.kernels.cpp.text import KEYWORDS
from baoc_compile.kernels.dialect.emitter import Emitter
from baoc_compile.kernels.dialect.nodes import is_in_lanes, is_truth, logical_shift, meta_of, per_of, reduces
from baoc_compile.kernels.dialect.operations import name_of

#: Elements that are loaded, computed and stored together: enough to fill vectors of group values, too. A tile has fewer if
#: its arrays would take more than a third of a first cache of 48 KiB, which the tensors go through as well: with 24 KiB of
#: arrays, 256 elements were 1.2 times as fast as 512; with 16 KiB, 512 were (AMD EPYC, 10M elements, AdamW).
TILES = (512, 256)
ARRAY_BYTES = 16 << 10


class CppStages(Emitter):
    """Emitter of the stages of a tile. Expressions refer to lane j and group i of the tile.

    stage: node -> its stage.
    tile, groups: elements and groups of a tile.
    """

    keywords = KEYWORDS

    def __init__(self, graph: ProgramGraph):
        super().__init__(graph)
        self.stage = self._stages()
        self.stages = range(max(self.stage.values(), default=0) + 1)
        buffers = sum(o.per == "element" and (LANES[o.dtype] != MEMORY[o.dtype] or o.bits == 4) for o in graph.pointers)
        arrays = (
            buffers
            + sum(o.read for o in graph.shared)
            + len(self.folded)
            + len(self._carried())
            + sum(map(reduces, self.nodes))
        )
        self.tile = next((n for n in TILES if 4 * n * arrays <= ARRAY_BYTES), TILES[-1])
        self.groups = self.tile // GROUP_SIZE

    def value(self, node: fx.Node) -> str:
        operand = self.operand_of(node)
        if operand is None:
            return expression(node, self.variables)
        if operand.source == "index":
            return "(low + j) ^ page"
        if operand.source == "group_index":
            return f"(low + i * {GROUP_SIZE}) ^ page"
        if operand in self.graph.numbers:
            return f"{type_of(node)}(numbers[{self.graph.numbers.index(operand)}])"
        if operand.per == "scalar":
            return f"{type_of(node)}(*{self.data(operand)})"
        if operand.per == "group":
            return f"{self.variables(node, 'of')}[i]"
        lane = f"{self.variables(node, 'lanes')}[j]"
        return lane if LANES[operand.dtype] == type_of(node) else f"{type_of(node)}({lane})"

    def pointer(self, operand: Operand) -> int:
        return self.graph.pointers.index(operand)

    def data(self, operand: Operand) -> str:
        """Return the operand's tensor as a typed pointer."""
        return f"static_cast<{MEMORY[operand.dtype]}*>(at[{self.pointer(operand)}])"

    def declared(self, node: fx.Node, value: str) -> str:
        """Return the definition of a node's variable."""
        return f"const {type_of(node)} {self.variables(node)} = {value};"

    def _stages(self) -> dict[fx.Node, int]:
        """Return for each node the number of group reductions that finish before it is computed."""
        stage: dict[fx.Node, int] = {}
        for node in self.nodes:
            inputs = [stage[i] for i in node.all_input_nodes if is_in_lanes(i)]
            stage[node] = max(inputs, default=0) + (1 if reduces(node) else 0)
        last = max(stage.values(), default=0)
        for node in reversed(self.nodes):  # as late as possible, so that fewer values are kept for later stages
            if per_of(node) == "element":
                readers = [stage[user] - (1 if reduces(user) else 0) for user in node.users if user in stage]
                stage[node] = max(stage[node], min(readers, default=last))
        return stage

    def stage_lines(self) -> list[str]:
        lines = [f"    {type_of(n)} {self.variables(n, 'kept')}[TILE];" for n in self._carried()]
        for node in self.nodes:
            if per_of(node) == "group" and self._outlives(node):
                values = self.variables(node, "of")
                lines.append(f"    {type_of(node)} {values}[{self.groups}];")
                operand = self.operand_of(node)
                if reduces(node):
                    lines.append(f"    int32_t {self.variables(node, 'lanes')}[TILE];")
                elif operand is not None and operand.in_memory:
                    lines.append(f"    load_groups({values}, {self.data(operand)}, tile);")
        for stage in self.stages:
            lines += self._group_loops(stage) + self._lane_loop(stage)
        return lines

    def _outlives(self, node: fx.Node) -> bool:
        """Tell whether a group value is read outside the loop that computes it."""
        if reduces(node) or node.op == "placeholder" or node in self.new_value.values():
            return True
        return any(
            per_of(user) != "group" or reduces(user) or self.stage[user] != self.stage[node] for user in node.users
        )

    def _group_loops(self, stage: int) -> list[str]:
        """Return the group values of a stage: one loop over the groups."""
        nodes = [n for n in self.nodes if per_of(n) == "group" and self.stage[n] == stage and not reduces(n)]
        if not nodes:
            return []
        given = dict.fromkeys(i for n in nodes for i in n.all_input_nodes if per_of(i) == "group" and i not in nodes)
        lines = ["#pragma omp simd", f"    for (int i = 0; i < {self.groups}; ++i) {{"]
        lines += [f"      {self.declared(n, self.variables(n, 'of') + '[i]')}" for n in given]
        lines += [f"      {self.declared(n, self.value(n))}" for n in nodes]
        stored = [n for n in nodes if self._outlives(n) and not self._is_loaded(n)]
        lines += [f"      {self.variables(n, 'of')}[i] = {self.variables(n)};" for n in stored]
        return [*lines, "    }"]

    def _is_loaded(self, node: fx.Node) -> bool:
        operand = self.operand_of(node)
        return operand is not None and operand.in_memory

    def _lane_loop(self, stage: int) -> list[str]:
        """Return the element values of a stage: one loop over runs of lanes that lie in the same groups."""
        body: list[str] = []
        carried, recalled = self._carried(), self._recalled(stage)
        here = [n for n in self.nodes if per_of(n) == "element" and self.stage[n] == stage and not self._is_unread(n)]
        for n in recalled:
            body.append(self.declared(n, self.value(n) if _is_free(n) else f"{self.variables(n, 'kept')}[j]"))
        for n in here:
            body.append(self.declared(n, self.value(n)))
            if n in carried:
                body.append(f"{self.variables(n, 'kept')}[j] = {self.variables(n)};")
        reductions = [n for n in self.nodes if reduces(n) and self.stage[n] == stage + 1]
        for n in reductions:
            body.append(f"{self.variables(n, 'lanes')}[j] = {self.variables(n.args[0])};")
        stored: list[fx.Node] = []
        for operand, role in self._stored_lanes() if stage == self.stages[-1] else ():
            value, dtype = self.new_value[operand.name], self.lane_dtype(operand)
            lane = argument(value, dtype, self.variables)
            lane = lane if LANES[dtype] == TYPES[dtype] else f"{LANES[dtype]}({lane})"
            body.append(f"{self.variable(operand, role)}[j] = {lane};")
            stored.append(value)
        if not body:
            return []
        read = [i for n in (*recalled, *here) for i in n.all_input_nodes] + stored
        given = dict.fromkeys(i for i in read if per_of(i) == "group")
        runs = self.groups if given else 1
        length = self.tile // runs
        lines = [f"    for (int run = 0; run < {runs}; ++run) {{"]
        lines += [f"      {self.declared(n, self.variables(n, 'of') + '[run]')}" for n in given]
        lines.append("#pragma omp simd")
        lines.append(f"      for (int lane = 0; lane < {length}; ++lane) {{")  # constant, so no remainder loop
        lines.append(f"        const int j = run * {length} + lane;")
        lines += [f"        {line}" for line in body]
        lines += ["      }", "    }"]
        for n in reductions:
            lines.append(f"    most_of_groups({self.variables(n, 'lanes')}, {self.variables(n, 'of')}, tile);")
        return lines

    @cached_property
    def folded(self) -> list[list[Operand]]:
        """The shared operands that the program folds values into; those that take means of the same value are together."""
        found: dict[tuple[fx.Node, str], list[Operand]] = {}
        for operand in self.graph.shared:
            if operand.fold:
                alone = operand.name if operand.fold == "most" else ""
                found.setdefault((self.new_value[operand.name], alone), []).append(operand)
        return list(found.values())

    def lane_dtype(self, operand: Operand) -> torch.dtype:
        """Return the type of an operand's new lanes: folded ones are those of the value, others those in memory."""
        return meta_of(self.new_value[operand.name]).dtype if operand.fold else operand.dtype

    def _stored_lanes(self) -> list[tuple[Operand, str]]:
        """Return the operands whose new lanes are stored, with the role of the array that takes them."""
        elements = [(o, "lanes") for o in self.graph.pointers if o.per == "element" and o.written]
        return elements + [(alike[0], "new") for alike in self.folded]

    def _is_unread(self, node: fx.Node) -> bool:
        operand = self.operand_of(node)
        return operand is not None and not operand.read

    def _recalled(self, stage: int) -> list[fx.Node]:
        """Return the element values of earlier stages that `stage` reads, in order.

        Truth values, magnitudes and bits are recomputed, and loaded values read again, rather than kept.
        """
        recalled: set[fx.Node] = set()
        stack = [n for n in self.nodes if per_of(n) == "element" and self.stage[n] == stage]
        if stage == self.stages[-1]:  # only this stage stores, so loaded values are unchanged until then
            stored = [n for n in self.new_value.values() if per_of(n) == "element" and self.stage[n] < stage]
            recalled.update(stored)
            stack += filter(_is_free, stored)
        while stack:
            for i in stack.pop().all_input_nodes:
                if per_of(i) == "element" and self.stage[i] < stage and i not in recalled:
                    recalled.add(i)
                    stack += [i] if _is_free(i) else []
        return [n for n in self.nodes if n in recalled]

    def _carried(self) -> list[fx.Node]:
        """Return the element values that some later stage reads from an array."""
        return list(dict.fromkeys(n for stage in self.stages for n in self._recalled(stage) if not _is_free(n)))


#: Operations that cost less than to keep and to load what they return.
_CHEAP = ("abs", "view", "bitwise_and", "bitwise_or")


def _is_free(node: fx.Node) -> bool:
    """Tell whether a value is recomputed or read again, not kept. Loads are unchanged until the last stage stores."""
    if is_truth(node) or node.op == "placeholder":
        return True
    if name_of(node.target) not in _CHEAP or logical_shift(node) is not None:
        return False
    return sum(per_of(i) == "element" for i in node.all_input_nodes) == 1
