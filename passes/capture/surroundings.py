"""What a step may see or change outside of its optimizer: random generators, and globals that its code names."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch

from baoc_compile.core.errors import UnsupportedStep

_PLAIN = (bool, int, float, str, type(None))


class Surroundings:
    """The plain values that a step's code names outside of the optimizer: globals, class attributes, outer variables.

    Its code are the functions of its class, and the functions of their modules that these name. Containers of plain values
    count as values.
    """

    def __init__(self, function: Callable[..., Any], optimizer: Any):
        functions = list(_functions(function, optimizer))
        names = {name for f in functions for name in _names(f.__code__)}
        places: dict[tuple[int, str], Place] = {}
        for f in functions:
            for name in names & f.__globals__.keys():
                places[id(f.__globals__), name] = Place(f.__globals__, name)
            for cell, name in zip(f.__closure__ or (), f.__code__.co_freevars, strict=True):
                places[id(cell), name] = Place(cell, "cell_contents")
        for owner in type(optimizer).__mro__:
            for name in names & vars(owner).keys():
                places[id(owner), name] = Place(owner, name)
        self._places = [p for p in places.values() if p.value() is not UNKNOWN]

    def values(self) -> list[Any]:
        """Return their present values; of containers, copies."""
        return [place.value() for place in self._places]

    def put_back(self, values: list[Any]) -> str:
        """Give those that have changed their old values; return the name of one that had, or an empty text."""
        changed = ""
        for place, value in zip(self._places, values, strict=True):
            if place.value() != value:
                changed = place.name
                place.set(value)
        return changed


UNKNOWN = object()


class Place(NamedTuple):
    """A place that holds a value: a name in a dictionary, or an attribute of another object."""

    holder: Any
    name: str

    def value(self) -> Any:
        """Return the value if it is plain, a copy if it is a container of plain values, else `UNKNOWN`."""
        found = self._found()
        if isinstance(found, _PLAIN):
            return found
        if isinstance(found, (dict, list, set)) and len(found) <= MOST_ENTRIES and _is_plain(found):
            return copy.copy(found)
        return UNKNOWN

    def set(self, value: Any) -> None:
        """Give the place a value; a container keeps its identity."""
        found = self._found()
        if isinstance(found, dict):
            found.clear()
            found.update(value)
        elif isinstance(found, list):
            found[:] = value
        elif isinstance(found, set):
            found.clear()
            found.update(value)
        elif isinstance(self.holder, dict):
            self.holder[self.name] = value
        else:
            setattr(self.holder, self.name, value)

    def _found(self) -> Any:
        if isinstance(self.holder, dict):
            return self.holder.get(self.name, UNKNOWN)
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.name, UNKNOWN)
        return _content(self.holder)


#: Larger containers are data, not settings, and would be slow to compare at every step.
MOST_ENTRIES = 64


def _is_plain(container: Any) -> bool:
    entries = (*container.keys(), *container.values()) if isinstance(container, dict) else container
    return all(isinstance(entry, _PLAIN) for entry in entries)


def _is_known(function: FunctionType) -> bool:
    """Return whether a function is torch's or ours: these depend on no setting that changes."""
    return (function.__module__ or "").split(".")[0] in ("torch", "baoc_compile")


def _functions(function: Callable[..., Any], optimizer: Any) -> Iterator[FunctionType]:
    """Yield the functions of a step: itself, those of the optimizer's classes, and those of their modules that they name."""
    found: list[Any] = [getattr(function, "__func__", function)]
    for owner in type(optimizer).__mro__:
        if owner not in (object, torch.optim.Optimizer):
            found += [_as_written(getattr(f, "__func__", f)) for f in vars(owner).values()]
    found = list(dict.fromkeys(f for f in found if isinstance(f, FunctionType) and not _is_known(f)))
    named = [f.__globals__.get(name) for f in found for name in _names(f.__code__)]
    yield from dict.fromkeys([*found, *(f for f in named if isinstance(f, FunctionType) and not _is_known(f))])


def _as_written(method: Any) -> Any:
    """Return a method as its class's author wrote it."""
    return method.__wrapped__ if hasattr(method, "led_by_baoc") else method


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return ...


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@contextmanager
def undisturbed(function: Callable[..., Any], optimizer: Any) -> Iterator[None]:
    """Run a step in this context without a trace in random generators and globals.

    Raises UnsupportedStep, after taking the change back, if the step has changed one of them.
    """
    surroundings = Surroundings(function, optimizer)
    values = surroundings.values()
    generators = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    try:
        yield
    finally:
        now = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
        is_same = np.array_equal(generators[1][1], now[1][1]) and generators[1][2] == now[1][2]  # type: ignore[index]
        drawn = generators[0] != now[0] or not is_same or not torch.equal(generators[2], now[2])
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        changed = surroundings.put_back(values)
    if drawn:
        raise UnsupportedStep("it draws random numbers")
    if changed:
        raise UnsupportedStep(f"it changes {changed!r}, which is not the optimizer's")
