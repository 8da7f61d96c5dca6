"""Functions of Python that follow traced numbers, and numbers of elements, while a step is recorded."""

from __future__ import annotations

import builtins
import functools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from baoc_compile.core.names import words
from baoc_compile.passes.numbers.element_numbers import compute, is_of_elements, larger, look, smaller
from baoc_compile.passes.numbers.traced_numbers import computed, is_number, is_traced

_MATH = {name: function for name, function in vars(math).items() if callable(function) and not name.startswith("_")}


#: Functions of `math` that make a float of floats.
_OF_FLOATS = words(
    "sqrt cbrt exp exp2 expm1 log log1p log2 log10 pow sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh "
    "erf erfc hypot copysign fabs"
)


@contextmanager
def traced_functions(real_id: Callable[[Any], int], has_element: Callable[[Any], bool]) -> Iterator[None]:
    """Within this context, functions of `math` trace, `max` and `min` too, and `id` gives a stand-in's real identity.

    Other threads see the functions as they are.

    real_id: gives the id of the object that a stand-in stands for.
    has_element: returns whether an object is a stand-in of a tensor with one element that the host does not know.
    """
    thread, plain_id = threading.get_ident(), builtins.id

    def traces(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not named and any(map(is_traced, arguments)) and all(map(is_number, arguments)):
                return computed(function, *arguments)
            arguments = tuple(compute("item", Tensor.item, (a,)) if has_element(a) else a for a in arguments)
            if any(map(is_of_elements, arguments)):
                return compute(name, function, arguments) if name in _OF_FLOATS and not named else look(f"math.{name}")
            for argument in arguments:
                _note_numbers_in(argument)
            return function(*arguments, **named)

        return wrapped

    def identity(value: Any) -> int:
        is_other = threading.get_ident() != thread or not isinstance(value, Tensor)
        return plain_id(value) if is_other else real_id(value)

    def is_unknown(value: Any) -> bool:
        return is_of_elements(value) or has_element(value)

    def can_follow(given: Any) -> bool:
        """Return whether the values are numbers and at most one tensor, some of which the host does not know."""
        if type(given) not in (list, tuple) or not any(map(is_unknown, given)):
            return False
        others = [v for v in given if not has_element(v)]
        return len(given) - len(others) <= 1 and all(is_number(v) or is_of_elements(v) for v in others)

    def chooses(function: Callable[..., Any], name: str, choose: Callable[..., Any]) -> Callable[..., Any]:
        def choose_of(a: Any, b: Any) -> Any:
            return compute(name, choose, (a, b)) if is_unknown(a) or is_unknown(b) else function(a, b)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            given = arguments[0] if len(arguments) == 1 else arguments
            if named or threading.get_ident() != thread or not can_follow(given):
                return function(*arguments, **named)
            return functools.reduce(choose_of, given)

        return wrapped

    plain_max, plain_min = builtins.max, builtins.min
    try:
        for name, function in _MATH.items():
            setattr(math, name, traces(name, function))
        builtins.id = identity
        builtins.max, builtins.min = chooses(max, "larger", larger), chooses(min, "smaller", smaller)
        yield
    finally:
        builtins.id, builtins.max, builtins.min = plain_id, plain_max, plain_min
        for name, function in _MATH.items():
            setattr(math, name, function)


def _note_numbers_in(argument: Any) -> None:
    """Note a guard for every traced number in a list or tuple: what is computed from it can't be followed."""
    if is_traced(argument):
        _ = argument.plain
    elif isinstance(argument, (list, tuple)):
        for entry in argument:
            _note_numbers_in(entry)
