"""Run recorded calls again, on real tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from baoc_compile.passes.capture.split_pieces import values_in
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Call, Value


def run_calls(calls: Iterable[Call], values: dict[Any, Any]) -> None:
    """Make the calls, in order.

    values: the tensor or number of every value and expression that the calls read; gets those of their results.
    """
    for call in calls:
        run_call(call, values)


def run_call(call: Call, values: dict[Any, Any]) -> None:
    """Make one call; see `run_calls`."""
    arguments = [_real(a, values) for a in call.arguments]
    result = call.function(*arguments, **{k: _real(v, values) for k, v in call.options.items()})
    if call.is_inplace:
        values[call.results[0]] = values[call.arguments[0]]
    elif call.is_sequence:
        values |= dict(zip(call.results, result, strict=True))
    else:
        values[call.results[0]] = result


def last_uses(calls: Sequence[Call], kept: Collection[Value]) -> list[list[Value]]:
    """Return, for every call, the values that no later call has to do with, but for those in `kept`."""
    last = {value: k for k, call in enumerate(calls) for value in (*values_in(call), *call.results)}
    found: list[list[Value]] = [[] for _ in calls]
    for value, k in last.items():
        if value not in kept:
            found[k].append(value)
    return found


def _real(argument: Any, values: dict[Any, Any]) -> Any:
    if isinstance(argument, (Value, Expression)):
        return values[argument]
    if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
        return type(argument)([_real(a, values) for a in argument])
    return argument
