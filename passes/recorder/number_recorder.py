"""The part of a recorder that computes with 0-dim tensors on the host, which are numbers."""

from __future__ import annotations

import builtins
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.passes.numbers.expressions import Expression, NumberTrace, Source, sources_of
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value, traced

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


@dataclass(eq=False)
class HostNumber:
    """A 0-dim tensor on the host.

    tensor: the tensor, with its value.
    expression: how the value is computed; None if it is a constant.
    source: where the optimizer keeps it; None for other tensors.
    initial: the expression that it began with.
    """

    tensor: Tensor
    expression: Expression | None
    source: Source | None = None
    initial: Expression | None = None


class HoldsElements(UnsupportedStep):
    """0-dim state on the host turned out to hold elements.

    entry: parameter index and state key.
    """

    def __init__(self, held: HostNumber):
        super().__init__("it writes elements into a 0-dim tensor")
        sources = [held.source] if held.source is not None else sources_of(held.expression)
        found = sorted((s.parameter, s.path[0]) for s in sources if s.kind == "state")
        self.entry = found[0] if found else None


class NumberRecorder(TorchFunctionMode):
    """Base class of the recorder.

    trace: the numbers.
    numbers: id of a 0-dim tensor on the host -> what it holds.
    """

    def __init__(self, trace: NumberTrace):
        super().__init__()
        self.trace = trace
        self.numbers: dict[int, HostNumber] = {}
        self._kept: list[Any] = []  # keeps ids unique

    def enter_number(self, tensor: Tensor, expression: Expression | None, source: Source | None = None) -> None:
        """Let a 0-dim tensor on the host be a number."""
        self.numbers[id(tensor)] = HostNumber(tensor, expression, source, expression)
        self._kept.append(tensor)

    def made_of_numbers(self, tensor: Tensor, given: Sequence[Any]) -> Tensor:
        """Enter a 0-dim tensor that a call has just made of these arguments."""
        number = next((a for a in given if is_traced(a)), None)
        expression = None
        if number is not None:
            expression = self.trace.of(_Rounded(tensor.dtype), (number.expression,), tensor.item())
        self.enter_number(tensor, expression)
        return tensor

    def on_numbers(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Compute with 0-dim tensors on the host."""
        operands = [*args, *kwargs.values()]
        if name == "item" and self.numbers[id(args[0])].expression is not None:  # the same number
            return traced(self.trace, self.numbers[id(args[0])].expression, args[0].item())
        if kwargs.get("alpha") == 1 and name in ("add", "sub"):
            kwargs = {k: v for k, v in kwargs.items() if k != "alpha"}
            operands = [*args, *kwargs.values()]
        found = [self.number_of(a) for a in operands]
        expressions = [f for f in found if isinstance(f, Expression)]
        named_ones = tuple(kwargs)
        before = args[0].dtype if isinstance(args[0], Tensor) else None
        result = func(*[plain(a) for a in args], **{k: plain(v) for k, v in kwargs.items()})
        if not expressions:
            if isinstance(result, Tensor) and not is_inplace:
                self.enter_number(result, None)
            return result
        compute = _OnTensors(
            func, tuple(a.dtype if isinstance(a, Tensor) else None for a in operands), len(args), named_ones
        )
        value = result.item() if isinstance(result, Tensor) and not result.ndim else result
        expression = self.trace.of(compute, found, value)
        if isinstance(result, Tensor):
            if result.ndim:
                raise UnsupportedStep(f"it makes a tensor of numbers ({name})")
            if is_inplace:
                assert before is not None
                self.numbers[id(args[0])].expression = expression
                return args[0]
            self.enter_number(result, expression)
            return result
        if type(result) in (int, float):
            return traced(self.trace, expression, result)
        if type(result) is bool:
            self.trace.guard(expression, result, is_truth=True)
            return result
        raise UnsupportedStep(f"it makes a {type(result).__name__} of a number ({name})")

    def number_of(self, argument: Any) -> Any:
        """Return an argument as an expression takes it."""
        if isinstance(argument, Tensor):
            held = self.numbers[id(argument)]
            return held.expression if held.expression is not None else argument.item()
        return argument.expression if is_traced(argument) else argument


@dataclass(frozen=True)
class _Rounded:
    """The value of `torch.tensor(x, dtype=dtype)`."""

    dtype: torch.dtype

    def __call__(self, value: Any) -> Any:
        return torch.tensor(value, dtype=self.dtype).item()


@dataclass(frozen=True)
class _OnTensors:
    """A function of torch, given numbers for its 0-dim tensors.

    function: the function.
    dtypes: the type of each tensor argument; None for a number.
    positional: how many arguments are positional.
    names: the names of the others.
    """

    function: Callable[..., Any]
    dtypes: tuple[torch.dtype | None, ...]
    positional: int
    names: tuple[str, ...]

    @functools.cached_property
    def _in_float32(self) -> Callable[[float, float], float] | None:
        """The function in double, for float32 tensors; None if it is another one.

        Rounded to float32, a sum, difference, product or quotient of two float32 numbers taken in double is the one that
        float32 arithmetic gives (a double has more than twice the bits).
        """
        known = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
        is_plain = self.positional == len(self.dtypes) == 2 and self.dtypes[0] is torch.float32
        name = getattr(self.function, "__name__", "").rstrip("_")
        return known.get(name) if is_plain and self.dtypes[1] in (None, torch.float32) else None

    def __call__(self, *values: Any) -> Any:
        if self._in_float32 is not None and type(values[0]) is float and type(values[1]) in (int, float):
            try:
                return float(np.float32(self._in_float32(values[0], float(np.float32(values[1])))))
            except (OverflowError, ZeroDivisionError):
                pass
        operands = [v if d is None else torch.tensor(v, dtype=d) for v, d in zip(values, self.dtypes, strict=True)]
        named_ones = dict(zip(self.names, operands[self.positional :], strict=True))
        result = self.function(*operands[: self.positional], **named_ones)
        return result.item() if isinstance(result, Tensor) else result


def plain(argument: Any) -> Any:
    """Return an argument without traces, in nested lists too."""
    if type(argument) in (list, tuple):
        return type(argument)(map(plain, argument))
    return plain_value(argument)
