"""Find what a recorded step changed besides the elements of tensors, and how the state begins that it made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from baoc_compile.core.errors import StateToCome, UnsupportedStep
from baoc_compile.core.parameter_table import InputRole
from baoc_compile.passes.capture.leaves import is_constant, leaves_of, snapshot
from baoc_compile.passes.capture.stand_in import StandIn
from baoc_compile.passes.capture.stand_in_containers import StateEntries
from baoc_compile.passes.numbers.element_numbers import CHOICES, is_of_elements
from baoc_compile.passes.numbers.expressions import Attribute, Expression, Source
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value
from baoc_compile.passes.recorder.number_recorder import HoldsElements
from baoc_compile.passes.recorder.recorder import Recorder
from baoc_compile.passes.recorder.recording import Beginning, Recording, Value, Write, origin_of


def find_writes(stand_in: StandIn) -> Recording:
    """Return a recording without calls: what the step changed, and the beginnings of new state.

    Raises UnsupportedStep for a change that can't be made again on the real optimizer.
    """
    recorder = stand_in.recorder
    recording = Recording([], [], [], [], {}, constants=stand_in.constants)
    before, after = stand_in.placed, dict(leaves_of(stand_in.optimizer, stand_in.parameters))
    missing = next((source for source in before if source not in after), None)
    if missing is not None:
        error = StateToCome if missing.kind == "state" else UnsupportedStep
        raise error(f"it deletes or restructures {missing}")
    for source, value in after.items():
        old = before.get(source)
        if isinstance(value, tuple) and value[:1] == ("parameter",):
            if stand_in.index_of(old) != value[1]:
                raise UnsupportedStep(f"it puts a parameter at {source}")
            continue
        if source in before and old is value and not isinstance(value, Tensor):
            if source in stand_in.snapshots and _snapshot(value) != stand_in.snapshots[source]:
                raise UnsupportedStep(f"it changes {source}, a {type(value).__name__}")
            continue
        if isinstance(value, Tensor):
            write = _tensor(recorder, source, old, value)
        elif is_of_elements(value):
            if type(plain_value(old)) is not float:
                raise StateToCome(f"it makes {source} a number of elements")
            write = Write(source, recorder.value_of(value.tensor))
        elif is_traced(value):
            if value.expression.source == source:
                continue
            write = Write(source, value.expression)
        elif source in before and type(old) is type(value) and not is_traced(old) and _same(old, value):
            continue
        elif type(value) in (int, float, bool, str) or value is None:
            write = Write(source, value)
        elif source in before and is_constant(value) and old == value:
            continue
        else:
            raise UnsupportedStep(f"it changes {source}, a {type(value).__name__}")
        if write is not None:
            if _is_in_tuple(stand_in, source):
                raise UnsupportedStep(f"it replaces a tuple, of which {source} is an entry")
            if source.kind != "state" and source not in before:
                raise UnsupportedStep(f"it makes {source}")
            recording.writes.append(write)
    written = {id(w.value) for w in recording.writes if isinstance(w.value, Value)}
    for source, value in after.items():
        if source.kind == "state" and isinstance(value, Tensor) and id(recorder.value_of(value)) in written:
            raise UnsupportedStep(f"its {source} is kept elsewhere, too")
    _find_beginnings(stand_in, recording)
    return recording


def _snapshot(value: Any) -> Any:
    try:
        return snapshot(value)
    except Exception:
        return None


def _is_in_tuple(stand_in: StandIn, source: Source) -> bool:
    """Return whether a place is an entry of a tuple, which can't be changed."""
    first, *path = source.path
    if source.kind == "state":
        holder: Any = stand_in.optimizer.state[stand_in.parameters[source.parameter]]
        path = list(source.path)
    else:
        holder = (
            stand_in.optimizer.param_groups[first] if source.kind == "group" else vars(stand_in.optimizer).get(first)
        )
    for key in path:
        if isinstance(holder, tuple):
            return True
        if isinstance(key, Attribute):
            holder = getattr(holder, key.name, None)
        else:
            key = stand_in.parameters[key[1]] if isinstance(key, tuple) and key[:1] == ("parameter",) else key
            holder = dict.get(holder, key) if isinstance(holder, dict) else holder[key]
    return False


def _same(old: Any, new: Any) -> bool:
    return old is new or (old == new and type(old) in (str, bytes, bool, int, float))


