"""A contender: a way to make the optimizer of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evidence.rules import Rule

__all__ = ["BASELINE", "OURS", "RIVAL", "Contender", "Setting", "state_bytes"]

#: What a contender is to the page.
BASELINE, OURS, RIVAL = "baseline", "ours", "rival"


@dataclass(frozen=True)
class Setting:
    """What an optimizer is made for; `parameters` are those of `model` that are trained."""

    rule: Rule
    model: nn.Module
    parameters: list[Tensor]
    lr: float
    seed: int


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of every tensor in the optimizer's state, of whatever class, each counted once."""
    tensors = {t.data_ptr(): t for t in _tensors(dict(optimizer.state))}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors that hold the data, below containers, tensor subclasses and objects with attributes."""
    if hasattr(value, "__tensor_flatten__"):
        return [t for name in value.__tensor_flatten__()[0] for t in _tensors(getattr(value, name))]
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for entry in value.values() for t in _tensors(entry)]
    if isinstance(value, list | tuple):
        return [t for entry in value for t in _tensors(entry)]
    return _tensors(vars(value)) if hasattr(value, "__dict__") else []


@dataclass(frozen=True)
class Contender:
    """
    about: what it is, in a sentence of the page.
    make: name of an update rule -> how its optimizer is made. It runs on the workloads with these rules.
    kind: BASELINE, OURS or RIVAL.
    factors: the learning rates it is tried with, as multiples of the baseline's best.
    bytes: optimizer -> bytes of its state.
    package: the distribution it comes from, empty for torch and this project.
    """

    name: str
    about: str
    make: Mapping[str, Callable[[Setting], Any]]
    kind: str = RIVAL
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    bytes: Callable[[Any], int] = state_bytes
    package: str = ""
