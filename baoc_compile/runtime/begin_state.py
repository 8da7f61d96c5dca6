"""Make the state that an optimizer's first step would make, stored as the plan says from its first byte.

What begins as a number or a copy is made before the step, and made anew at the parameter's first step if the number has
changed until then.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Slot
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.passes.migrate.migrate_state import stored
from baoc_compile.passes.numbers.expressions import Expression, Source
from baoc_compile.passes.numbers.number_function import compile_numbers
from baoc_compile.passes.recorder.recording import Beginning
from baoc_compile.passes.rewrite.places import object_at
from baoc_compile.passes.rules.reading import Reading, StepReading
from baoc_compile.runtime.session import Session
from baoc_compile.state.entries import fresh
from baoc_compile.state.state_tensor import StateTensor


@dataclass
class _Born:
    """State that no step has changed yet.

    beginnings: state key -> how it begins.
    values: state key -> the number with which it began.
    state: the parameter's state; another dictionary has been loaded, and is none that was made here.
    """

    beginnings: Mapping[str, Beginning]
    values: dict[str, Any]
    state: MutableMapping[Any, Any]


@dataclass
class Unborn:
    """The parameters whose state was made ahead, until their first step."""

    _of: dict[int, _Born] = field(default_factory=dict)
    _zeros: set[int] = field(default_factory=set)
    _numbers: dict[Source, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, made: Mapping[int, _Born], found: StepReading) -> None:
        """Remember state that was made."""
        self._of |= made
        self._zeros |= found.assumes_zeros.keys() & made.keys()
        sources = found.warm.recording.sources.items() if found.assumes_zeros else ()
        self._numbers |= {source: e.value for source, e in sources if source.kind != "state"}

    def were_stepped(self, present: frozenset[int]) -> None:
        """Forget the parameters that have taken a step."""
        for index in present & self._of.keys():
            del self._of[index]
        self._zeros -= present

    def assumptions_changed(self, table: ParameterTable) -> bool:
        """Return whether state begins at 0 only for numbers that are other ones now."""
        return bool(self._zeros) and not all(
            _equal(_read(source, table), value) for source, value in self._numbers.items()
        )

    def take_back(self, table: ParameterTable) -> None:
        """Delete the state that was made ahead and that no step has changed."""
        for index, born in self._of.items():
            entries = table.state(index)
            if entries is not born.state:
                continue
            for key in born.beginnings:
                entries.pop(key, None)
            if not entries:
                table.optimizer.state.pop(table.wholes[index], None)
        self._of, self._zeros, self._numbers = {}, set(), {}

    def begin_anew(self, session: Session, present: frozenset[int]) -> None:
        """Make the state of parameters that take their first step now again, where its beginning has changed."""
        table, storage = session.table(), session.storage
        for index in present & self._of.keys():
            born, of = self._of[index], table.local
            for key, beginning in born.beginnings.items():
                if not _depends(beginning) or table.state(index) is not born.state:
                    continue
                value = _number(beginning.value, table)
                if beginning.kind != "parameter" and _equal(value, born.values[key]):
                    continue
                _put(of.state(index), key, _entry(of, index, key, beginning, value, storage))
                born.values[key] = value


def _depends(beginning: Beginning) -> bool:
    return beginning.kind == "parameter" or isinstance(beginning.value, Expression)


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


def _put(state: MutableMapping[Any, Any], key: str, entry: Any) -> None:
    """Give an entry another value. A tensor is changed in place: the step is bound to it."""
    old = state.get(key)
    if isinstance(old, StateTensor) and isinstance(entry, StateTensor):
        for name, part in old.parts.items():
            part.copy_(entry.parts[name])
    elif isinstance(old, Tensor) and isinstance(entry, Tensor):
        old.copy_(entry)
    else:
        state[key] = entry


def begin_state(reading: Reading, table: ParameterTable, storage: Storage) -> dict[int, _Born]:
    """Make the missing state of every parameter of a reading; return what was made, by parameter index."""
    made, local = {}, table.local
    for index, beginnings in reading.beginnings.items():
        state = table.state(index)
        missing = {key: b for key, b in beginnings.items() if key not in state}
        if not missing:
            continue
        values = {key: _number(b.value, table) for key, b in missing.items()}
        entries = {key: _entry(local, index, key, b, values[key], storage) for key, b in missing.items()}
        for key, entry in entries.items():
            table.put(index, key, entry)
        made[index] = _Born(missing, values, table.state(index))
    return made


def _entry(table: ParameterTable, index: int, key: str, beginning: Beginning, value: Any, storage: Storage) -> Any:
    """Return a new entry of the state, of what this process holds.

    table: the table of local tensors.
    """
    parameter, shape, codec = table.parameters[index], table.wholes[index].shape, storage.of(index).codecs.get(key)
    if beginning.kind == "number":
        return value if beginning.dtype is None else torch.tensor(value, dtype=beginning.dtype)
    assert beginning.dtype is not None
    if beginning.kind == "parameter":
        copied = parameter.detach().to(beginning.dtype, copy=True)
        if codec is None:
            return copied
        return stored(parameter, copied, codec, key, storage.seed, table.first_lane(index))
    if codec is None or tuple(beginning.shape) != tuple(shape):
        if tuple(beginning.shape) == tuple(shape):
            return torch.full_like(parameter, value, dtype=beginning.dtype, requires_grad=False).detach()
        return torch.full(beginning.shape, value, dtype=beginning.dtype, device=parameter.device)
    return fresh(parameter, beginning.dtype, value, codec, key, storage.seed, table.first_lane(index))


def _number(value: Any, table: ParameterTable) -> Any:
    """Return the present value of an expression, or a constant."""
    if not isinstance(value, Expression):
        return value
    function = compile_numbers((), [value])
    rows = function([_read(source, table) for source in function.shared])
    return rows[0][0] if rows else None


def _read(source: Source, table: ParameterTable) -> Any:
    """Return the number that the optimizer has at a place."""
    if source.kind == "state":
        number: Any = table.state(source.parameter)
        for key in source.path:
            number = number[key]
    else:
        number = object_at(table.optimizer, source)
    return number.item() if source.is_tensor else number


def bytes_to_come(reading: Reading, table: ParameterTable, slots: Mapping[int, tuple[Slot, ...]]) -> int:
    """Return the bytes of state that will be made besides the slots. They count against the budget too."""
    total = 0
    for index, beginnings in reading.beginnings.items():
        state, keys = table.state(index), {slot.key for slot in slots.get(index, ())}
        for key, beginning in beginnings.items():
            if key not in state and key not in keys and beginning.dtype is not None:
                total += torch.Size(beginning.shape).numel() * beginning.dtype.itemsize
    return total
