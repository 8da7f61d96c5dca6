"""Operations on compressed state outside baoc's own step: decode, compute, encode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.torch_private import FakeTensor, schema_of, tree_map, tree_map_only


class EagerState(Tensor):
    """A tensor that holds codes, as eager operations see it.

    parts: the stored tensors, by name.
    """

    parts: dict[str, Tensor]

    def decode(self) -> Tensor:
        """Return the values."""
        raise NotImplementedError

    def store(self, value: Tensor) -> None:
        """Store other values in place."""
        raise NotImplementedError


def makes_view(func: Any) -> bool:
    """Return whether the operation returns memory of an argument that it does not write."""
    returned = [r.alias_info for r in schema_of(func).returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def is_fake(state: EagerState) -> bool:
    """Return whether torch is tracing, so that only shapes matter."""
    return any(isinstance(part, FakeTensor) for part in state.parts.values())


def _shape_only(state: EagerState) -> Tensor:
    return next(iter(state.parts.values())).new_empty(state.shape, dtype=state.dtype)


def _only_traced(func: Any, args: Any) -> bool:
    """Return whether this is an in-place elementwise operation while torch traces. Its result then has the state's shape."""
    state = args[0] if args else None
    if not isinstance(state, EagerState) or not is_fake(state) or torch.Tag.pointwise not in func.tags:
        return False
    writes = [a.alias_info is not None and a.alias_info.is_write for a in schema_of(func).arguments]
    shapes = [a.shape for a in args if isinstance(a, Tensor)]
    return writes[0] and not any(writes[1:]) and torch.broadcast_shapes(*shapes) == state.shape


def written_arguments(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments that the operation writes, each a tensor or a list of them."""
    declared = enumerate(schema_of(func).arguments)
    written = [(i, a.name) for i, a in declared if a.alias_info is not None and a.alias_info.is_write]
    return [args[position] if position < len(args) else kwargs.get(name) for position, name in written]


def decode_run_encode(func: Any, args: Any, kwargs: Any) -> Any:
    """Run `func` on decoded values, store those that it changed, and return its result."""
    if _only_traced(func, args):
        return args[0]
    decoded: dict[int, tuple[EagerState, Tensor]] = {}

    def unwrap(state: EagerState) -> Tensor:
        if id(state) not in decoded:
            decoded[id(state)] = (state, _shape_only(state) if is_fake(state) else state.decode())
        return decoded[id(state)][1]

    plain_args, plain_kwargs = tree_map_only(EagerState, unwrap, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    written: set[int] = set()
    tree_map_only(EagerState, lambda state: written.add(id(state)), written_arguments(func, args, kwargs))
    for state, value in (decoded[key] for key in written):
        if not is_fake(state):
            state.store(value)
    wrapped = {id(value): state for key, (state, value) in decoded.items() if key in written}
    return tree_map(lambda value: wrapped.get(id(value), value), result)
