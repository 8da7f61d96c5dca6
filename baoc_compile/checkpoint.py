"""Checkpoints. A baoc optimizer's own `state_dict` holds its compressed state and loads like any other (call
`import baoc_compile` before `torch.load`); `export_state_dict` gives one that needs no baoc to load."""

from __future__ import annotations

from typing import Any

import torch

from baoc_compile.state_tensor import StateTensor


def export_state_dict(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` with every compressed entry decoded to the tensor that the stock optimizer would hold."""
    exported = dict(optimizer.state_dict())
    exported["state"] = {
        index: {key: _plain(value) for key, value in entries.items()} if isinstance(entries, dict) else entries
        for index, entries in exported["state"].items()
    }
    return exported


@torch.no_grad()
def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, StateTensor) else value
