"""Compile expressions to a Python function: each distinct expression is computed once, as the step computes it.

The function checks the guards in the order in which the step met them, since what comes after a guard may only be defined if
it holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from baoc_compile.passes.numbers.expressions import NOBODY, Expression, Guard, Source

_OPERATORS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


class GuardFailed(Exception):
    """The numbers are not those for which the step was recorded."""


@dataclass(frozen=True)
class NumberFunction:
    """A function of the numbers that an optimizer keeps, computed for several parameters at once.

    shared: sources that are the same for all of them, in order.
    own: sources in a parameter's own state, in order.
    function: takes the values of `shared`, and for each parameter a row of the values of `own`. Returns a tuple for each row,
        the values of the expressions that the function was made of; None if a guard fails for one.
    source_text: its code; equal for equal functions.
    """

    shared: tuple[Source, ...]
    own: tuple[Source, ...]
    function: Callable[[Sequence[Any], Sequence[Sequence[Any]]], list[tuple[Any, ...]] | None]
    source_text: str

    def __call__(self, shared: Sequence[Any], rows: Sequence[Sequence[Any]] = ((),)) -> list[tuple[Any, ...]]:
        """Return the values for each row. Raises GuardFailed if a guard fails, or where the step itself would fail."""
        try:
            found = self.function(shared, rows)
        # a function of math outside its domain, or numbers of another kind
        except (ArithmeticError, ValueError, TypeError) as error:
            raise GuardFailed(str(error)) from error
        if found is None:
            raise GuardFailed
        return found


def compile_numbers(guards: Iterable[Guard], wanted: Sequence[Any], owner: int = NOBODY) -> NumberFunction:
    """Return the function that checks `guards` and computes `wanted`, expressions and constants.

    owner: the parameter whose state the function takes as rows. What depends on no row is computed once.
    """
    writer = _Writer(owner)
    for guard in guards:
        name = writer.name(guard.expression)
        lines = writer.lines_of(name)
        if guard.is_truth:
            lines.append(f"if {'not ' if guard.expected else ''}{name}: return None")
        else:
            lines.append(f"if {name} != {writer.constant(guard.expected)}: return None")
    returned = "".join(f"{writer.name(value)}, " for value in wanted)
    text = "\n".join(
        [
            "def numbers(shared, rows):",
            *(f"    s{i} = shared[{i}]" for i in range(len(writer.shared))),
            *(f"    {line}" for line in writer.once),
            "    found = []",
            f"    for ({''.join(f'r{i}, ' for i in range(len(writer.own)))}) in rows:",
            *(f"        {line}" for line in writer.for_each),
            f"        found.append(({returned}))",
            "    return found",
        ]
    )
    namespace: dict[str, Any] = dict(writer.constants)
    exec(compile(text, "<numbers of a step>", "exec"), namespace)
    described = "\n".join([text, *(f"{k} = {v!r}" for k, v in writer.constants.items())])
    return NumberFunction(tuple(writer.shared), tuple(writer.own), namespace["numbers"], described)


class _Writer:
    """A writer of straight-line code, in which every expression is one variable.

    once, for_each: the lines that depend on no row, and those that do.
    """

    def __init__(self, owner: int) -> None:
        self.once: list[str] = []
        self.for_each: list[str] = []
        self.shared: list[Source] = []
        self.own: list[Source] = []
        self.constants: dict[str, Any] = {}
        self._owner = owner
        self._names: dict[Expression, str] = {}
        self._of_rows: set[str] = set()

    def lines_of(self, *names: str) -> list[str]:
        """Return the lines to which belongs what is computed from these variables."""
        return self.once if self._of_rows.isdisjoint(names) else self.for_each

    def name(self, value: Any) -> str:
        """Return the variable or literal of a value, after writing what computes it."""
        if not isinstance(value, Expression):
            return self.constant(value)
        stack = [value]
        while stack:
            current = stack[-1]
            if current in self._names:
                stack.pop()
                continue
            missing = [a for a in current.arguments if isinstance(a, Expression) and a not in self._names]
            if missing:
                stack += missing
                continue
            self._write(current)
            stack.pop()
        return self._names[value]

    def _write(self, expression: Expression) -> None:
        source = expression.source
        if source is not None:
            is_own = source.kind == "state" and source.parameter == self._owner
            sources, letter = (self.own, "r") if is_own else (self.shared, "s")
            self._names[expression] = name = f"{letter}{len(sources)}"
            sources.append(source)
            if is_own:
                self._of_rows.add(name)
            return
        arguments = [self._names[a] if isinstance(a, Expression) else self.constant(a) for a in expression.arguments]
        symbol = _OPERATORS.get(expression.function)  # type: ignore[arg-type]
        if symbol is not None and len(arguments) == 2:
            text = f"{arguments[0]} {symbol} {arguments[1]}"
        else:
            text = f"{self._held(expression.function)}({', '.join(arguments)})"
        self._names[expression] = name = f"n{len(self._names)}"
        lines = self.lines_of(*arguments)
        lines.append(f"{name} = {text}")
        if lines is self.for_each:
            self._of_rows.add(name)

    def constant(self, value: Any) -> str:
        if type(value) is int and value >= 0:
            return repr(value)
        return self._held(value)

    def _held(self, value: Any) -> str:
        for name, held in self.constants.items():
            if held is value or (type(held) is type(value) and type(value) is float and repr(held) == repr(value)):
                return name
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name
