"""Containers of a stand-in: parameter groups and state that note what a step looks at and what it makes."""

from __future__ import annotations

import builtins
import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.passes.numbers.expressions import Source
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value, traced
from baoc_compile.passes.recorder.recording import Beginning

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


class StandInGroup(dict):
    """A parameter group that notes which of its keys are looked at."""

    def __init__(self, looked_at: set[Any]):
        super().__init__()
        self._looked_at = looked_at

    def __getitem__(self, key: Any) -> Any:
        self._looked_at.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self._looked_at.add(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._looked_at.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[Any]:
        self._looked_at.update(dict.keys(self))
        return super().__iter__()

    def items(self) -> Any:
        self._looked_at.update(dict.keys(self))
        return super().items()

    def keys(self) -> Any:
        self._looked_at.update(dict.keys(self))
        return super().keys()

    def values(self) -> Any:
        self._looked_at.update(dict.keys(self))
        return super().values()


class StateEntries(dict):
    """The state of one stand-in parameter.

    first: what the step assigned first to each key that it made: a tensor, or a `Beginning`. What the step reads of a
        number from then on is the entry, not the number that it assigned: later steps read it in the same way.
    """

    is_stand_in = True

    def __init__(self, index: int, stand_in: Any):
        super().__init__()
        self.first: dict[Any, Any] = {}
        self._index, self._stand_in = index, weakref.ref(stand_in)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key not in self:
            value = self._enter(key, value)
        super().__setitem__(key, value)

    def _enter(self, key: Any, value: Any) -> Any:
        stand_in = self._stand_in()
        assert stand_in is not None
        source = Source("state", (key,), self._index)
        held = stand_in.recorder.numbers.get(id(value)) if isinstance(value, Tensor) else None
        if held is not None:
            given = held.expression if held.expression is not None else value.item()
            self.first[key] = Beginning("number", given, value.dtype)
            held.expression, held.source = (
                stand_in.trace.of_source(replace(source, is_tensor=True), value.item()),
                source,
            )
            return value
        self.first[key] = value
        if type(value) in (int, float) or is_traced(value):
            self.first[key] = Beginning("number", value.expression if is_traced(value) else value)
            return traced(stand_in.trace, stand_in.trace.of_source(source, plain_value(value)), plain_value(value))
        if not isinstance(value, Tensor):
            self.first[key] = Beginning("number", value)
        return value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *given: Any, **named: Any) -> None:
        for key, value in dict(*given, **named).items():
            self[key] = value


class StandInState(defaultdict):
    """The state of a stand-in: parameter -> `StateEntries`."""

    is_stand_in = True

    def __init__(self, stand_in: Any):
        super().__init__()
        self._stand_in = weakref.ref(stand_in)

    def __missing__(self, parameter: Any) -> Any:
        stand_in = self._stand_in()
        assert stand_in is not None
        index = stand_in.index_of(parameter)
        if index is None:
            raise UnsupportedStep("it keeps state under a key that is no parameter")
        made = StateEntries(index, stand_in)
        dict.__setitem__(self, parameter, made)
        return made

    def __setitem__(self, parameter: Any, entries: Any) -> None:
        if isinstance(parameter, Tensor) and type(entries) is dict:
            dict.pop(self, parameter, None)
            self[parameter].update(entries)
        else:
            super().__setitem__(parameter, entries)
