"""State of DTensors in checkpoints: each process saves its parts, and any number of processes loads them.

`torch.distributed.checkpoint` keeps nothing of an optimizer's `state_dict` but tensors and groups, and loads by copying parts
into what is there. So everything travels with the parts: the codec, the clock and the salt of each slot, and in the first slot
a note with the plan. Slots in full precision are shown as state tensors, too: by that they differ from those of an optimizer that
knows no plan, whose values are stored as the plan in force says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from baoc_compile.core.shard import whole_of
from baoc_compile.core.torch_private import is_distributed
from baoc_compile.kernels.codecs.plain import Full
from baoc_compile.passes.migrate.unite_means import UnitedMeans
from baoc_compile.runtime.distributed.ranks import Ranks
from baoc_compile.runtime.session import Session
from baoc_compile.state.state_tensor import StateTensor

#: The entry of `state_dict` with the plan and the configurator's state. Stock optimizers ignore it.
KEY = "baoc"


def show_parts(session: Session, state_dict: dict[str, Any]) -> None:
    """Let a `state_dict` show every slot of a DTensor as a state tensor, the first one with the note."""
    table, note = session.table(), ""
    local, saved = table.local, dict(state_dict["state"])
    for index, parameter in enumerate(table.parameters):
        if not is_distributed(parameter) or index not in saved:
            continue
        entries = saved[index] = dict(saved[index])
        for key, codec in session.storage.of(index).codecs.items():
            value = local.state(index).get(key)
            if isinstance(codec, Full) and type(value) is Tensor and value.dtype == codec.parts[0].dtype:
                value = StateTensor(value.shape, value.dtype, codec, 0, {codec.parts[0].name: value})
                entries[key] = whole_of(parameter, value)
            if isinstance(value, StateTensor) and not note:
                value.note = note = _note(state_dict[KEY])
    state_dict["state"] = saved


def _note(of: Mapping[str, Any]) -> str:
    """Return the plan, and how far the configurator is, as text. Samples that it has taken so far are not saved."""
    configurator = of["configurator"]
    if configurator is not None:
        configurator = {key: configurator[key] for key in ("steps", "due", "history")}
    return json.dumps({"plan": of["plan"], "configurator": configurator})


def take_parts(session: Session) -> dict[str, Any] | None:
    """Return what the note says that came with loaded state, on all ranks; None without one."""
    ranks = Ranks.of_parts(session.table())
    own = next((value.note for _, _, value in _stored(session) if value.note), "")
    if ranks.is_alone and not own:
        return None
    note = ranks.first_said(own)
    for _, _, value in _stored(session):
        value.note = ""
    if not note:
        return None
    found = json.loads(note)
    if found["configurator"] is not None:
        found["configurator"] |= {"sampler": None, "profile": None}
    return found


def settle_parts(session: Session) -> None:
    """Take state in the form in which it was loaded, where the plan says so. Full precision becomes plain tensors again.

    All processes have to call this: what is loaded into some rows changes the means over all.
    """
    table = session.table().local
    for index, key, value in _stored(session):
        codec = session.storage.of(index).codecs.get(key)
        if value.loaded is not None and value.loaded.codec is codec:
            value = table.state(index)[key] = value.loaded
        value.loaded = None
        if isinstance(value.codec, Full) and value.dtype == value.codec.parts[0].dtype:
            table.state(index)[key] = value.parts[value.codec.parts[0].name]
    UnitedMeans((table.wholes[index], value) for index, _, value in _stored(session)).unite()


def _stored(session: Session) -> Iterator[tuple[int, Any, StateTensor]]:
    """Yield (parameter index, key, state tensor) of every compressed entry of DTensors."""
    table = session.table()
    local = table.local
    for index, parameter in enumerate(table.parameters):
        if is_distributed(parameter):
            for key, value in list(local.state(index).items()):
                if isinstance(value, StateTensor):
                    yield index, key, value
