"""The base of all emitters: a view of a program's graph, and the text to make from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import cached_property
from typing import Any, ClassVar

from torch import fx

from baoc_compile.core.program_graph import Operand, ProgramGraph
from baoc_compile.kernels.dialect.nodes import is_constant, is_in_lanes, per_of
from baoc_compile.kernels.dialect.variables import Variables


class Emitter(ABC):
    """Base class of the emitters, which turn a program graph into source text.

    graph: the program's graph.
    nodes: its nodes in order, without the output node.
    operand: operand name -> operand.
    placeholder: operand name -> its node.
    new_value: name of a written operand -> the node to store.
    decays: name of an averaged operand -> the node of its decay.
    variables: the variables of the text.
    """

    #: Reserved words of the language, which no variable may be named.
    keywords: ClassVar[Collection[str]]

    def __init__(self, graph: ProgramGraph):
        self.graph = graph
        self.nodes: list[fx.Node] = [n for n in graph.graph.nodes if n.op != "output"]
        self.operand: dict[str, Operand] = {o.name: o for o in graph.operands}
        self.placeholder: dict[str, fx.Node] = {str(n.target): n for n in self.nodes if n.op == "placeholder"}
        returned: Any = graph.graph.output_node().args[0]
        self.new_value: dict[str, fx.Node] = dict(zip(graph.outputs, returned, strict=False))
        self.decays: dict[str, fx.Node] = {name: returned[len(graph.outputs) + k] for name, k in graph.decays.items()}
        self.variables = Variables(self.keywords)

    @cached_property
    def source(self) -> str:
        """The complete source text, which needs no other file of this project."""
        return self.before + self.body + self.after

    @property
    @abstractmethod
    def body(self) -> str:
        """The text of this program alone, without the parts shared by all programs. Raises CannotEmit."""

    @property
    @abstractmethod
    def before(self) -> str:
        """The shared text that stands before the body."""

    @property
    def after(self) -> str:
        """The shared text that stands after the body."""
        return ""

    @property
    def title(self) -> str:
        """The graph's title, escaped to fit a one-line comment."""
        return ascii(self.graph.title)[1:-1]

    def operand_of(self, node: fx.Node) -> Operand | None:
        """Return the operand that a placeholder stands for; None for other nodes."""
        return self.operand[str(node.target)] if node.op == "placeholder" else None

    def variable(self, operand: Operand, role: str) -> str:
        """Return a variable that belongs to an operand, such as its pointer or its buffer."""
        return self.variables(self.placeholder[operand.name], role)

    @cached_property
    def scalars(self) -> list[fx.Node]:
        """The values computed once per tensor, in order."""
        return [n for n in self.nodes if per_of(n) == "scalar" and not is_constant(n)]

    @cached_property
    def derived(self) -> list[fx.Node]:
        """The scalars read where elements and groups are computed, stored or averaged."""
        read = [n for n in self.nodes if any(is_in_lanes(user) for user in n.users)]
        read += [value for name, value in self.new_value.items() if self.operand[name].per != "scalar"]
        read += self.decays.values()
        return [n for n in dict.fromkeys(read) if per_of(n) == "scalar" and not is_constant(n)]

    @property
    def new_scalars(self) -> list[tuple[Operand, fx.Node]]:
        """Operands that hold one number per tensor, with their new values."""
        found = ((self.operand[name], value) for name, value in self.new_value.items())
        return [(operand, value) for operand, value in found if operand.per == "scalar"]
