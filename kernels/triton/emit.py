"""Program graph -> source of a Triton kernel that steps any number of tensors in place, in one launch.

A program instance steps a few tiles of one tensor. It finds the tensor in a table of addresses, see `TritonTable`.
Whole tiles are loaded and stored without masks, the last tile of a tensor with masks. Every program instance computes
the scalars in double. The last one of a tensor stores its counters, after all have read them.

A codec becomes a function under its own name. The bodies of these functions and of the kernel are the nodes of the
graph, one per line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby

from torch import fx

from baoc_compile.core.names import identifier
from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.dialect.emitter import Emitter
from baoc_compile.kernels.dialect.nodes import CodecCall, is_constant, is_in_lanes, meta_of, per_of, reduces
from baoc_compile.kernels.dialect.operations import name_of
from baoc_compile.kernels.dialect.variables import Names, Variables
from baoc_compile.kernels.triton.expressions import MEMORY, TYPES, argument, expression, narrowed, widened
from baoc_compile.kernels.triton.text import HEAD, STEP, TILE

#: Number of columns of a table row before the sharing and the addresses: those named in `device_functions`.
HEADER = 7


class TritonEmitter(Emitter):
    """Emitter of a module with a kernel `step_tensors`. Raises CannotEmit.

    functions: name of a codec's function -> its text.
    column: operand name -> column of its address in a table row.
    row_length: columns of a table row.
    strided: the operands that may not be contiguous.
    """

    keywords = ()  # Python keywords are no identifiers in the first place

    def __init__(self, graph: ProgramGraph):
        super().__init__(graph)
        self.functions: dict[str, str] = {}
        first = HEADER + 2 * len(graph.shared)
        self.column = {o.name: first + k for k, o in enumerate(graph.pointers)}
        self.row_length = first + len(graph.pointers)
        self.strided = [o for o in graph.pointers if o.per == "element" and o.bits == 8]

    @property
    def before(self) -> str:
        return HEAD

    @cached_property
    def body(self) -> str:
        kernel = self.variables.named(self._kernel())
        return f"# {self.title}\n\n\n{''.join(self.functions.values())}{kernel}"

    def _kernel(self) -> str:
        tile = TILE.format(
            arguments=", ".join(self._tile_arguments()),
            loads=indented(self._loads()),
            body=indented(self._lanes()),
            stores=indented(self._stores()),
        )
        return tile + STEP.format(
            row_length=self.row_length,
            pointers=indented(self._addresses()),
            scalars=indented(self._scalars()),
            strided=len(self.strided),
            arguments=", ".join(self._tile_arguments()),
            counters=indented(self._counters()),
        )

    # scalars

    def _scalars(self) -> list[str]:
        return [f"{self.variables(node)} = {self._scalar(node)}" for node in self.scalars]

    def _scalar(self, node: fx.Node) -> str:
        operand = self.operand_of(node)
        if operand is None:
            return expression(node, self.variables)
        if operand.in_memory:
            return widened(f"tl.load({self.variable(operand, 'ptr')})", operand.dtype)
        position = self.graph.numbers.index(operand)
        text = f"tl.load(numbers + tensor * {len(self.graph.numbers)} + {position})"
        return text if TYPES[operand.dtype] == "tl.float64" else f"{text}.to({TYPES[operand.dtype]})"

    def _counters(self) -> list[str]:
        """Return the stores of one number per tensor. They must come last in a program instance."""
        if not self.new_scalars:
            return []
        lines = ["if is_last(tickets + tensor, tl.load(row + INSTANCES)):"]
        for operand, value in self.new_scalars:
            text = narrowed(argument(value, operand.dtype, self.variables), operand.dtype)
            lines.append(f"    tl.store({self.variable(operand, 'ptr')}, {text})")
        return lines

    # addresses

    def _addresses(self) -> list[str]:
        lines = []
        for s, o in enumerate(self.graph.shared):
            lines.append(f"{self.variable(o, 'run')} = tl.load(row + {HEADER + 2 * s})")
            lines.append(f"{self.variable(o, 'cycle')} = tl.load(row + {HEADER + 2 * s + 1})")
        for o in self.graph.pointers:
            aligned = "ALIGNED" if o.per == "element" else "False"
            pointer, column = self.variable(o, "ptr"), self.column[o.name]
            lines.append(f"{pointer} = address(row, {column}, {MEMORY[o.dtype]}, {aligned})")
        return lines

    def _tile_arguments(self) -> list[str]:
        pointers = [self.variable(o, "ptr") for o in self.graph.pointers if o.per != "scalar"]
        sets = [self.variable(o, what) for o in self.graph.shared for what in ("run", "cycle")]
        return [*pointers, *sets, *map(self.variables, self.derived)]

    # lanes

    def _loads(self) -> list[str]:
        has_groups = any(o.per == "group" for o in self.graph.operands)
        return ["groups = tl.arange(0, ROWS)[:, None]"] * has_groups + self._loaded_lanes()

    def _loaded_lanes(self) -> list[str]:
        lines = []
        for node in self.nodes:
            operand = self.operand_of(node)
            if operand is not None and operand.read and operand.per in ("element", "group", "shared"):
                lines.append(f"{self.variables(node)} = {self._load(operand)}")
        return lines

    def _load(self, o: Operand) -> str:
        if o.source == "index":
            return "fold_index(first_index + start, lanes, tl.arange(0, ROWS)[:, None] * GROUP)"
        if o.source == "group_index":
            return "fold_index(first_index + start, groups * GROUP, groups * GROUP)"
        pointer = self.variable(o, "ptr")
        if o.per == "shared":
            run, cycle = self.variable(o, "run"), self.variable(o, "cycle")
            return f"tl.load({pointer} + set_index(start, lanes, elements, {run}, {cycle}, ROWS * GROUP, FULL))"
        if o.per == "group":
            return widened(f"load({pointer}, start // GROUP, groups, groups * GROUP < count, FULL)", o.dtype)
        if o.bits == 4:
            return f"load_packed({pointer}, start, lanes, count, columns, padded, FULL)"
        return widened(f"load_element({pointer}, first, elements, mask, {self._layout(o)}, FULL, STRIDED)", o.dtype)

    def _layout(self, o: Operand) -> str:
        return f"layout + {self.strided.index(o)} * LAYOUT"

    def _stores(self) -> list[str]:
        lines = []
        for o in self.graph.pointers:
            if not o.written or o.per in ("scalar", "shared"):
                continue
            pointer, value = self.variable(o, "ptr"), narrowed(self._stored(self.new_value[o.name], o), o.dtype)
            if o.per == "group":
                lines.append(f"store({pointer}, start // GROUP, groups, {value}, groups * GROUP < count, FULL)")
            elif o.bits == 4:
                lines.append(f"store_packed({pointer}, start, lanes, {value}, count, columns, padded, FULL)")
            else:
                layout = self._layout(o)
                lines.append(f"store_element({pointer}, first, elements, {value}, mask, {layout}, FULL, STRIDED)")
        return lines

    def _stored(self, value: fx.Node, o: Operand) -> str:
        text = argument(value, o.dtype, self.variables)
        if per_of(value) == o.per:
            return text
        return f"tl.zeros_like(lanes).to({TYPES[o.dtype]}) + {text}"

    def _lanes(self) -> list[str]:
        """Return the element and group values, codec by codec."""
        nodes = [n for n in self.nodes if is_in_lanes(n) and n.op != "placeholder"]
        lines: list[str] = []
        for call, members in groupby(nodes, lambda n: meta_of(n).call):
            if call is None:
                lines += [f"{self.variables(n)} = {expression(n, self.variables)}" for n in members]
            else:
                lines.append(self._called(call, list(members)))
        return lines

    def _called(self, call: CodecCall, members: Sequence[fx.Node]) -> str:
        """Move a codec's nodes into a function; return the line that calls it."""
        inside = set(members)
        outside = dict.fromkeys(i for n in members for i in _inputs(n) if i not in inside)
        returned = [n for n in members if n in self.new_value.values() or any(u not in inside for u in n.users)]
        local = Variables(self.keywords, without=f"{identifier(call.slot)}_")
        masked = any(reduces(n) for n in members)
        parameters = [_given(n, local) for n in outside] + (["mask", "FULL: tl.constexpr"] if masked else [])
        body = [f"{local(n)} = {expression(n, local)}" for n in members]
        body.append(f"return {', '.join(map(local, returned))}")
        text = local.named(f"({', '.join(parameters)}):\n{indented(body)}\n\n\n")
        name = self._function(f"{identifier(call.codec)}_{call.verb}", text)
        given = [_given(n, self.variables) for n in outside] + (["mask", "FULL"] if masked else [])
        return f"{', '.join(map(self.variables, returned))} = {name}({', '.join(given)})"

    def _function(self, wanted: str, text: str) -> str:
        """Return the name of a new function, or of an existing one with the same text."""
        for suffix in range(1, len(self.functions) + 2):
            name = wanted if suffix == 1 else f"{wanted}_{suffix}"
            whole = f"@triton.jit\ndef {name}{text}"
            if self.functions.setdefault(name, whole) == whole:
                return name
        raise AssertionError("unreachable: the last name is free")


def _given(node: fx.Node, names: Names) -> str:
    """Return the argument for a node: its value, or the pointer to a codebook."""
    return names(node, "ptr" if per_of(node) == "codebook" else "")


def _inputs(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a node reads, replacing computed codebooks by the stored ones behind them."""
    found: list[fx.Node] = []
    for i in node.all_input_nodes:
        if is_constant(i):
            continue
        found += _inputs(i) if per_of(i) == "codebook" and i.op != "placeholder" else [i]
    if name_of(node.target) == "take" and name_of(node.args[1].target) == "_to_copy":
        found.append(node.args[1].args[0])
    return found


def indented(lines: Iterable[str], levels: int = 1) -> str:
    return "\n".join("    " * levels + line for line in lines)
