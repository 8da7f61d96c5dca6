"""Recording: what one step of an optimizer computes, as calls of torch on tensors that it names by their role."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from baoc_compile.core.parameter_table import InputRole
from baoc_compile.passes.numbers.expressions import Expression, Guard, Source
from baoc_compile.passes.recorder.torch_calls import VIEWS


class Value:
    """A tensor at one moment of the step: an input, or the result of a call.

    shape, dtype: of the tensor.
    role: what it is to the optimizer, for an input; else None.
    call: the call that gave it its elements; None for an input.
    group: the group of values to which it belongs; None for a value that no parameter owns.
    """

    __slots__ = ("call", "dtype", "group", "role", "shape")

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        role: InputRole | None = None,
        call: Call | None = None,
        group: ValueGroup | None = None,
    ):
        self.shape, self.dtype, self.role, self.call, self.group = shape, dtype, role, call, group

    @property
    def ndim(self) -> int:
        return len(self.shape)


class ValueGroup:
    """Values that calls join: in the end, one group is a piece. It is a node of a union-find forest.

    parameters: indices of the parameters whose tensors are in the group.
    reason: why its update is not elementwise, as far as the recording shows; empty if it does not.
    """

    __slots__ = ("parameters", "parent", "reason")

    def __init__(self, parameters: set[int]):
        self.parameters, self.parent, self.reason = parameters, self, ""

    def root(self) -> ValueGroup:
        group = self
        while group.parent is not group:
            group.parent = group.parent.parent
            group = group.parent
        return group

    def join(self, other: ValueGroup) -> ValueGroup:
        """Join two groups; return the group of both."""
        first, second = self.root(), other.root()
        if first is second:
            return first
        if len(second.parameters) > len(first.parameters):
            first, second = second, first
        second.parent = first
        first.parameters |= second.parameters
        first.reason = first.reason or second.reason
        return first


class Call:
    """One call of torch.

    name: canonical name of the operation, such as "add".
    function: the function that was called, for one tensor where the step called it for a list.
    is_inplace: whether it changes its first argument.
    arguments, options: positional and named arguments; tensors are `Value`s, numbers that are computed `Expression`s.
    results: its results; for an in-place call, the new value of its first argument.
    is_sequence: whether it returned a tuple or a list.
    group: the group of values with which it is computed; None for the prelude. Of a reduction, the result belongs to no group.
    """

    __slots__ = ("arguments", "function", "group", "is_inplace", "is_sequence", "name", "options", "results")

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        is_inplace: bool,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
    ):
        self.name, self.function, self.is_inplace = name, function, is_inplace
        self.arguments, self.options = tuple(arguments), dict(options)
        self.results: tuple[Value, ...] = ()
        self.is_sequence = False
        self.group: ValueGroup | None = None


def values_in(argument: Any) -> list[Value]:
    """Return the values among the arguments of a call, or in nested lists, in order."""
    if isinstance(argument, Value):
        return [argument]
    if isinstance(argument, Call):
        return values_in([*argument.arguments, *argument.options.values()])
    return [v for a in argument for v in values_in(a)] if isinstance(argument, (list, tuple)) else []


def origin_of(value: Value) -> Value:
    """Follow in-place calls, and views, back to the value that the tensor had first."""
    while value.call is not None and (value.call.is_inplace or value.call.name in VIEWS):
        value = values_in(value.call)[0]
    return value


@dataclass(eq=False)
class Piece:
    """The update of one parameter, or of several that the optimizer mixes.

    parameters: their indices, ascending.
    calls: the calls, in the order of the step.
    inputs: the tensors that the calls read first, in order.
    scalars: the numbers that the calls take: expressions, and 0-dim values that no parameter owns.
    constants: the numbers that the step has literally, in order.
    final: the last value of each input.
    created: state entries that the step makes, and their values.
    written: values that are written to places outside of tensors.
    exported: numbers that it computes for the prelude or for other pieces.
    signature: equal for pieces of the same structure.
    reason: why the piece is not elementwise, as far as the recording shows.
    """

    parameters: tuple[int, ...]
    calls: list[Call]
    inputs: list[Value] = field(default_factory=list)
    scalars: list[Expression | Value] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    final: list[Value] = field(default_factory=list)
    created: list[tuple[InputRole, Value]] = field(default_factory=list)
    written: list[Value] = field(default_factory=list)
    exported: list[Value] = field(default_factory=list)
    signature: Hashable = None
    reason: str = ""


@dataclass(frozen=True)
class Condition:
    """A condition on elements under which the step does the same again.

    value: a truth value, a tensor of one element.
    expected: what it has to be.
    """

    value: Value
    expected: bool


@dataclass(frozen=True)
class Write:
    """A change of the optimizer besides its tensors: the entry at a path gets a value.

    source: where the entry is.
    value: an expression, a constant, or a `Value`: a number of elements, or a tensor of one.
    dtype: type of a 0-dim tensor, which is changed in place; None for Python numbers and other constants.
    """

    source: Source
    value: Any
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Beginning:
    """The first value of a state entry: how the step would make it.

    kind: every element is `value` ("filled"), or it is a copy of the parameter ("parameter"); a "number" is a 0-dim
        tensor, a Python number or another constant.
    value: an expression or a constant.
    dtype: the type of a tensor; None for a Python number.
    shape: the shape of a tensor that is no number.
    """

    kind: Literal["filled", "parameter", "number"]
    value: Any = None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Returned:
    """What a step returns.

    kind: nothing, what its closure returned, or a number; its `constant`'s text stands for a number that is always the same.
    number: the number: an expression or a constant.
    """

    kind: Literal["none", "loss", "number"]
    number: Any = field(default=None, compare=False)
    constant: str = ""


@dataclass(eq=False)
class Recording:
    """One step, recorded.

    pieces: the updates.
    prelude: calls that belong to no parameter: they run once, before all updates.
    late: those of them that wait for what pieces export.
    conditions: what must hold of elements; it is known after the prelude, before anything has changed.
    guards: the conditions on numbers under which the step does the same again.
    writes: what else it changes.
    beginnings: parameter index -> state key -> its first value, for the entries that the step makes.
    sources: the numbers that it read, with their values.
    constants: what the step may look at besides numbers: path -> value (of a number, its type).
    surroundings: globals that the step names; see `Surroundings`.
    options: the keys of parameter groups that the step looked at.
    returns: what the step returns.
    reads_gradients: whether the prelude reads tensors of parameters, or several of these are mixed or stacked, so that it depends
        on which gradients exist.
    """

    pieces: list[Piece]
    prelude: list[Call]
    guards: list[Guard]
    writes: list[Write]
    beginnings: dict[int, dict[str, Beginning]]
    sources: Mapping[Source, Expression] = field(default_factory=dict)
    constants: Mapping[Any, Any] = field(default_factory=dict)
    surroundings: list[Any] = field(default_factory=list)
    options: frozenset[Any] = frozenset()
    returns: Returned = Returned("none")
    reads_gradients: bool = False
    late: list[Call] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)

    def was_made_for(self, constants: Mapping[Source, Any]) -> bool:
        """Return whether the step would see the same constants; options that it does not look at don't count."""
        return self._seen(self.constants) == self._seen(constants)

    def _seen(self, constants: Mapping[Source, Any]) -> dict[Source, Any]:
        return {s: c for s, c in constants.items() if s.kind != "group" or s.path[1] in self.options}