def _tensor(recorder: Recorder, source: Source, old: Any, tensor: Tensor) -> Write | None:
    """Return the write of a 0-dim tensor on the host; None for other tensors, whose calls say what becomes of them."""
    held = recorder.numbers.get(id(tensor))
    if held is None:
        if source.kind != "state":
            return None if tensor is old else _element(recorder, source, old, tensor)
        if isinstance(old, Tensor) and id(old) in recorder.numbers:
            raise HoldsElements(recorder.numbers[id(old)])
        if len(source.path) > 1 and not (isinstance(old, Tensor) and _is_alike(old, tensor)):
            raise StateToCome(f"it makes {source} inside a list or dictionary of state")
        return None
    if tensor is old and held.expression is held.initial:
        return None
    if isinstance(held.expression, Expression) and held.expression.source == _tensor_source(source):
        return None
    value = held.expression if held.expression is not None else tensor.item()
    if isinstance(old, Tensor) and old.dtype != tensor.dtype:
        raise UnsupportedStep(f"it changes the type of {source}")
    return Write(source, value, tensor.dtype)  # a replaced tensor is changed in place instead


def _element(recorder: Recorder, source: Source, old: Any, tensor: Tensor) -> Write:
    """Return the write of a tensor that takes the place of a number or a tensor outside of the state."""
    value = recorder.value_of(tensor)
    origin = None if value is None else origin_of(value)
    is_own = origin is not None and origin.role is None and origin.call is not None and origin.call.name not in CHOICES
    if not is_own or recorder.memory.shows(tensor):
        raise UnsupportedStep(f"it changes {source}, a tensor that is no state")
    if not isinstance(old, Tensor) or not _is_alike(old, tensor):
        raise StateToCome(f"it makes {source} another tensor")
    return Write(source, value, tensor.dtype)


def _is_alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _tensor_source(source: Source) -> Source:
    return Source(source.kind, source.path, source.parameter, True)


def _find_beginnings(stand_in: StandIn, recording: Recording) -> None:
    """Say how state begins that the step made: as a number, a constant, a copy; otherwise its piece makes it."""
    recorder, index = stand_in.recorder, {id(p): i for i, p in enumerate(stand_in.parameters)}
    for parameter, entries in stand_in.optimizer.state.items():
        if id(parameter) not in index:
            continue
        if not isinstance(entries, dict):
            raise UnsupportedStep("its state is no dictionary")
        made = {}
        for key in entries:
            source = Source("state", (key,), index[id(parameter)])
            if source in stand_in.placed or not isinstance(entries, StateEntries):
                continue
            first = entries.first.get(key)
            beginning = _beginning(recorder, first)
            if beginning is not None:
                made[key] = beginning
                if isinstance(first, Tensor) and beginning.kind != "number":
                    _becomes_input(recorder, first, index[id(parameter)], key)
        if made:
            recording.beginnings[index[id(parameter)]] = made


def _becomes_input(recorder: Recorder, first: Tensor, index: int, key: Any) -> None:
    """Turn the value that a call made into an input: the entry exists before the step runs."""
    value = recorder.made[id(first)]
    assert value.call is not None
    recorder.dropped.add(value.call)
    value.call, value.role = None, InputRole("state", index, key)


def _beginning(recorder: Recorder, first: Any) -> Beginning | None:
    """Return how an entry begins whose first assigned object is `first`; None if only its piece can make it."""
    if isinstance(first, Beginning):
        return first
    value = recorder.made.get(id(first)) if isinstance(first, Tensor) else None
    return None if value is None else _of_value(value)


_CASTS = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous")


def _of_value(value: Value) -> Beginning | None:
    call = value.call
    if call is None:
        return None
    constant = {"zeros_like": 0.0, "zeros": 0.0, "new_zeros": 0.0, "ones_like": 1.0, "ones": 1.0, "new_ones": 1.0}
    if call.name in constant:
        return Beginning("filled", constant[call.name], value.dtype, value.shape)
    if call.name in ("full_like", "full", "new_full"):
        position = 1 if call.name == "full_like" else 2 if call.name == "new_full" else 1
        given = call.arguments[position] if len(call.arguments) > position else call.options.get("fill_value")
        if isinstance(given, (int, float, Expression)):
            return Beginning("filled", given, value.dtype, value.shape)
    source = call.arguments[0] if call.arguments else None
    if call.name in ("clone", *_CASTS) and isinstance(source, Value):
        if source.role is not None and source.role.kind == "param" and call.name == "clone":
            return Beginning("parameter", dtype=value.dtype, shape=value.shape)
        found = _of_value(source)
        return None if found is None else replace(found, dtype=value.dtype)
    return None
