"""Prepared optimizers, the launches of their steps, and the tensors that they touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import baoc_compile
from baoc_compile import StateTensor

FUSED_UPDATE = torch.ops.baoc.fused_update.default
LARGE, SMALL = (64, 64), (8,)  # stored in 8 bits, and left as it is


def parameters_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def draw_gradients(parameters: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def parameters_in(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def prepared(optimizer: Any, plan: Any) -> Callable[[], object]:
    baoc_compile.prepare(optimizer, plan=plan)
    return torch.compile(optimizer.step, backend="baoc")


def calls(optimizer: Any) -> list[torch.fx.Node]:
    """The nodes that launch something, in the graph that was rewritten last."""
    return [n for n in baoc_compile.inspect(optimizer).graphs["rewritten"].graph.nodes if n.target is FUSED_UPDATE]


def counts(optimizer: Any) -> list[int]:
    return [program.launches for program in baoc_compile.inspect(optimizer).programs]


def stored_tensors(optimizer: Any) -> list[Tensor]:
    """Parameters, gradients, and every tensor that state consists of."""
    found = []
    for p in parameters_in(optimizer):
        found += [p, p.grad]
        for value in optimizer.state[p].values():
            found += value.parts.values() if isinstance(value, StateTensor) else [value]
    return found
