"""The state entries whose tensors a recorded step makes or replaces, and the updates to which these belong."""

from __future__ import annotations

import builtins
from collections import defaultdict

import numpy as np
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import InputRole
from baoc_compile.passes.capture.leaves import leaves_at
from baoc_compile.passes.capture.refuse_overlap import offsets_of
from baoc_compile.passes.capture.stand_in import StandIn
from baoc_compile.passes.numbers.element_numbers import CHOICES
from baoc_compile.passes.recorder.recorder import Recorder
from baoc_compile.passes.recorder.recording import Call, Value, ValueGroup, origin_of, values_in

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


def created_state(stand_in: StandIn) -> list[tuple[InputRole, Value]]:
    """Return the entries that the step makes or replaces, in order, with their values.

    Raises UnsupportedStep for state that shares its memory with a parameter, a gradient or other state.
    """
    recorder = stand_in.recorder
    created: list[tuple[InputRole, Value]] = []
    in_memory: dict[int, list[Tensor]] = defaultdict(list)  # id of the tensor that owns the memory -> the entries in it
    index_of = {id(p): i for i, p in enumerate(stand_in.parameters)}
    for parameter, entries in stand_in.optimizer.state.items():
        index = stand_in.index_of(parameter)
        if index is None:
            continue
        for source, tensor in leaves_at(entries, "state", (), index, index_of):
            value = recorder.value_of(tensor) if isinstance(tensor, Tensor) else None
            if value is None:
                continue
            role = InputRole("state", index, source.path[0])
            if len(source.path) > 1:
                role = InputRole("nested", index, source.path, source)
            others = in_memory[recorder.memory.owner_of(tensor)]
            if any(other is tensor for other in others) and stand_in.placed.get(source) is tensor:
                continue  # one tensor in several places of the state, as before the step
            if any(_overlap(tensor, other) for other in others) or _is_shared(value, tensor, recorder, role):
                raise UnsupportedStep(
                    f"its {source} shares memory with another tensor; keep a copy (`.clone()`)"
                    if role.kind == "nested"
                    else f"its state {role.key!r} shares memory with another tensor; keep a copy (`.clone()`)"
                )
            others.append(tensor)
            if value.role is None and origin_of(value).role != role:
                created.append((role, value))
    return created


def _is_shared(value: Value, tensor: Tensor, recorder: Recorder, role: InputRole) -> bool:
    """Return whether a state entry shows elements of a tensor from before the step, or ones that were changed since."""
    memory, origin = recorder.memory, origin_of(value)
    if origin.call is not None and origin.call.name in CHOICES:
        return True  # it may be the tensor, or a number
    if memory.is_view(tensor):
        return memory.is_stale(tensor) or recorder.is_from_before(memory.owner_of(tensor))
    return origin.role is not None and origin.role != role


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors in the same memory share elements."""
    if a.dtype != b.dtype:
        return True
    places = [offsets_of(t).reshape(-1) + t.storage_offset() for t in (a, b)]
    return bool(np.intersect1d(*places).size)


def give_to_parameters(created: list[tuple[InputRole, Value]], stand_in: StandIn) -> None:
    """Let what becomes state belong to the state's parameter, though it was computed of tensors from before the step alone.

    What it is computed from belongs to the parameter then, and what is computed from that.
    """
    wanted: dict[Value, ValueGroup] = {}
    for role, value in created:
        if value.group is None:
            group = stand_in.groups_of[role.parameter]
            wanted[value] = group if value not in wanted else wanted[value].join(group)
    if not wanted:
        return
    calls = stand_in.recorder.calls
    for call in reversed(calls):
        groups = [wanted[v] for v in call.results if v in wanted]
        for value in values_in(call) if groups else ():
            if value.group is None and value.role is None:
                wanted[value] = _joined([*groups, *([wanted[value]] if value in wanted else [])])
    for call in calls:
        _give(call, wanted)


def _give(call: Call, wanted: dict[Value, ValueGroup]) -> None:
    """Let a call belong to the parameters of the values that it makes or takes, if these were given to some."""
    values = values_in(call)
    groups = [wanted[v] for v in (*call.results, *values) if v in wanted]
    if not groups:
        return
    known = [v.group for v in (*call.results, *values) if v.group is not None]
    call.group = group = _joined([*groups, *known, *([call.group] if call.group is not None else [])])
    for result in call.results:
        result.group = wanted[result] = group


def _joined(groups: list[ValueGroup]) -> ValueGroup:
    first, *others = groups
    for other in others:
        first = first.join(other)
    return first
