"""Gradient streams: the samples of one parameter that risks are estimated from, recorded while training runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.rule import UpdateRule


@dataclass
class SharedIncrements:
    """The means of one slot that may be shared, as the `n` sampled elements see them.

    Means come by name: "rows" and "columns" `[n]`, each element's own row and column mean, and "mean", one number.

    start: the means when sampling began.
    snr: the slot's signal-to-noise ratios along "row", "column" and "tensor" when sampling began (see
        `BlockStatistics`).
    added: for each step, the means of what the step added (see `IncrementMeans`).
    decays: for each step, the factor on the old mean: new mean = decay * old mean + added mean.
    """

    start: dict[str, Tensor]
    snr: dict[str, float]
    added: list[dict[str, Tensor]] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)


@dataclass
class GradientStream:
    """`n` sampled elements of one parameter over consecutive steps, in host memory; values are fp32.

    numel: the number of elements of the parameter.
    index: `[n]` int64, row-major positions in whole quantization groups, padded by repeating the last element.
    param: `[n]`, the weights when sampling began.
    slots: state key -> `[n]`, the slot when sampling began.
    counters: the rule's input name -> the counter when sampling began.
    lines: the rule's input name -> `[n]`, the state of each element's row or column when sampling began.
    grads: for each step, `[n]`, the gradient as the optimizer saw it.
    numbers: for each step, the rule's scalars by name.
    rules: for each step, the rule; a change of hyperparameters may change it while sampling goes on.
    shared: state key -> the means of a slot that may be shared.
    """

    numel: int
    index: Tensor
    param: Tensor
    slots: dict[str, Tensor]
    counters: dict[str, float]
    lines: dict[str, Tensor] = field(default_factory=dict)
    grads: list[Tensor] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    rules: list[UpdateRule] = field(default_factory=list)
    shared: dict[str, SharedIncrements] = field(default_factory=dict)

    @property
    def weights(self) -> Tensor:
        """`[n]`: the number of elements of the parameter that each sampled element stands for; 0 for padding."""
        distinct = torch.ones(len(self.index))
        distinct[1:] = (self.index.diff() != 0).float()
        return distinct * (self.numel / distinct.sum().clamp(min=1.0))

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the stream."""
        yield from (self.index, self.param, *self.slots.values(), *self.lines.values(), *self.grads)
        for increments in self.shared.values():
            for means in (increments.start, *increments.added):
                yield from means.values()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return the stream as plain dictionaries, lists, numbers and tensors; rules by their keys."""
        shared = {key: dict(vars(s)) for key, s in self.shared.items()}
        return {**vars(self), "shared": shared, "rules": [rule.key for rule in self.rules]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], known: Mapping[str, UpdateRule]) -> GradientStream:
        """Rebuild a stream from its `state_dict`, given rules by their keys. Raises KeyError for a rule that is not known."""
        rules = [known[key] for key in state["rules"]]
        shared = {key: SharedIncrements(**s) for key, s in state["shared"].items()}
        return cls(**{**state, "shared": shared, "rules": rules})
