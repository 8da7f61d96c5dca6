"""Compile expressions to a Python function: each distinct expression is computed once, as the step computes it.

The function checks the guards first, in the order in which the step met them, since what comes after a guard may only be
defined if it holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from baoc_compile.passes.numbers.expressions import Expression, Guard, Source

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


@dataclass(frozen=True)
class NumberFunction:
    """A function of the numbers that an optimizer keeps.

    sources: what it takes, in order.
    function: takes their values. Returns the values of the expressions it was made of, or None if a guard fails.
    source_text: its code; equal for equal functions.
    """

    sources: tuple[Source, ...]
    function: Callable[..., Any]
    source_text: str

    def __call__(self, values: Sequence[Any]) -> tuple[Any, ...] | None:
        return self.function(*values)


def compile_numbers(guards: Iterable[Guard], wanted: Sequence[Any]) -> NumberFunction:
    """Return the function that checks `guards` and computes `wanted`, expressions and constants."""
    writer = _Writer()
    for guard in guards:
        name = writer.name(guard.expression)
        if guard.is_truth:
            writer.lines.append(f"    if {'not ' if guard.expected else ''}{name}: return None")
        else:
            writer.lines.append(f"    if {name} != {writer.constant(guard.expected)}: return None")
    returned = "".join(f"{writer.name(value)}, " for value in wanted)
    taken = ", ".join(f"s{i}" for i in range(len(writer.sources)))
    text = "\n".join([f"def numbers({taken}):", *writer.lines, f"    return ({returned})"])
    namespace: dict[str, Any] = dict(writer.constants)
    exec(compile(text, "<numbers of a step>", "exec"), namespace)
    described = "\n".join([text, *(f"{k} = {v!r}" for k, v in writer.constants.items())])
    return NumberFunction(tuple(writer.sources), namespace["numbers"], described)


class _Writer:
    """A writer of straight-line code, in which every expression is one variable."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sources: list[Source] = []
        self.constants: dict[str, Any] = {}
        self._names: dict[Expression, str] = {}

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
        if expression.source is not None:
            self._names[expression] = f"s{len(self.sources)}"
            self.sources.append(expression.source)
            return
        arguments = [self._names[a] if isinstance(a, Expression) else self.constant(a) for a in expression.arguments]
        symbol = _OPERATORS.get(expression.function)  # type: ignore[arg-type]
        if symbol is not None and len(arguments) == 2:
            text = f"{arguments[0]} {symbol} {arguments[1]}"
        else:
            text = f"{self._held(expression.function)}({', '.join(arguments)})"
        self._names[expression] = name = f"n{len(self._names)}"
        self.lines.append(f"    {name} = {text}")

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
