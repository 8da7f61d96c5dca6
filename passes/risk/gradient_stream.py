"""What was seen of a few elements of one parameter while training ran: the material that risks are judged from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class SharedIncrements:
    """Of one slot: `start`, its means when sampling began, and for each step the means of what the step added (see
    `IncrementMeans`), each as the sampled elements have a share in them: "rows" and "columns" `[n]`, "mean" `[1]`.
    `decays[t]`: new mean = decay * old mean + added mean. `snr`: signal-to-noise ratios of the slot along "row",
    "column" and "tensor" when sampling began (see `BlockStatistics`)."""

    start: dict[str, Tensor]
    snr: dict[str, float]
    added: list[dict[str, Tensor]] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)


@dataclass
class GradientStream:
    """`n` sampled elements of one parameter of `numel`, over consecutive steps. All in host memory, values in fp32.

    `index` `[n]`: int64, row-major, whole quantization groups, padded by repeating the last element. `param` `[n]`,
    `slots` and `counters` (by the rule's input name): when sampling began. For each step t: `grads[t]` `[n]` as the
    optimizer saw it, and `numbers[t]`, the rule's scalars by name.
    """

    numel: int
    index: Tensor
    param: Tensor
    slots: dict[str, Tensor]
    counters: dict[str, float]
    grads: list[Tensor] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    shared: dict[str, SharedIncrements] = field(default_factory=dict)

    @property
    def weights(self) -> Tensor:
        """`[n]`: how many elements of the parameter each sampled one stands for; 0 for padding."""
        distinct = torch.ones(len(self.index))
        distinct[1:] = (self.index.diff() != 0).float()
        return distinct * (self.numel / distinct.sum().clamp(min=1.0))

    @property
    def tensors(self) -> Iterator[Tensor]:
        yield from (self.index, self.param, *self.slots.values(), *self.grads)
        for increments in self.shared.values():
            for means in (increments.start, *increments.added):
                yield from means.values()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and tensors."""
        return {**vars(self), "shared": {key: dict(vars(s)) for key, s in self.shared.items()}}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> GradientStream:
        shared = {key: SharedIncrements(**s) for key, s in state["shared"].items()}
        return cls(**{**state, "shared": shared})
