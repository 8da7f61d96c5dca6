"""Canonical names and functional forms for the operations that a traced graph calls.

`x.add_(y, alpha=a)`, `torch.add(x, y)`, `operator.iadd(x, y)` and `torch._foreach_add_([x], [y])` are all the operation
`add`, in place or not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from baoc_compile.core.torch_private import COMPUTES_NOTHING, FOREACH

_SPELLINGS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "float_pow": "pow",
    "negative": "neg",
    "absolute": "abs",
    "linalg_vector_norm": "norm",
    "sym_sqrt": "sqrt",
    "sym_max": "maximum",
    "sym_min": "minimum",
}
_IDENTITIES = {"item", "sym_float", "float", "detach", "sym_int"}
_INPLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv", "ipow"}


def spelled(node: fx.Node) -> str:
    """Return the name of the called function or method as the graph has it."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def operation(node: fx.Node) -> tuple[str, bool]:
    """Return the canonical name of a call, and whether the call is in place."""
    name = spelled(node).split(".")[0]
    inplace = name in _INPLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
    name = name[1:] if name in _INPLACE_OPERATORS else name.rstrip("_") if inplace else name
    return _SPELLINGS.get(name.removeprefix("_"), _SPELLINGS.get(name, name)), inplace


def returned_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that a graph returns. (torch may leave unused attributes after the output node.)"""
    return next(node for node in reversed(graph.nodes) if node.op == "output").all_input_nodes


def module_of(graph: fx.Graph, attributes: Mapping[str, Any], class_name: str) -> fx.GraphModule:
    """Make a module of `graph` that holds only `attributes`; every other attribute that the graph reads is None."""
    root = torch.nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            object.__setattr__(root, str(node.target), attributes.get(str(node.target)))
    return fx.GraphModule(root, graph, class_name=class_name)


def is_identity(node: fx.Node) -> bool:
    """Return whether the call returns its first argument unchanged: `.item()`, `float()`, `.detach()`."""
    return operation(node)[0] in _IDENTITIES


def is_ignored(node: fx.Node) -> bool:
    """Return whether the call computes no value: it sets the gradient mode, or is an assertion that Dynamo inserted."""
    return operation(node)[0] in COMPUTES_NOTHING


def single_function(foreach_name: str) -> tuple[Callable[..., Any], bool]:
    """Return the per-tensor function of a list operation, and whether the list form is in place.

    `_foreach_add_` gives (torch.add, True).
    """
    name = foreach_name.removeprefix(FOREACH)
    base = name.rstrip("_")
    return _SINGLE.get(base) or getattr(torch, base), name.endswith("_")


def addcmul(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    return torch.addcmul(x, a, b, value=value)


def addcdiv(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    return torch.addcdiv(x, a, b, value=value)


def norm(x: Any, ord: Any = 2, dtype: Any = None) -> Any:
    return torch.linalg.vector_norm(x, ord, dtype=dtype)


def maximum(x: Any, other: Any) -> Any:
    return torch.maximum(x, other) if isinstance(other, torch.Tensor) else torch.clamp_min(x, other)


def minimum(x: Any, other: Any) -> Any:
    return torch.minimum(x, other) if isinstance(other, torch.Tensor) else torch.clamp_max(x, other)


def copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    return source


def zero(x: Any) -> Any:
    return torch.zeros_like(x)


def _weighted(x: Any, y: Any, alpha: Any) -> Any:
    """Return y * alpha, without a multiplication if alpha is the literal 1."""
    return y if isinstance(alpha, int) and alpha == 1 else y * alpha


def _lerp(start: Any, end: Any, weight: Any) -> Any:
    weight = weight if isinstance(weight, torch.Tensor) else torch.scalar_tensor(weight, dtype=start.dtype)
    return torch.lerp(start, end, weight.to(start.dtype))


def _as_tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.scalar_tensor(value, dtype=torch.float64)


#: Operation -> its per-tensor function, where torch's function of that name takes other arguments than the list form.
_SINGLE: dict[str, Callable[..., Any]] = {
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "norm": norm,
    "maximum": maximum,
    "minimum": minimum,
    "clamp_max": minimum,
    "clamp_min": maximum,
    "copy": copy,
    "zero": zero,
}

#: Operation -> a functional form in which every number may be a 0-dim tensor, so that a hyperparameter can be an input
#: of the rule. torch rounds a 0-dim operand to the tensor's type, as it does a number.
TENSOR_FORMS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y, alpha=1: x + _weighted(x, y, alpha),
    "sub": lambda x, y, alpha=1: x - _weighted(x, y, alpha),
    "rsub": lambda x, y, alpha=1: y - _weighted(y, x, alpha),
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "addcmul": lambda x, a, b, value=1: x + _weighted(x, a * b, value),
    "addcdiv": lambda x, a, b, value=1: x + _weighted(x, a / b, value),
    "fma": lambda a, b, c: a * b + c,
    "lerp": _lerp,
    "pow": lambda x, y: torch.pow(_as_tensor(x), y) if not isinstance(x, torch.Tensor) else torch.pow(x, y),
    "maximum": lambda x, y: torch.maximum(x, _like(y, x)),
    "minimum": lambda x, y: torch.minimum(x, _like(y, x)),
    "clamp_min": lambda x, min: torch.maximum(x, _like(min, x)),
    "clamp_max": lambda x, max: torch.minimum(x, _like(max, x)),
    "clamp": lambda x, min=None, max=None: _clamp(x, min, max),
    "where": lambda condition, x, y: torch.where(condition, x, y),
    "full_like": lambda x, value, **kwargs: _like(value, x).expand(x.shape),
    "fill": lambda x, value: _like(value, x).expand(x.shape),
    "copy": copy,
    "zero": zero,
    "index_put": lambda x, indices, values: _where(
        indices[0], values, x
    ),  # accumulate=True is not elementwise: TypeError
    "masked_fill": lambda x, mask, value: _where(mask, value, x),
    "clone": lambda x, **kwargs: x * 1,
    "sqrt": lambda x: torch.sqrt(_as_tensor(x)),
}


def _like(value: Any, x: Any) -> Any:
    return _as_tensor(value).to(x.dtype)


def _where(mask: Any, value: Any, x: Any) -> Any:
    """Return x with `value` where the mask is true: the functional form of `x[mask] = value`.

    Raises TypeError unless the mask is boolean and of x's shape, and `value` is one number.
    """
    if mask.dtype != torch.bool or mask.shape != x.shape or getattr(value, "ndim", 0):
        raise TypeError("only a mask of the tensor's own shape and one number are elementwise")
    return torch.where(mask, _like(value, x), x)


def _clamp(x: Any, low: Any, high: Any) -> Any:
    x = x if low is None else torch.maximum(x, _like(low, x))
    return x if high is None else torch.minimum(x, _like(high, x))


def python_math(node: fx.Node) -> Callable[..., Any] | None:
    """Return the torch function for a call of Python's `math`, such as `math.sqrt`; None for other calls."""
    name = operation(node)[0]
    return getattr(torch, name, None) if getattr(math, name, None) is node.target else None
