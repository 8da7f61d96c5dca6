"""Benches: where steps are tried. One has a rule, another the user's own step on a copy of a parameter.

A bench with a rule steps a few thousand elements, whatever the size of the parameters: the rule is elementwise. Without one, a
step may depend on its parameter's shape, so the copy is whole. It is the memory of one parameter's state in full precision,
for as long as the trial takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import RuleInput, UpdateRule
from baoc_compile.passes.capture.surroundings import undisturbed
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Beginning, Piece
from baoc_compile.passes.trials.copies import copied

#: Rows and columns of elements that a rule is tried on.
SHAPE = (64, 64)
#: The gradients' noise, relative to their mean. Little of it leaves moments of very different sizes within one group of a
#: codec, and their reciprocals more so; much of it makes them alike.
NOISE = 0.1
#: The seed of gradients: none that weights may have been drawn with, or a moment looks like the weights.
SEED = int.from_bytes(b"baoc", "big")


class TrialFailed(Exception):
    """A step can't be tried."""


class Bench(ABC):
    """One parameter, its state, and a stream of gradients: a mean of each element, and a little noise.

    parameter: the parameter.
    """

    parameter: Tensor

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(SEED)
        self._mean: Tensor | None = None

    @property
    @abstractmethod
    def state(self) -> dict[Any, Tensor]:
        """The float state of the parameter's shape."""

    @abstractmethod
    def run(self, grad: Tensor) -> None:
        """Step. Raises TrialFailed."""

    def step(self) -> None:
        """Step on the stream's next gradient."""
        if self._mean is None:
            self._mean = torch.randn(self.parameter.shape, generator=self.generator)
        self.run(self._mean + NOISE * torch.randn(self.parameter.shape, generator=self.generator))

    def step_anywhere(self) -> None:
        """Step on a gradient of any magnitude and signs."""
        power = float(torch.empty(()).uniform_(-4, 1, generator=self.generator))
        self.run(10.0**power * torch.randn(self.parameter.shape, generator=self.generator))

    def is_finite(self) -> bool:
        """Return whether the parameter and its state are numbers."""
        return all(bool(v.isfinite().all()) for v in (self.parameter, *self.state.values()))


class RuleBench(Bench):
    """A rule on elements as large as the parameter's.

    rule: the rule.
    piece: a piece that has it, with its numbers.
    beginnings: state key -> how it begins; what is not among them begins at 0.
    """

    def __init__(self, rule: UpdateRule, piece: Piece, real: Tensor, beginnings: Mapping[str, Beginning]):
        super().__init__()
        self.rule, self._numbers = rule, {}
        some = real.detach().reshape(-1)[: math.prod(SHAPE)].float().cpu()
        size = (float(some.square().mean().sqrt()) if len(some) else 0.0) or 1.0
        self.parameter = size * torch.randn(SHAPE, generator=self.generator)
        self._state = {s.key: torch.full(SHAPE, _beginning(beginnings.get(s.key))) for s in rule.slots}
        self._lines = {i.key: torch.full(SHAPE, _beginning(beginnings.get(i.key))) for i in rule.inputs_of("lines")}
        for key, beginning in beginnings.items():
            if beginning.kind == "parameter" and key in self._state:
                self._state[key] = self.parameter.clone()
        for i in rule.inputs:
            if i.kind == "scalar":
                value = _number(i, piece)
                if not isinstance(value, (int, float)):
                    raise TrialFailed("it takes a number that the step computes of all gradients")
                self._numbers[i.name] = float(value)
            elif i.kind == "counter":
                self._numbers[i.name] = 0.0

    @property
    def state(self) -> dict[Any, Tensor]:
        return self._state

    @torch.no_grad()
    def run(self, grad: Tensor) -> None:
        elements = {"param": self.parameter, "grad": grad}
        values = {
            i.name: self._state[i.key]
            if i.kind == "slot"
            else self._lines[i.key]
            if i.kind == "lines"
            else elements[i.kind]
            if i.kind in elements
            else torch.tensor(self._numbers[i.name], dtype=torch.float64)
            for i in self.rule.inputs
        }
        try:
            results = self.rule.gm(*values.values())
        except Exception as error:
            raise TrialFailed(repr(error)) from error
        of = {i.name: i for i in self.rule.inputs}
        for output, value in zip(self.rule.outputs, results, strict=True):
            replaced = of.get(output.name)
            if replaced is None:
                continue
            if replaced.kind == "param":
                self.parameter = value.float().expand(SHAPE).clone()
            elif replaced.kind == "slot":
                self._state[replaced.key].copy_(value)
            elif replaced.kind == "lines":
                self._lines[replaced.key].copy_(value)
            elif replaced.kind == "counter":
                self._numbers[replaced.name] = float(value)
        for i in self.rule.inputs:
            if i.counts_steps:
                self._numbers[i.name] += 1.0


def _number(rule_input: RuleInput, piece: Piece) -> Any:
    if rule_input.origin in ("numel", "columns"):
        return math.prod(SHAPE) if rule_input.origin == "numel" else SHAPE[1]
    found = (
        piece.scalars[rule_input.position] if rule_input.origin == "scalars" else piece.constants[rule_input.position]
    )
    return found.value if isinstance(found, Expression) else found


def _beginning(beginning: Beginning | None) -> float:
    value = None if beginning is None else beginning.value
    value = value.value if isinstance(value, Expression) else value
    return float(value) if isinstance(value, (int, float)) else 0.0


class CopyBench(Bench):
    """The user's own step on a copy of one parameter and of its state.

    table: the optimizer's parameters.
    index: which of them.
    function: the step as the user wrote it.
    has_closure: whether the step is called with a closure.
    """

    def __init__(self, table: ParameterTable, index: int, function: Callable[..., Any], has_closure: bool):
        super().__init__()
        self._function, self._arguments = function, [lambda: torch.zeros(())] if has_closure else []
        try:
            self._table = copied(table, [index], decoded=True)
        except Exception as error:
            raise TrialFailed(repr(error)) from error
        self._index, self.parameter = index, self._table.parameters[index]
        for group in self._table.optimizer.param_groups:  # a step may not expect parameters without a gradient
            group["params"] = [p for p in group["params"] if p is self.parameter]

    @property
    def state(self) -> dict[Any, Tensor]:
        shape, entries = self.parameter.shape, self._table.state(self._index)
        values = {k: v for k, v in entries.items() if isinstance(v, Tensor) and v.shape == shape}
        return {k: v for k, v in values.items() if v.is_floating_point()}

    @torch.no_grad()
    def run(self, grad: Tensor) -> None:
        self.parameter.grad = grad.to(self.parameter.device, self.parameter.dtype)
        try:
            with undisturbed(self._function, self._table.optimizer):
                self._function(self._table.optimizer, *self._arguments)
        except UnsupportedStep:
            pass  # it has changed something else, which is put back
        except Exception as error:
            raise TrialFailed(repr(error)) from error
