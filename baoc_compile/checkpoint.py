"""Checkpoints. A baoc optimizer's own `state_dict` holds its compressed state and loads like any other (call
`import baoc_compile` before `torch.load`); `export_state_dict` gives one that needs no baoc to load."""

from __future__ import annotations

from typing import Any

import torch

from baoc_compile.codec import WEIGHT_KEY
from baoc_compile.state_tensor import StateTensor


def export_state_dict(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` with every compressed entry decoded to the tensor that the stock optimizer would hold."""
    exported = dict(optimizer.state_dict())
    exported["state"] = {
        index: {key: _plain(value) for key, value in entries.items() if not _is_of_weight(value)}
        if isinstance(entries, dict)
        else entries
        for index, entries in exported["state"].items()
    }
    return exported


def master_weights(optimizer: Any) -> dict[torch.Tensor, torch.Tensor]:
    """Parameter -> its fp32 value, for every parameter of the optimizer whose weight codec keeps more than the weight shows.

    For a checkpoint in full precision, or to go on in fp32.
    """
    return {
        parameter: entries[WEIGHT_KEY].decode_weight(parameter)
        for parameter, entries in optimizer.state.items()
        if isinstance(entries, dict) and _is_of_weight(entries.get(WEIGHT_KEY))
    }


def _is_of_weight(value: Any) -> bool:
    return isinstance(value, StateTensor) and value.codec.kind == "weight"


@torch.no_grad()
def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, StateTensor) else value
