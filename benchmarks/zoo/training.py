"""A small problem that every optimizer is stepped on: three parameters, a quadratic loss with noise, the same for all.

The gradient is h (p - target) + noise: it depends on the weights, so that a wrong step shows in later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = ((64, 96), (128, 48), (96,))
NOISE = 0.5


@dataclass(frozen=True)
class Way:
    """How an optimizer wants to be stepped."""

    closure: bool = False
    create_graph: bool = False
    matrices_only: bool = False


class Problem:
    """Parameters and their loss.

    parameters: float32, of `SHAPES`.
    create_graph: whether gradients can be differentiated.
    """

    def __init__(self, way: Way):
        generator, create_graph = torch.Generator().manual_seed(0), way.create_graph
        shapes = [s for s in SHAPES if len(s) == 2 or not way.matrices_only]
        self.parameters = [nn.Parameter(0.1 * torch.randn(s, generator=generator)) for s in shapes]
        self.targets = [p.detach() + torch.randn(p.shape, generator=generator) for p in self.parameters]
        self.curvatures = [torch.rand(p.shape, generator=generator) + 0.5 for p in self.parameters]
        self.create_graph = create_graph
        self.noise: list[Tensor] = []
        self.start = [p.detach().clone() for p in self.parameters]
        self._generator = generator

    def draw(self) -> None:
        """Draw the noise of the next step."""
        self.noise = [NOISE * torch.randn(p.shape, generator=self._generator) for p in self.parameters]

    def closure(self) -> Tensor:
        """Compute the loss and the gradients."""
        for p in self.parameters:
            p.grad = None
        with torch.enable_grad():
            terms = zip(self.parameters, self.targets, self.curvatures, self.noise, strict=True)
            loss = torch.stack([(0.5 * h * (p - t) ** 2 + n * p).sum() for p, t, h, n in terms]).sum()
            loss.backward(create_graph=self.create_graph)
        return loss.detach()

    def update(self) -> Tensor:
        """Return what has been added to the parameters since the start, flat, in float64."""
        pairs = zip(self.parameters, self.start, strict=True)
        return torch.cat([(p.detach() - s).reshape(-1).double() for p, s in pairs])


def train(
    make: Callable[[Any], Any],
    way: Way,
    steps: int,
    prepare: Callable[[Any], None] = lambda optimizer: None,
    after: Callable[[Any, Problem], None] = lambda optimizer, problem: None,
) -> tuple[Any, Problem, list[Tensor]]:
    """Step an optimizer; return it, the problem, and the update after every step."""
    torch.manual_seed(0)
    problem = Problem(way)
    optimizer = make(problem.parameters)
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    prepare(optimizer)
    updates = []
    for _ in range(steps):
        problem.draw()
        if way.closure:
            optimizer.step(problem.closure)
        else:
            problem.closure()
            optimizer.step()
        updates.append(problem.update())
        after(optimizer, problem)
    return optimizer, problem, updates


WAYS = [Way(*flags) for flags in ((), (True,), (False, False, True), (False, True), (True, True))]
