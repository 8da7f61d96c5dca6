"""What a step may see or change outside of its optimizer: random generators, and globals that its code names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import numpy as np
import torch

from baoc_compile.core.errors import UnsupportedStep

_PLAIN = (bool, int, float, str, type(None))


class Surroundings:
    """The plain values among the globals, class attributes and outer variables that a step's code names."""

    def __init__(self, function: Callable[..., Any], optimizer: Any):
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        names = set() if code is None else set(_names(code))
        self._globals: list[tuple[dict[str, Any], str]] = []
        self._attributes: list[tuple[type, str]] = []
        self._cells: list[Any] = []
        if code is None:
            return
        namespace = function.__globals__
        self._globals = [(namespace, n) for n in sorted(names & namespace.keys()) if isinstance(namespace[n], _PLAIN)]
        for owner in type(optimizer).__mro__:
            found = vars(owner)
            self._attributes += [(owner, n) for n in sorted(names & found.keys()) if isinstance(found[n], _PLAIN)]
        cells = zip(function.__closure__ or (), code.co_freevars, strict=True)
        self._cells = [cell for cell, _ in cells if isinstance(_content(cell), _PLAIN)]

    def values(self) -> list[Any]:
        """Return their present values."""
        found = [namespace.get(name) for namespace, name in self._globals]
        found += [vars(owner).get(name) for owner, name in self._attributes]
        return found + [_content(cell) for cell in self._cells]

    def put_back(self, values: list[Any]) -> str:
        """Give those that have changed their old values; return the name of one that had, or an empty text."""
        changed, old = "", iter(values)
        for namespace, name in self._globals:
            value = next(old)
            if namespace.get(name) is not value:
                changed, namespace[name] = name, value
        for owner, name in self._attributes:
            value = next(old)
            if vars(owner).get(name) is not value:
                changed = name
                setattr(owner, name, value)
        for cell in self._cells:
            value = next(old)
            if _content(cell) is not value:
                changed, cell.cell_contents = "an outer variable", value
        return changed


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
