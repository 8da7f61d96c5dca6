"""Storage simulated outside of the project: eager steps whose state is rounded after each of them.

Every float state tensor of its parameter's shape becomes a minifloat of 8 bits under a power of two for each 32 elements
of a row, by stochastic rounding: e3m5 if it has never been negative, else e2m5. A tensor that began as its parameter is
stored as the difference to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

GROUP = 32


def float_state(optimizer: Any) -> Iterator[tuple[Tensor, Any, Tensor]]:
    """Return (parameter, key, tensor) of all float state that has its parameter's shape."""
    for parameter, entries in list(optimizer.state.items()):
        if isinstance(parameter, Tensor) and isinstance(entries, dict):
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    yield parameter, key, value


class Simulation:
    """Called after every step."""

    def __init__(self) -> None:
        self.was_negative: set[tuple[int, Any]] = set()
        self.follows: dict[tuple[int, Any], bool] = {}
        self.random = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def __call__(self, optimizer: Any, problem: Any) -> None:
        starts = {id(p): s for p, s in zip(problem.parameters, problem.start, strict=True)}
        for parameter, key, value in float_state(optimizer):
            place = (id(parameter), key)
            if place not in self.follows:
                far = (value - starts[id(parameter)]).norm()
                self.follows[place] = bool(far < 0.5 * starts[id(parameter)].norm())
            if parameter.numel() < 4096:
                continue
            base = parameter.detach() if self.follows[place] else torch.zeros_like(value)
            if (value - base < 0).any():
                self.was_negative.add(place)
            exponent_bits = 2 if place in self.was_negative else 3
            value.copy_(base + self._rounded(value - base, exponent_bits, 5))

    def _rounded(self, value: Tensor, exponent_bits: int, mantissa_bits: int) -> Tensor:
        rows = value.reshape(value.shape[0], -1) if value.ndim > 1 else value.reshape(1, -1)
        padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).view(rows.shape[0], -1, GROUP).double()
        top = torch.frexp(padded.abs().amax(-1, keepdim=True).clamp_min(2.0**-100)).exponent
        own = torch.frexp(padded.abs().clamp_min(2.0**-120)).exponent
        exponent = torch.maximum(own, top - (2**exponent_bits - 2)) - 1 - mantissa_bits
        step = torch.ldexp(torch.ones_like(padded), exponent)
        word = torch.rand(padded.shape, generator=self.random, dtype=torch.float64)
        rounded = torch.floor(padded.abs() / step + word) * step * padded.sign()
        return rounded.view(rows.shape[0], -1)[:, : rows.shape[1]].reshape(value.shape).to(value.dtype)
