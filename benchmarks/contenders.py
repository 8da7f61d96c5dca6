"""The optimizers to time, by torch, baoc and its rivals, each over its own parameters with fixed gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from models import Shape
from torch import Tensor

import baoc_compile

LR = 1e-4
BASELINE, SGD_BASELINE = "torch fused", "torch SGD fused"


@dataclass(frozen=True)
class Contender:
    """`make`: parameters -> optimizer. `backend`: torch.compile's for its step, none if empty.

    `package`: the distribution it comes from, empty for torch and baoc. `baseline`: the contender to compare it with.
    """

    make: Callable[[list[Tensor]], Any]
    dtype: torch.dtype = torch.float32  # of parameters and gradients
    backend: str = ""
    package: str = ""
    baseline: str = BASELINE


def adamw(**options: Any) -> Callable[[list[Tensor]], Any]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=LR, **options)


def sgd(**options: Any) -> Callable[[list[Tensor]], Any]:
    return lambda parameters: torch.optim.SGD(parameters, lr=LR, momentum=0.9, **options)


def planned(plan: Any, optimizer_of: Callable[[list[Tensor]], Any] | None = None) -> Callable[[list[Tensor]], Any]:
    """torch's AdamW, or another optimizer, prepared by baoc."""

    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = (optimizer_of or adamw())(parameters)
        baoc_compile.prepare(optimizer, plan=plan)
        return optimizer

    return make


def imported(module: str, name: str, **options: Any) -> Callable[[list[Tensor]], Any]:
    return lambda parameters: getattr(importlib.import_module(module), name)(parameters, lr=LR, **options)


#: Every one is AdamW and has weights of fp32 unless its name says otherwise; "bf16+8" are bf16 weights with 8 bits kept
#: beside them.
CONTENDERS: dict[str, Contender] = {
    BASELINE: Contender(adamw(fused=True)),
    "torch foreach": Contender(adamw(foreach=True)),
    "torch inductor": Contender(adamw(), backend="inductor"),
    "baoc fp32": Contender(planned("fp32")),
    "baoc bf16": Contender(planned("bf16")),
    "baoc 8bit": Contender(planned("8bit")),
    "baoc 4bit": Contender(planned("4bit")),
    "baoc 8bit and factored": Contender(planned({"exp_avg": "8bit", "exp_avg_sq": "factored"})),
    "baoc 8bit-learned": Contender(planned("8bit-learned")),
    "baoc 4bit-learned": Contender(planned("4bit-learned")),
    "baoc 8bit, bf16+8": Contender(planned({"*": "8bit", "param": "24bit"}), torch.bfloat16),
    SGD_BASELINE: Contender(sgd(fused=True), baseline=SGD_BASELINE),
    "baoc SGD 8bit": Contender(planned("8bit", sgd()), baseline=SGD_BASELINE),
    "torchao 8bit": Contender(imported("torchao.optim", "AdamW8bit"), package="torchao"),
    "torchao 4bit": Contender(imported("torchao.optim", "AdamW4bit"), package="torchao"),
    "bitsandbytes 8bit": Contender(imported("bitsandbytes.optim", "AdamW8bit"), package="bitsandbytes"),
    "flashoptim 8bit": Contender(imported("flashoptim", "FlashAdamW", master_weight_bits=None), package="flashoptim"),
    "flashoptim 8bit, bf16+8": Contender(
        imported("flashoptim", "FlashAdamW", master_weight_bits=24), torch.bfloat16, package="flashoptim"
    ),
    "optimi fp32": Contender(imported("optimi", "AdamW"), package="torch-optimi"),
    "optimi bf16, bf16+16": Contender(imported("optimi", "AdamW"), torch.bfloat16, package="torch-optimi"),
}

PACKAGES = tuple(dict.fromkeys(c.package for c in CONTENDERS.values() if c.package))


@dataclass
class Running:
    """An optimizer and its step, compiled if that is how the contender runs."""

    optimizer: Any
    step: Callable[[], object]
    parameters: list[torch.nn.Parameter]

    def state_bytes(self) -> int:
        """Every tensor in the optimizer's state, of whatever class, each counted once."""
        return sum(t.numel() * t.element_size() for t in _unique(_tensors(dict(self.optimizer.state))))

    def bytes_moved(self) -> int:
        """The least that one step must move: weights and state read and written, gradients read."""
        weights = sum(p.numel() * p.element_size() for p in self.parameters)
        return 3 * weights + 2 * self.state_bytes()  # a gradient has its weight's type


def start(contender: Contender, shapes: list[Shape], device: str) -> Running:
    """Nothing has run or been compiled yet. Raises whatever the contender raises."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: Shape, deviation: float) -> Tensor:
        values = torch.empty(shape, device=device).normal_(0.0, deviation, generator=generator)
        return values.to(contender.dtype)

    parameters = [torch.nn.Parameter(normal(shape, 0.02)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = normal(tuple(parameter.shape), 1e-3)
    optimizer = contender.make(list(parameters))
    step = torch.compile(optimizer.step, backend=contender.backend) if contender.backend else optimizer.step
    return Running(optimizer, step, parameters)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors that hold the data, below containers, tensor subclasses and objects with attributes."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors(getattr(value, name))
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (t for entry in value.values() for t in _tensors(entry))
    elif isinstance(value, list | tuple):
        yield from (t for entry in value for t in _tensors(entry))
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _unique(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    seen: set[int] = set()
    for tensor in tensors:
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor
