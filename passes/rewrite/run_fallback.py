"""Run a piece of the step that is not elementwise: decode its state, run the inner backend's code, encode it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from baoc_compile.passes.rules.extract_rules import Slice
from baoc_compile.state.state_tensor import StateTensor

_COMPILED: dict[Any, Any] = {}


class Fallback:
    """A callable that takes the piece's inputs, changes parameters and state in place, and returns new state.

    reason: why the piece is not a fused program.
    constants: numbers that the compiled piece takes after its inputs.
    run: the compiled piece; pieces of the same structure, shapes and types share one.
    """

    def __init__(self, piece: Slice, reason: str, name: str, inner_backend: Any):
        self.reason, self.constants = reason, piece.constants
        self.__name__ = f"fallback_{name}"
        shapes = tuple(getattr(n.meta.get("example_value"), "shape", None) for n in piece.inputs)
        dtypes = tuple(getattr(n.meta.get("example_value"), "dtype", None) for n in piece.inputs)
        key = (piece.signature, shapes, dtypes, str(inner_backend))
        if key not in _COMPILED:
            gm = fx.GraphModule(torch.nn.Module(), piece.graph)
            _COMPILED[key] = torch.compile(gm, backend=inner_backend, dynamic=False)
        self.run = _COMPILED[key]

    @torch.no_grad()
    def __call__(self, inputs: list[Any]) -> tuple[Tensor, ...]:
        decoded = [value.decode() if isinstance(value, StateTensor) else value for value in inputs]
        new_state = self.run(*decoded, *self.constants)[len(inputs) :]
        for value, plain in zip(inputs, decoded, strict=True):
            if isinstance(value, StateTensor):
                value.store(plain)
        return new_state
