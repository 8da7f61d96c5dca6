"""Program graph -> source of a Triton kernel that steps any number of tensors in one launch, in place.

A program of the launch takes a few blocks of one tensor; what the tensors are stands in a table of addresses, see
`TritonTable`. Whole blocks are loaded and stored without masks, the last one of a tensor with. Scalars are computed in
double by every program; the last one of a tensor stores its counters, once all have read them.

Codecs become functions, called by name; their bodies, like the kernel's, are the nodes of the graph, one to a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from torch import fx

from baoc_compile.core.names import identifier
from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.dialect.nodes import CodecCall, is_constant, meta_of, per_of, reduces
from baoc_compile.kernels.dialect.operations import name_of
from baoc_compile.kernels.triton.expressions import MEMORY, TYPES, argument, expression, narrowed, widened
from baoc_compile.kernels.triton.text import HEAD, RESERVED, STEP, UPDATE

#: Columns of a table row before the sharing of shared operands and the addresses: those named in `device_functions`.
HEADER = 4


class TritonEmitter:
    """`.source` is the module's text. Raises CannotEmit.

    `column`: of an operand's address in a row of the table. `strided`: the operands that may not be contiguous.
    """

    def __init__(self, graph: ProgramGraph):
        self.graph = graph
        self.operand = {o.name: o for o in graph.operands}
        self.nodes = [n for n in graph.graph.nodes if n.op != "output"]
        (returned,) = graph.graph.output_node().args
        self.new_value = dict(zip(graph.outputs, returned, strict=False))
        self.decays = {name: returned[len(graph.outputs) + k] for name, k in graph.decays.items()}
        self.calls: dict[str, str] = {}  # name of a codec's function -> its text
        first = HEADER + 2 * len(graph.shared)
        self.column = {o.name: first + k for k, o in enumerate(graph.pointers)}
        self.row_length = first + len(graph.pointers)
        self.strided = [o for o in graph.pointers if o.per == "element" and o.bits == 8]
        self.source = self._emit()

    def _emit(self) -> str:
        body = self._lanes()
        block = UPDATE.format(
            arguments=", ".join(self._block_arguments()),
            width=self.graph.width,
            loads=indented(self._loads()),
            body=indented(body),
            stores=indented(self._stores()),
        )
        step = STEP.format(
            row_length=self.row_length,
            pointers=indented(self._addresses()),
            scalars=indented(self._scalars()),
            width=self.graph.width,
            strided=len(self.strided),
            arguments=", ".join(self._block_arguments()),
            counters=indented(self._counters()),
        )
        return HEAD.format(title=self.graph.title) + "".join(self.calls.values()) + block + step

    # scalars

    @property
    def derived(self) -> list[fx.Node]:
        """The scalars that lanes read."""
        read = [n for n in self.nodes if any(per_of(u) in ("element", "group") for u in n.users)]
        read += [v for name, v in self.new_value.items() if self.operand[name].per != "scalar"]
        return [n for n in dict.fromkeys(read) if per_of(n) == "scalar" and not is_constant(n)]

    def _scalars(self) -> list[str]:
        lines = []
        for node in self.nodes:
            if per_of(node) != "scalar" or is_constant(node):
                continue
            if node.op != "placeholder":
                lines.append(f"{variable(node)} = {expression(node, variable)}")
                continue
            operand = self.operand[node.target]
            if operand.in_memory:
                text = widened(f"tl.load({operand.name}_ptr)", operand.dtype)
            else:
                position = self.graph.numbers.index(operand)
                text = f"tl.load(numbers + tensor * {len(self.graph.numbers)} + {position})"
                text = text if TYPES[operand.dtype] == "tl.float64" else f"{text}.to({TYPES[operand.dtype]})"
            lines.append(f"{variable(node)} = {text}")
        return lines

    def _counters(self) -> list[str]:
        """Stores of what is one number for a tensor; nothing else may follow in a program."""
        written = [(o, self.new_value[o.name]) for o in self.graph.pointers if o.written and o.per == "scalar"]
        if not written:
            return []
        lines = ["if is_last(tickets + tensor, tl.load(row + PROGRAMS)):"]
        for operand, value in written:
            text = narrowed(argument(value, operand.dtype, variable), operand.dtype)
            lines.append(f"    tl.store({operand.name}_ptr, {text})")
        return lines

    # addresses

    def _addresses(self) -> list[str]:
        lines = []
        for s, o in enumerate(self.graph.shared):
            lines.append(f"{o.name}_run = tl.load(row + {HEADER + 2 * s})")
            lines.append(f"{o.name}_cycle = tl.load(row + {HEADER + 2 * s + 1})")
        for o in self.graph.pointers:
            aligned = "ALIGNED" if o.per == "element" else "False"
            lines.append(f"{o.name}_ptr = address(row, {self.column[o.name]}, {MEMORY[o.dtype]}, {aligned})")
        return lines

    def _block_arguments(self) -> list[str]:
        pointers = [f"{o.name}_ptr" for o in self.graph.pointers if o.per != "scalar"]
        sets = [f"{o.name}_{what}" for o in self.graph.shared for what in ("run", "cycle")]
        return [*pointers, *sets, *map(variable, self.derived)]

    # lanes

    def _sizes(self) -> list[int]:
        return sorted({o.group_size for o in self.graph.operands if o.per == "group"})

    def _loads(self) -> list[str]:
        lines = []
        for size in self._sizes():
            lines.append(f"groups_{size} = tl.arange(0, ROWS * {self.graph.width // size})[:, None]")
        for node in self.nodes:
            operand = self.operand[node.target] if node.op == "placeholder" else None
            if operand is not None and operand.read and operand.per in ("element", "group", "shared"):
                lines.append(f"{variable(node)} = {self._load(operand)}")
        return lines

    def _load(self, o: Operand) -> str:
        if o.source == "index":
            return f"fold_index(first_index + start, lanes, tl.arange(0, ROWS)[:, None] * {self.graph.width})"
        if o.source == "group_index":
            groups = f"groups_{o.group_size} * {o.group_size}"
            return f"fold_index(first_index + start, {groups}, {groups})"
        if o.per == "shared":
            return f"tl.load({o.name}_ptr + set_index(start, lanes, {o.name}_run, {o.name}_cycle, ROWS * {self.graph.width}))"
        if o.per == "group":
            return widened(f"load({o.name}_ptr, start // {o.group_size}, {self._groups(o)}, FULL)", o.dtype)
        if o.bits == 4:
            return f"load_packed({o.name}_ptr, start, lanes, count, FULL)"
        return widened(f"load_element({o.name}_ptr, start, lanes, mask, {self._layout(o)}, FULL, STRIDED)", o.dtype)

    def _groups(self, o: Operand) -> str:
        return f"groups_{o.group_size}, groups_{o.group_size} * {o.group_size} < count"

    def _layout(self, o: Operand) -> str:
        return f"layout + {self.strided.index(o)} * LAYOUT"

    def _stores(self) -> list[str]:
        lines = []
        for o in self.graph.pointers:
            if not o.written or o.per in ("scalar", "shared"):
                continue
            value = narrowed(self._stored_text(self.new_value[o.name], o), o.dtype)
            if o.per == "group":
                groups = f"groups_{o.group_size}"
                lines.append(
                    f"store({o.name}_ptr, start // {o.group_size}, {groups}, {value}, "
                    f"{groups} * {o.group_size} < count, FULL)"
                )
            elif o.bits == 4:
                lines.append(f"store_packed({o.name}_ptr, start, lanes, {value}, count, FULL)")
            else:
                layout = self._layout(o)
                lines.append(f"store_element({o.name}_ptr, start, lanes, {value}, mask, {layout}, FULL, STRIDED)")
        return lines

    def _stored_text(self, value: fx.Node, o: Operand) -> str:
        text = argument(value, o.dtype, variable)
        if per_of(value) == o.per:
            return text
        return f"tl.zeros_like(lanes).to({TYPES[o.dtype]}) + {text}"

    def _lanes(self) -> list[str]:
        """The element and group values, codec by codec."""
        nodes = [n for n in self.nodes if per_of(n) in ("element", "group") and n.op != "placeholder"]
        lines: list[str] = []
        for call, members in groupby(nodes, lambda n: meta_of(n).call):
            if call is None:
                lines += [f"{variable(n)} = {expression(n, variable)}" for n in members]
            else:
                lines.append(self._called(call, list(members)))
        return lines

    def _called(self, call: CodecCall, members: Sequence[fx.Node]) -> str:
        """Moves a codec's nodes into a function; returns the line that calls it."""
        inside = set(members)
        outside = dict.fromkeys(i for n in members for i in _inputs(n) if i not in inside)
        returned = [n for n in members if n in self.new_value.values() or any(u not in inside for u in n.users)]
        local = _local_names([*outside, *members], identifier(call.slot))
        masked = any(reduces(n) for n in members)
        parameters = [local[n] for n in outside] + (["mask", "FULL: tl.constexpr"] if masked else [])
        body = [f"{local[n]} = {expression(n, lambda i: local[i])}" for n in members]
        body.append(f"return {', '.join(local[n] for n in returned)}")
        name = self._function_name(f"{identifier(call.codec)}_{call.verb}", parameters, body)
        given = [variable(n) for n in outside]
        given += ["mask", "FULL"] if masked else []
        return f"{', '.join(map(variable, returned))} = {name}({', '.join(given)})"

    def _function_name(self, wanted: str, parameters: list[str], body: list[str]) -> str:
        """A new function, or the one of the same text."""
        for suffix in range(1, len(self.calls) + 2):
            name = wanted if suffix == 1 else f"{wanted}_{suffix}"
            text = f"@triton.jit\ndef {name}({', '.join(parameters)}):\n{indented(body)}\n\n"
            if self.calls.setdefault(name, text) == text:
                return name
        raise AssertionError("unreachable: the last name is free")


def variable(node: fx.Node) -> str:
    """The name of a value in the kernel."""
    name = f"{node.name}_" if node.name in RESERVED else node.name
    return f"{name}_ptr" if per_of(node) == "codebook" else name


def _inputs(node: fx.Node) -> list[fx.Node]:
    """What a node reads, with stored tables in place of what is computed from them."""
    found: list[fx.Node] = []
    for i in node.all_input_nodes:
        if is_constant(i):
            continue
        found += _inputs(i) if per_of(i) == "codebook" and i.op != "placeholder" else [i]
    if name_of(node.target) == "take" and name_of(node.args[1].target) == "_to_copy":
        found.append(node.args[1].args[0])
    return found


def _local_names(nodes: Iterable[fx.Node], slot: str) -> dict[fx.Node, str]:
    """Names without the slot's key, as far as they stay distinct."""
    names: dict[fx.Node, str] = {}
    for node in nodes:
        short = node.name.removeprefix(f"{slot}_")
        short = node.name if short in names.values() or short in RESERVED or not short.isidentifier() else short
        names[node] = f"{short}_ptr" if per_of(node) == "codebook" else short
    return names


def indented(lines: Iterable[str], levels: int = 1) -> str:
    return "\n".join("    " * levels + line for line in lines)
