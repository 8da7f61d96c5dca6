"""Arguments of calls, and functions that stand in calls for what is no call in the step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from baoc_compile.passes.numbers.traced_numbers import is_traced


def changed_by_view(tensor: Any, view: Any) -> Any:
    """Return a tensor that has changed since a view of it was written."""
    return tensor


def is_meta(device: Any) -> bool:
    """Return whether a device is the one of stand-ins."""
    return device is not None and torch.device(device).type == "meta"


@functools.cache
def reader(name: str) -> Callable[[Any], Any]:
    """Return a function that reads a property."""

    def read(tensor: Any) -> Any:
        return getattr(tensor, name)

    read.__name__ = f"read_{name}"
    return read


def are_numbers(data: Any) -> bool:
    """Return whether the data of a new tensor are numbers, or nested lists of them, which a call can hold."""
    if type(data) in (list, tuple):
        return all(map(are_numbers, data))
    return type(data) in (bool, int, float) or is_traced(data)


def flat(arguments: Any) -> list[Any]:
    """Return arguments in order, those in nested lists and tuples one by one."""
    found: list[Any] = []
    for a in arguments:
        found += flat(a) if type(a) in (list, tuple) else [a]
    return found
