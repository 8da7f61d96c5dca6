"""Expressions: how a number of a step is computed from the numbers that the optimizer keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Owner = int  # a parameter's index, or one of the two below
NOBODY, SEVERAL = -1, -2


@dataclass(frozen=True)
class Attribute:
    """A key of a path that is the name of an attribute."""

    name: str


@dataclass(frozen=True)
class Source:
    """Where an optimizer keeps a number.

    kind: in `param_groups` ("group"), in the state of a parameter ("state"), or in an attribute ("attribute").
    path: the keys that lead to it: a group's number and its keys, a state's keys, or an attribute's name and its keys.
    parameter: the parameter's index, for "state"; else -1.
    is_tensor: whether it is a 0-dim tensor on the host rather than a Python number.
    """

    kind: Literal["group", "state", "attribute"]
    path: tuple[Any, ...]
    parameter: int = NOBODY
    is_tensor: bool = False

    def __str__(self) -> str:
        names = {"group": "param_groups", "state": "state", "attribute": "self"}
        return names[self.kind] + "".join(f"[{key!r}]" for key in self.path)


class Expression:
    """A number: a source, or a function of other expressions and of constants.

    function: what computes it; None for a source.
    arguments: expressions and constants.
    source: where it is kept, for a source.
    owner: the parameter from whose state it is computed; `NOBODY`, or `SEVERAL`.
    value: the number when the step was recorded.
    template: equal for two numbers of one recording that are the same function of the same sources, the state of the
        owner counting as the same for all owners.
    """

    __slots__ = ("arguments", "function", "owner", "source", "template", "value")

    def __init__(
        self,
        function: Callable[..., Any] | None,
        arguments: tuple[Any, ...],
        source: Source | None,
        owner: Owner,
        template: int,
        value: Any,
    ):
        self.function, self.arguments, self.source = function, arguments, source
        self.owner, self.template, self.value = owner, template, value


@dataclass
class Guard:
    """A condition that a recording relies on: the truth of an expression, or its value.

    expression: the number.
    expected: its truth or its value.
    is_truth: whether only its truth counts.
    """

    expression: Expression
    expected: Any
    is_truth: bool


@dataclass
class NumberTrace:
    """The numbers of one recording: equal expressions are one object.

    sources: the numbers that the optimizer keeps.
    guards: the conditions, in the order in which the step asked for them.
    """

    guards: list[Guard] = field(default_factory=list)
    sources: dict[Source, Expression] = field(default_factory=dict)
    _expressions: dict[Any, Expression] = field(default_factory=dict)
    _templates: dict[Any, int] = field(default_factory=dict)
    _guarded: set[Any] = field(default_factory=set)

    def of_source(self, source: Source, value: Any) -> Expression:
        """Return the expression of a number that the optimizer keeps."""
        found = self._expressions.get(source)
        if found is None:
            own = ("own", source.path, source.is_tensor) if source.kind == "state" else source
            found = Expression(None, (), source, source.parameter, self._template(own), value)
            self._expressions[source] = self.sources[source] = found
        return found

    def of(self, function: Callable[..., Any], arguments: Sequence[Any], value: Any) -> Expression:
        """Return `function(*arguments)`, whose value is `value`; at least one argument is an expression."""
        key = (function, *(a if isinstance(a, Expression) else _constant(a) for a in arguments))
        found = self._expressions.get(key)
        if found is None:
            owners = {a.owner for a in arguments if isinstance(a, Expression)} - {NOBODY}
            owner = owners.pop() if len(owners) == 1 else SEVERAL if owners else NOBODY
            parts = (a.template if isinstance(a, Expression) else _constant(a) for a in arguments)
            # what several parameters' numbers give is no function of one owner: it has a template of its own
            template = self._template((function, *parts) if owner != SEVERAL else key)
            found = self._expressions[key] = Expression(function, tuple(arguments), None, owner, template, value)
        return found

    def guard(self, expression: Expression, expected: Any, *, is_truth: bool) -> None:
        """Note that the recording holds only as long as the expression has this truth, or this value."""
        sources = map(self.sources.get, sources_of(expression))
        if expression.source is None and all((source, False) in self._guarded for source in sources):
            return  # of values that are guarded themselves: whether a dictionary compares a key depends on the key's object
        if (expression, is_truth) not in self._guarded:
            self._guarded.add((expression, is_truth))
            self.guards.append(Guard(expression, expected, is_truth))

    @property
    def compared_by_value(self) -> frozenset[Source]:
        """The sources that the recording relies on to have the values that they have."""
        return frozenset(
            s for g in self.guards if not g.is_truth for s in sources_of(g.expression) if s.kind != "state"
        )

    def _template(self, key: Any) -> int:
        return self._templates.setdefault(key, len(self._templates))


def _constant(value: Any) -> tuple[type, str]:
    return type(value), repr(value)  # repr distinguishes 0.0 from -0.0


def sources_of(expression: Any) -> set[Source]:
    """Return everything that an expression is computed from; nothing for a constant."""
    found: set[Source] = set()
    stack, seen = [expression], set()
    while stack:
        current = stack.pop()
        if isinstance(current, Expression) and current not in seen:
            seen.add(current)
            stack += current.arguments
            if current.source is not None:
                found.add(current.source)
    return found
