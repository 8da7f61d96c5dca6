"""Run recorded calls again, on real tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Call, Value


def run_calls(calls: Iterable[Call], values: dict[Any, Any]) -> None:
    """Make the calls, in order.

    values: the tensor or number of every value and expression that the calls read; gets those of their results.
    """

    def real(argument: Any) -> Any:
        if isinstance(argument, (Value, Expression)):
            return values[argument]
        if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
            return type(argument)(map(real, argument))
        return argument

    for call in calls:
        result = call.function(*map(real, call.arguments), **{k: real(v) for k, v in call.options.items()})
        if call.is_inplace:
            values[call.results[0]] = values[call.arguments[0]]
        elif call.is_sequence:
            values |= dict(zip(call.results, result, strict=True))
        else:
            values[call.results[0]] = result
