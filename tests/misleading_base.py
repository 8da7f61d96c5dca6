"""What the optimizers that mislead a recorder have in common: their base class, and the table that lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class OneByOne(torch.optim.Optimizer):
    """Steps its parameters one by one, each by `update`. The learning rate is 0.01 until someone changes it."""

    def __init__(self, params: Any, **options: Any):
        super().__init__(params, {"lr": 0.01, **options})
        self.begin()

    def begin(self) -> None:
        """Make the attributes."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, self.state[p], group)

    def update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Step one parameter."""
        raise NotImplementedError

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters."""
        return [p for group in self.param_groups for p in group["params"]]


@dataclass(frozen=True)
class Misleading:
    """One optimizer of the table.

    make: its class.
    expected: "right", "refused" (from the first step on) or "late" (refused at a later step).
    when_absent: the same where some gradients are absent at some steps.
    options: keyword arguments of the class.
    reset: called before a run, for what the class keeps outside of its instances.
    between: called before each step with the optimizer and the number of steps taken: what a training script changes.
    """

    make: Callable[..., Any]
    expected: str
    when_absent: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reset: Callable[[], None] = lambda: None
    between: Callable[[Any, int], None] = lambda optimizer, count: None


#: Every misleading optimizer, by its class's name.
TABLE: dict[str, Misleading] = {}


def misleads(expected: str, when_absent: str = "", **fields: Any) -> Callable[[type], type]:
    """Put a class into the table, with the outcome that it has."""

    def enter(made: type) -> type:
        TABLE[made.__name__] = Misleading(made, expected, when_absent or expected, **fields)
        return made

    return enter
