"""Results of calls on the meta device, which have a shape and a type but no elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.torch_private import base_of
from baoc_compile.passes.numbers.element_numbers import is_of_elements
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value
from baoc_compile.passes.recorder.number_recorder import plain
from baoc_compile.passes.recorder.torch_calls import TENSOR_FORMS


class MetaResults:
    """The results of calls: of elementwise ones, each is computed once for all arguments of the same shapes and types."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def of(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return the call's result on the meta device; for operations known to be elementwise, from memory."""
        if not is_inplace and name not in TENSOR_FORMS:
            return self._compute(func, args, kwargs)
        if name == "index_put" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0]  # torch would ask a 0-dim mask for its value
        key = (func, *map(_kind, args), *((k, _kind(v)) for k, v in kwargs.items()))
        known = self._known.get(key)
        if known is None:
            result = self._compute(func, args, kwargs)
            if isinstance(result, Tensor) and (is_inplace or base_of(result) is None):
                self._known[key] = (result.shape, result.stride(), result.dtype)
            return args[0] if is_inplace else result
        return args[0] if is_inplace else torch.empty_strided(known[0], known[1], dtype=known[2], device="meta")

    def _compute(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            # torch asks a tensor that is given for a factor for its value
            named = {k: 1.0 if k in ("alpha", "value") and isinstance(v, Tensor) else v for k, v in kwargs.items()}
            return func(*[self._as_meta(a) for a in args], **{k: self._as_meta(v) for k, v in named.items()})
        except NotImplementedError as reason:
            raise UnsupportedStep(f"it needs values of tensors ({reason})") from reason

    def _as_meta(self, argument: Any) -> Any:
        if isinstance(argument, (list, tuple)) and type(argument) in (list, tuple):
            return type(argument)(map(self._as_meta, argument))
        if isinstance(argument, torch.device):
            return torch.device("meta")
        return plain(argument)


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device.type
    if type(argument) in (int, float) or is_traced(argument) or is_of_elements(argument):
        return type(plain_value(argument))
    if type(argument) in (list, tuple):
        return tuple(map(_kind, argument))
    try:
        hash(argument)
    except TypeError:
        return id(argument)
    return argument
