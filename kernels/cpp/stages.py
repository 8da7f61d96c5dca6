"""Program graph -> the C++ between loads and stores of a block, stage by stage.

A stage computes group values, group by group, and then the lanes, in runs that no group boundary crosses; it ends where a
reduction of a whole group is needed. Lanes that a later stage reads are kept in arrays.
"""

from __future__ import annotations

from collections import defaultdict

from torch import fx

from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.cpp.expressions import CppExpressions
from baoc_compile.kernels.cpp.text import TYPES
from baoc_compile.kernels.dialect.nodes import is_truth, meta_of, per_of, reduces
from baoc_compile.kernels.dialect.operations import name_of


class CppStages(CppExpressions):
    """`new_value`: operand -> the node to store; `decays`: averaged operand -> its decay. `stage`: of every node."""

    def __init__(self, graph: ProgramGraph):
        super().__init__(graph)
        self.graph = graph
        self.nodes = [n for n in graph.graph.nodes if n.op != "output"]
        (returned,) = graph.graph.output_node().args
        self.new_value = dict(zip(graph.outputs, returned, strict=False))
        self.decays = {name: returned[len(graph.outputs) + k] for name, k in graph.decays.items()}
        self.stage = self._stages()
        self.stages = range(max(self.stage.values(), default=0) + 1)

    def _stages(self) -> dict[fx.Node, int]:
        """The number of group reductions that are finished before a node is computed."""
        stage: dict[fx.Node, int] = {}
        for node in self.nodes:
            inputs = [stage[i] for i in node.all_input_nodes if per_of(i) in ("element", "group")]
            stage[node] = max(inputs, default=0) + (1 if reduces(node) else 0)
        last = max(stage.values(), default=0)
        for node in reversed(self.nodes):  # as late as possible: what only later stages read need not be kept for them
            if per_of(node) == "element":
                readers = [stage[user] - (1 if reduces(user) else 0) for user in node.users if user in stage]
                stage[node] = max(stage[node], min(readers, default=last))
        return stage

    def _groups(self, node: fx.Node) -> int:
        """How many groups of a group value there are in a block."""
        return self.width // (meta_of(node).group_size or self.graph.width)

    def stage_lines(self) -> list[str]:
        lines = [f"    {self.ctype(n)} {n.name}_kept[width];" for n in self._carried()]
        for node in self.nodes:
            if per_of(node) == "group" and self._outlives(node):
                lines.append(f"    {self.ctype(node)} {node.name}_of[{self._groups(node)}];")
                if reduces(node):
                    lines.append(f"    for (int32_t& value : {node.name}_of) value = INT32_MIN;")
                elif self._is_loaded(node):
                    lines.append(f"    {self._load_groups(self.operand[node.target])}")
        for stage in self.stages:
            lines += self._group_loops(stage) + self._lane_loop(stage)
        return lines

    def _load_groups(self, o: Operand) -> str:
        groups = self.width // o.group_size
        have = f"(count - 1) / {o.group_size} + 1"
        return f"load_groups({o.name}_of, {self.data(o)} + block * {groups}, {have}, {groups});"

    def _outlives(self, node: fx.Node) -> bool:
        """Is a group value read outside of the loop that computes it?"""
        if reduces(node) or node.op == "placeholder" or node in self.new_value.values():
            return True
        return any(
            per_of(user) != "group"
            or reduces(user)
            or self.stage[user] != self.stage[node]
            or self._groups(user) != self._groups(node)
            for user in node.users
        )

    def _group_loops(self, stage: int) -> list[str]:
        """The group values of a stage, for every group size one loop over the groups."""
        by_size: dict[int, list[fx.Node]] = defaultdict(list)
        for node in self.nodes:
            if per_of(node) == "group" and self.stage[node] == stage and not reduces(node):
                by_size[self._groups(node)].append(node)
        lines = []
        for groups, nodes in by_size.items():
            given = dict.fromkeys(
                i for n in nodes for i in n.all_input_nodes if per_of(i) == "group" and i not in nodes
            )
            lines.append("#pragma omp simd")
            lines.append(f"    for (int i = 0; i < {groups}; ++i) {{")
            lines += [f"      const {self.ctype(n)} {n.name} = {n.name}_of[i];" for n in given]
            lines += [f"      const {self.ctype(n)} {n.name} = {self.value(n)};" for n in nodes]
            stored = [n for n in nodes if self._outlives(n) and not self._is_loaded(n)]
            lines += [f"      {n.name}_of[i] = {n.name};" for n in stored]
            lines.append("    }")
        return lines

    def _is_loaded(self, node: fx.Node) -> bool:
        return node.op == "placeholder" and self.operand[node.target].in_memory

    def _lane_loop(self, stage: int) -> list[str]:
        """The element values of a stage, run by run of lanes that lie in the same groups."""
        body: list[str] = []
        carried, recalled = self._carried(), self._recalled(stage)
        here = [n for n in self.nodes if per_of(n) == "element" and self.stage[n] == stage]
        for n in recalled:
            body.append(f"const {self.ctype(n)} {n.name} = {self.value(n) if _is_free(n) else n.name + '_kept[j]'};")
        for n in here:
            body.append(f"const {self.ctype(n)} {n.name} = {self.value(n)};")
            if n in carried:
                body.append(f"{n.name}_kept[j] = {n.name};")
        reductions = [n for n in self.nodes if reduces(n) and self.stage[n] == stage + 1]
        body += [f"{n.name} = {n.name} < {n.args[0].name} ? {n.args[0].name} : {n.name};" for n in reductions]
        stored: list[fx.Node] = []
        for name, value in self.new_value.items():
            operand = self.operand[name]
            if operand.per in ("element", "shared") and stage == self.stages[-1]:
                body.append(f"{name}_lanes[j] = {self.operand_text(value, TYPES[operand.dtype])};")
                stored.append(value)
        if not body:
            return []
        read = [i for n in (*recalled, *here) for i in n.all_input_nodes] + stored
        given = dict.fromkeys(i for i in read if per_of(i) == "group")
        runs = max([self._groups(n) for n in (*given, *reductions)], default=1)
        length = self.width // runs
        lines = [f"    for (int run = 0; run < {runs}; ++run) {{"]
        for n in given:
            lines.append(f"      const {self.ctype(n)} {n.name} = {n.name}_of[run / {runs // self._groups(n)}];")
        for n in reductions:
            lines.append(f"      {self.ctype(n)} {n.name} = {n.name}_of[run / {runs // self._groups(n)}];")
        names = ", ".join(n.name for n in reductions)
        lines.append("#pragma omp simd" + (f" reduction(max : {names})" if reductions else ""))
        lines.append(f"      for (int lane = 0; lane < {length}; ++lane) {{")  # a constant: no remainder
        lines.append(f"        const int j = run * {length} + lane;")
        lines += [f"        {line}" for line in body]
        lines.append("      }")
        lines += [f"      {n.name}_of[run / {runs // self._groups(n)}] = {n.name};" for n in reductions]
        return [*lines, "    }"]

    def _recalled(self, stage: int) -> list[fx.Node]:
        """Element values of earlier stages that `stage` reads, in order. Truth values and magnitudes are computed again from
        theirs, and loaded ones read again."""
        recalled: set[fx.Node] = set()
        stack = [n for n in self.nodes if per_of(n) == "element" and self.stage[n] == stage]
        if stage == self.stages[-1]:  # which stores, so that what was loaded stays as it is until then
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
        """Element values that some later stage reads."""
        return list(dict.fromkeys(n for stage in self.stages for n in self._recalled(stage) if not _is_free(n)))


def _is_free(node: fx.Node) -> bool:
    """Is it computed again rather than kept? What a block loads stays as it is until the last stage stores."""
    return is_truth(node) or node.op == "placeholder" or name_of(node.target) == "abs"
