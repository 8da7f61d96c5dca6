"""Traced numbers: Python numbers that remember how they were computed.

A traced float is a float, with the same arithmetic, so that a step that computes with it gets the numbers that it would
have got. It notes a guard wherever the step looks at its value: a comparison, a truth, a conversion.

A traced int is a subclass of float too. `0.9 ** n` with a subclass of int never asks n, since float's own operator
takes ints; it asks a subclass of float.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from baoc_compile.passes.numbers.element_numbers import ElementNumber
from baoc_compile.passes.numbers.expressions import Expression, NumberTrace


class TracedNumber(float):
    """A number with an expression.

    expression: how it is computed.
    trace: the recording's numbers.
    """

    expression: Expression
    trace: NumberTrace

    @property
    def plain(self) -> Any:
        """The number itself, and a guard for its value: how the step uses it can't be followed."""
        value = plain_value(self)
        self.trace.guard(self.expression, value, is_truth=False)
        return value

    def __bool__(self) -> bool:
        truth = bool(plain_value(self))
        self.trace.guard(self.expression, truth, is_truth=True)
        return truth

    def __int__(self) -> int:
        return int(self.plain)

    def __float__(self) -> float:
        return float(self.plain)

    def __hash__(self) -> int:
        return hash(self.plain)

    def __str__(self) -> str:
        return str(self.plain)

    def __format__(self, specification: str) -> str:
        return format(self.plain, specification)

    def __round__(self, *digits: Any) -> Any:
        return round(self.plain, *digits)

    def __trunc__(self) -> int:
        return math.trunc(self.plain)

    def __floor__(self) -> int:
        return math.floor(self.plain)

    def __ceil__(self) -> int:
        return math.ceil(self.plain)

    def is_integer(self) -> bool:
        return float(self.plain).is_integer()

    def as_integer_ratio(self) -> tuple[int, int]:
        return self.plain.as_integer_ratio()

    def hex(self) -> str:
        return float(self.plain).hex()

    @property
    def real(self) -> Any:  # type: ignore[override]
        return self

    @property
    def imag(self) -> Any:  # type: ignore[override]
        return type(self.plain)(0)

    def conjugate(self) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self.plain), (self.plain,)

    def __copy__(self) -> TracedNumber:
        return self

    def __deepcopy__(self, memo: Any) -> TracedNumber:
        return self

    __repr__ = __str__


class TracedFloat(TracedNumber):
    """A traced float."""


class TracedInt(TracedNumber):
    """A traced int. Its own value is the float nearest to it; `exact` is the int."""

    exact: int

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(number, int) is true
        return int

    def __index__(self) -> int:
        return self.plain

    def bit_length(self) -> int:
        return self.plain.bit_length()

    @property
    def numerator(self) -> Any:
        return self

    def __lshift__(self, other: Any) -> int:
        return self.plain << other

    def __rshift__(self, other: Any) -> int:
        return self.plain >> other

    def __and__(self, other: Any) -> int:
        return self.plain & other

    def __or__(self, other: Any) -> int:
        return self.plain | other

    def __xor__(self, other: Any) -> int:
        return self.plain ^ other


def is_traced(value: Any) -> bool:
    """Return whether the value is a traced number. (`isinstance` would ask a traced int for its class.)"""
    return type(value) is TracedFloat or type(value) is TracedInt


def plain_value(value: Any) -> Any:
    """Return a number without its trace, and without a guard; any other value unchanged."""
    if type(value) is TracedInt:
        return value.exact
    if type(value) is ElementNumber:
        return math.nan
    return float.__float__(value) if type(value) is TracedFloat else value


def traced(trace: NumberTrace, expression: Expression, value: Any) -> Any:
    """Return `value`, an int or a float, as a traced number."""
    if type(value) is int:
        try:
            number: TracedNumber = TracedInt(value)
        except OverflowError:  # no float is near: the number can't be traced
            trace.guard(expression, value, is_truth=False)
            return value
        number.exact = value  # type: ignore[attr-defined]
    else:
        number = TracedFloat(value)
    number.expression, number.trace = expression, trace
    return number


def computed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)`, traced if it is an int or a float. At least one argument is a traced number."""
    value = function(*map(plain_value, arguments))
    trace = next(a.trace for a in arguments if is_traced(a))
    expression = trace.of(function, [a.expression if is_traced(a) else a for a in arguments], value)
    if type(value) in (int, float):
        return traced(trace, expression, value)
    if type(value) is bool:
        trace.guard(expression, value, is_truth=True)
        return value
    trace.guard(expression, value, is_truth=False)
    return value


def _binary(function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: TracedNumber, other: Any) -> Any:
        return computed(function, self, other) if is_number(other) else NotImplemented

    def reverse(self: TracedNumber, other: Any) -> Any:
        return computed(function, other, self) if is_number(other) else NotImplemented

    return forward, reverse


def is_number(value: Any) -> bool:
    return type(value) in (int, float, bool, TracedInt, TracedFloat)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _forward, _reverse = _binary(getattr(operator, _name))
    setattr(TracedNumber, f"__{_name}__", _forward)
    setattr(TracedNumber, f"__r{_name}__", _reverse)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(TracedNumber, f"__{_name}__", _binary(getattr(operator, _name))[0])
_forward, _reverse = _binary(divmod)
TracedNumber.__divmod__ = lambda self, other: (self // other, self % other)  # type: ignore[assignment]
TracedNumber.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore[assignment]
TracedNumber.__neg__ = lambda self: computed(operator.neg, self)  # type: ignore[assignment]
TracedNumber.__abs__ = lambda self: computed(operator.abs, self)  # type: ignore[assignment]
TracedNumber.__pos__ = lambda self: self  # type: ignore[assignment]
