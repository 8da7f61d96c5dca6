"""Canonical names, kinds and functional forms of the operations that a step calls.

`x.add_(y, alpha=a)`, `torch.add(x, y)`, `x += y` and `torch._foreach_add_([x], [y])` are all the operation `add`, in
place or not.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.names import words
from baoc_compile.core.torch_private import COMPUTES_NOTHING, FOREACH

_SPELLINGS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "float_power": "pow",
    "negative": "neg",
    "absolute": "abs",
    "linalg_vector_norm": "norm",
    "linalg_norm": "norm",
    "vector_norm": "norm",
    "rdiv": "rdiv",
    "rtruediv": "rdiv",
    "radd": "add",
    "rmul": "mul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "invert": "bitwise_not",
    "setitem": "index_put",
    "clip": "clamp",
    "arctan2": "atan2",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "not_equal": "ne",
}
#: What Python asks of a tensor for a number: `float(x)` is `x.__float__()`, which is not `x.float()`.
_CONVERSIONS = {"bool", "int", "float", "complex", "index"}
_INPLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv", "ipow"}


#: Questions about a tensor that need none of its elements.
METADATA = words(
    "size stride dim ndimension numel nelement element_size is_complex is_floating_point is_contiguous is_signed "
    "storage_offset len get_device is_tensor is_inference is_conj is_neg is_pinned is_same_size result_type "
    "can_cast _is_view is_coalesced is_set_to requires_grad type_promotion is_distributed hash is_storage"
)
#: Calls that lead out of what can be recorded: memory, other devices, gradients.
ESCAPES = words(
    "data_ptr untyped_storage storage _typed_storage numpy array tolist cpu cuda set resize resize_as "
    "share_memory pin_memory backward grad register_hook to_sparse to_dense sparse_mask coalesce bincount unique"
)
#: Calls whose result differs each time.
RANDOM = words(
    "rand randn randint randperm rand_like randn_like randint_like bernoulli normal uniform random exponential "
    "cauchy geometric log_normal multinomial poisson dropout manual_seed seed"
)
#: Calls that turn elements into something that Python can branch on.
BRANCHES = words("item to_bool to_float to_int to_index to_complex equal allclose is_nonzero nonzero contains argwhere")
#: Calls that return the same elements under another name.
ALIASES = frozenset(("detach", "alias"))
#: Calls that may return a view of their first argument with another shape.
VIEWS = words(
    "view reshape t transpose permute narrow select getitem squeeze unsqueeze expand flatten chunk split unbind "
    "as_strided slice view_as expand_as view_as_real view_as_complex T mT H mH real imag diagonal movedim "
    "moveaxis swapaxes swapdims unflatten tensor_split hsplit vsplit dsplit split_with_sizes ravel broadcast_to "
    "adjoint"
)
#: Calls that may give one number of many.
REDUCTIONS = words("norm sum mean amax amin max min any all dot std var numel_nonzero count_nonzero")

_NAMES: dict[Any, tuple[str, bool, bool]] = {}


def named(function: Any) -> tuple[str, bool, bool]:
    """Return the canonical name of a function, whether it is in place, and whether it reads or sets a property."""
    try:
        return _NAMES[function]
    except (KeyError, TypeError):
        pass
    spelled = getattr(function, "__name__", str(function))
    if spelled in ("__get__", "__set__"):  # a property's accessor is made anew each time
        return function.__self__.__name__, False, True
    _NAMES[function] = found = (*operation_of(spelled), False)
    return found


def operation_of(spelled: str) -> tuple[str, bool]:
    """Return the canonical name of a call, and whether it is in place."""
    name = spelled.split(".")[0]
    if name.startswith(FOREACH):
        return name, name.endswith("_")
    is_special = name.startswith("__") and name.endswith("__")
    name = name[2:-2] if is_special else name
    if is_special and name in _CONVERSIONS:
        return f"to_{name}", False
    inplace = name in _INPLACE_OPERATORS or name == "setitem" or (not is_special and name.endswith("_"))
    name = name[1:] if name in _INPLACE_OPERATORS else name.rstrip("_") if inplace else name
    return _SPELLINGS.get(name.removeprefix("_"), _SPELLINGS.get(name, name)), inplace


def is_ignored(name: str) -> bool:
    """Return whether a call of this name computes no value: it sets the gradient mode, or is an assertion."""
    return name in COMPUTES_NOTHING


def single_function(foreach_name: str) -> tuple[Callable[..., Any], bool]:
    """Return the per-tensor function of a list operation, and whether it is in place.

    `_foreach_add_` gives (Tensor.add_, True). Raises AttributeError for an operation that torch has for lists only.
    """
    name = foreach_name.removeprefix(FOREACH)
    if name in _SINGLE:
        return _SINGLE[name], name.endswith("_")
    return (getattr(Tensor, name), True) if name.endswith("_") else (getattr(torch, name), False)


@functools.cache
def list_of_one(foreach: Callable[..., Any], lists: frozenset[int | str], is_inplace: bool) -> Callable[..., Any]:
    """Return the per-tensor function that calls a list operation on lists of one.

    Types of less than 32 bits need it where calls are replayed: list operations round numbers to such a type first, and
    per-tensor functions do not.

    lists: positions and names of the arguments that are lists.
    """

    def one(*args: Any, **kwargs: Any) -> Any:
        result = foreach(
            *([a] if i in lists else a for i, a in enumerate(args)),
            **{k: [a] if k in lists else a for k, a in kwargs.items()},
        )
        return args[0] if is_inplace else result[0]

    return one


def addcmul(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    return torch.addcmul(x, a, b, value=value)


def addcmul_(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    return x.addcmul_(a, b, value=value)


def addcdiv(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    return torch.addcdiv(x, a, b, value=value)


def addcdiv_(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    return x.addcdiv_(a, b, value=value)


def norm(x: Any, ord: Any = 2, dtype: Any = None) -> Any:
    return torch.linalg.vector_norm(x, ord, dtype=dtype)


def maximum(x: Any, other: Any) -> Any:
    return torch.maximum(x, other) if isinstance(other, torch.Tensor) else torch.clamp_min(x, other)


def maximum_(x: Any, other: Any) -> Any:
    return x.clamp_min_(other)


def minimum(x: Any, other: Any) -> Any:
    return torch.minimum(x, other) if isinstance(other, torch.Tensor) else torch.clamp_max(x, other)


def minimum_(x: Any, other: Any) -> Any:
    return x.clamp_max_(other)


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


#: List operation -> its per-tensor function, where torch's function of that name takes other arguments than the list form.
_SINGLE: dict[str, Callable[..., Any]] = {
    "addcmul": addcmul,
    "addcmul_": addcmul_,
    "addcdiv": addcdiv,
    "addcdiv_": addcdiv_,
    "norm": norm,
    "maximum": maximum,
    "maximum_": maximum_,
    "minimum": minimum,
    "minimum_": minimum_,
    "clamp_max": minimum,
    "clamp_min": maximum,
}

#: Operation -> a functional form in which every number may be a 0-dim tensor, so that a hyperparameter can be an input
#: of the rule. torch rounds a 0-dim operand to the tensor's type, as it does a number.
TENSOR_FORMS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y, alpha=1: x + _weighted(x, y, alpha),
    "sub": lambda x, y, alpha=1: x - _weighted(x, y, alpha),
    "rsub": lambda x, y, alpha=1: y - _weighted(y, x, alpha),
    "mul": operator.mul,
    "div": operator.truediv,
    "rdiv": lambda x, y: y / x,
    "rpow": lambda x, y: torch.pow(_as_tensor(y), x),
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
    "index_put": lambda x, mask, value: _where(mask, value, x),
    "masked_fill": lambda x, mask, value: _where(mask, value, x),
    "clone": lambda x, **kwargs: x * 1,
    "sqrt": lambda x: torch.sqrt(_as_tensor(x)),
    "softplus": lambda x, beta=1.0, threshold=20.0: torch.where(
        x * beta > threshold, x, torch.log1p(torch.exp(x * beta)) / beta
    ),
    "item": lambda x: x,
    "larger": lambda x, y: torch.where(_as_tensor(y) > _as_tensor(x), _as_tensor(y), _as_tensor(x)),
    "smaller": lambda x, y: torch.where(_as_tensor(y) < _as_tensor(x), _as_tensor(y), _as_tensor(x)),
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
