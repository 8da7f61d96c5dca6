"""Checkpoints. A baoc optimizer's own `state_dict` holds its compressed state and loads like any other (call
`import baoc_compile` before `torch.load`); `export_state_dict` gives one that needs no baoc to load."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from baoc_compile.core.codec import WEIGHT_KEY
from baoc_compile.core.errors import PlanError
from baoc_compile.kernels.codecs.catalogue import codec_named, full_precision
from baoc_compile.runtime.session import Session
from baoc_compile.state.plan import Plan
from baoc_compile.state.state_tensor import StateTensor

log = logging.getLogger("baoc")

#: The entry of an optimizer's `state_dict` that holds the plan and what the configurator has seen. Others ignore it.
KEY = "baoc"


def keep_in_checkpoints(session: Session) -> None:
    """From now on the optimizer's `state_dict` holds the plan and the configurator, and `load_state_dict` restores them."""
    optimizer: Any = session.optimizer()
    reference = weakref.ref(session)
    if session.is_in_checkpoints or not hasattr(optimizer, "register_state_dict_post_hook"):
        return
    session.is_in_checkpoints = True

    def save(_: Any, state: dict[str, Any]) -> None:
        known = reference()
        if known is not None and known.storage.parameters:
            configurator = known.configurator.state_dict() if known.configurator is not None else known.resumed
            state[KEY] = {"plan": known.plan().to_json(), "configurator": configurator}

    def load(_: Any, state: dict[str, Any]) -> None:
        known = reference()
        if known is not None and KEY in state:
            _restore(known, state[KEY])

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)


def _restore(session: Session, saved: Mapping[str, Any]) -> None:
    """The checkpoint's storage replaces the session's, unless the user named a plan or a budget that they exceed.

    Raises PlanError if the checkpoint was made for other parameters; then nothing has changed.
    """
    plan, table = Plan.from_json(saved["plan"]), session.table()
    for index, entry in plan.parameters.items():
        if index >= len(table.parameters) or tuple(table.parameters[index].shape) != tuple(entry.shape):
            raise PlanError(
                f"the checkpoint's parameter {index} ({entry.name}) has shape {entry.shape}: no such parameter"
            )
    budget = session.request.budget
    if budget is None:
        return
    if session.request.is_explicit and not budget.is_deferred:
        codecs = [(i, codec_named(name)) for i, e in plan.parameters.items() for name in e.slots.values()]
        shapes = {i: table.parameters[i].shape for i in plan.parameters}
        size = sum(codec.storage_bytes(shapes[i]) for i, codec in codecs)
        full = sum(
            full_precision(table.parameters[i].dtype).storage_bytes(shapes[i])
            for i, c in codecs
            if c.mechanism != "weight"
        )
        limit = budget.in_bytes(full, sum(s.numel() for s in shapes.values()))
        if size > limit:
            log.warning(
                "the checkpoint's plan takes %d bytes, more than the budget's %d: it is planned anew", size, limit
            )
            return
    loaded = plan.storage
    session.store(replace(loaded, parameters={**session.storage.parameters, **loaded.parameters}))
    if session.configurator is not None and saved["configurator"] is not None:
        session.configurator.load_state_dict(saved["configurator"])


def export_state_dict(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` with every compressed entry decoded to the tensor that the stock optimizer would hold."""
    exported = dict(optimizer.state_dict())
    exported.pop(KEY, None)
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
    return isinstance(value, StateTensor) and value.codec.mechanism == "weight"


@torch.no_grad()
def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, StateTensor) else value
