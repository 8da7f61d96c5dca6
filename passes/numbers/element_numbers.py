"""Numbers of elements: Python numbers that a step makes of the elements of tensors, as by `x.norm().item()`.

Their values are not known while the step is recorded. Arithmetic with them is recorded as calls; where the step would look at
one, as at a comparison, it can't be recorded. They have no value that a function of C could compute with unseen: all must ask
for it by `__float__`. Functions of torch take them, as they take any symbolic number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from baoc_compile.core.names import words


class ElementNumber(torch.SymFloat):
    """A number of elements.

    tensor: a stand-in without dimensions, whose element is the number.
    """

    __array_ufunc__ = None  # functions of numpy can't compute with it

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(number, float) is true
        return float

    def __copy__(self) -> ElementNumber:
        return self

    def __deepcopy__(self, memo: Any) -> ElementNumber:
        return self

    @property
    def real(self) -> Any:
        return self

    def conjugate(self) -> Any:
        return self


def is_of_elements(value: Any) -> bool:
    """Return whether a value is a number of elements."""
    return type(value) is ElementNumber


def compute(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return `function(*arguments)`: a tensor if one of the arguments is a tensor, else a number of elements.

    A recorder knows this function. `arguments` have a number of elements or a stand-in without dimensions among them.
    """
    tensors = tuple(
        a.tensor if is_of_elements(a) else a for a in arguments if is_of_elements(a) or isinstance(a, Tensor)
    )
    return handle_torch_function(compute, tensors, name, function, arguments)


def look(how: str) -> Any:
    """Refuse to look at a number of elements."""
    return handle_torch_function(look, (), how)


def larger(first: Any, second: Any) -> Any:
    """What `max` returns of two numbers, or of a number and a tensor without dimensions: a tensor then."""
    return _chosen(second > first, second, first)


def smaller(first: Any, second: Any) -> Any:
    """What `min` returns of two; see `larger`."""
    return _chosen(second < first, second, first)


def _chosen(condition: Any, second: Any, first: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, second, first)
    return second if condition else first


#: Names of the calls that choose one of their arguments.
CHOICES = words("larger smaller")


def _binary(name: str, function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: ElementNumber, other: Any) -> Any:
        return compute(name, function, (self, other)) if isinstance(other, (int, float)) else NotImplemented

    def reverse(self: ElementNumber, other: Any) -> Any:
        return compute(name, function, (other, self)) if isinstance(other, (int, float)) else NotImplemented

    return forward, reverse


def _unary(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: compute(name, function, (self,))


def _looking(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: look(name)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _forward, _reverse = _binary("div" if _name == "truediv" else _name, getattr(operator, _name))
    setattr(ElementNumber, f"__{_name}__", _forward)
    setattr(ElementNumber, f"__r{_name}__", _reverse)
for _name in ("neg", "abs"):
    setattr(ElementNumber, f"__{_name}__", _unary(_name, getattr(operator, _name)))
ElementNumber.__pos__ = lambda self: self  # type: ignore[assignment, operator]
for _name in words(
    "lt le gt ge eq ne bool int float round trunc floor ceil hash str repr format divmod rdivmod reduce_ex complex index"
):
    setattr(ElementNumber, f"__{_name}__", _looking(_name))
for _name in ("is_integer", "as_integer_ratio", "hex"):
    setattr(ElementNumber, _name, _looking(_name))
