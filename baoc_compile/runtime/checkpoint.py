"""Checkpoints: the optimizer's own `state_dict` with plan and compressed state, and an export that needs no baoc.

A baoc checkpoint loads like any other. `torch.load(weights_only=True)` needs `import baoc_compile` before.
`export_state_dict` returns a checkpoint that the stock optimizer loads.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from baoc_compile.core.codec import WEIGHT_KEY
from baoc_compile.core.errors import PlanError
from baoc_compile.core.shard import local_of, whole_of
from baoc_compile.kernels.codecs.catalogue import codec_named, full_precision
from baoc_compile.runtime.distributed.parts_in_checkpoints import KEY, settle_parts, show_parts, take_parts
from baoc_compile.runtime.session import Session
from baoc_compile.state.entries import anchor_state, state_tensors
from baoc_compile.state.plan import Plan
from baoc_compile.state.state_tensor import StateTensor

log = logging.getLogger("baoc")


def keep_in_checkpoints(session: Session) -> None:
    """Make the optimizer's `state_dict` hold plan and configurator, and its `load_state_dict` restore them."""
    optimizer: Any = session.optimizer()
    reference = weakref.ref(session)
    if session.hooks or not hasattr(optimizer, "register_state_dict_post_hook"):
        return

    def save(_: Any, state: dict[str, Any]) -> None:
        known = reference()
        if known is not None and known.storage.parameters:
            configurator = known.configurator.state_dict() if known.configurator is not None else known.resumed
            state[KEY] = {"plan": known.plan().to_json(), "configurator": configurator}
            show_parts(known, state)

    def load(_: Any, state: dict[str, Any]) -> None:
        known = reference()
        if known is not None and KEY in state:
            _restore(known, state[KEY])

    def anchor(_: Any) -> None:
        known = reference()
        if known is not None:
            note = take_parts(known)
            if note is not None:
                _restore(known, note)
            settle_parts(known)
            for state in state_tensors(known.table()):
                state.stamp = None if state.anchor is not None else state.stamp  # weights may have changed with them
            anchor_state(known.table())

    session.hooks = [
        optimizer.register_state_dict_post_hook(save),
        optimizer.register_load_state_dict_pre_hook(load),
        optimizer.register_load_state_dict_post_hook(anchor),
    ]


def _restore(session: Session, saved: Mapping[str, Any]) -> None:
    """Replace the session's storage by the checkpoint's.

    It stays if the user named a plan, or a budget that the checkpoint's plan exceeds. Raises PlanError if the
    checkpoint was made for other parameters; nothing has changed then.
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
    """Return `optimizer.state_dict()` as the stock optimizer would: every compressed entry decoded, nothing of baoc's.

    A dropped slot is exported as zeros.
    """
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
    """Return parameter -> fp32 value, for every parameter whose weight codec keeps more than the weight shows.

    Use them for a checkpoint in full precision, or to go on training in fp32.
    """
    return {
        parameter: whole_of(parameter, local_of(entries[WEIGHT_KEY]).decode_weight(local_of(parameter)))
        for parameter, entries in optimizer.state.items()
        if isinstance(entries, dict) and _is_of_weight(entries.get(WEIGHT_KEY))
    }


def _is_of_weight(value: Any) -> bool:
    value = local_of(value)
    return isinstance(value, StateTensor) and value.codec.mechanism == "weight"


@torch.no_grad()
def _plain(value: Any) -> Any:
    local = local_of(value)
    return whole_of(value, local.decode()) if isinstance(local, StateTensor) else value
