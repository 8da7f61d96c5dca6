"""Survey an optimizer before a step: where its parameters and gradients are, which exist, what its numbers are.

One compiled loop does it. A method call on a tensor costs 50 to 100 ns, and with hundreds of tensors that would exceed all
other work of a step on the host. Without a compiler, or if torch lacks a function, Python does the same.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.errors import CompilerMissing
from baoc_compile.core.torch_private import (
    TensorFunctions,
    code_of,
    code_of_strided,
    dictionary_tag,
    tensor_functions,
    with_python_lock,
)
from baoc_compile.kernels.build.compile_cpp import build

log = logging.getLogger("baoc")

_SOURCE = Path(__file__).with_name("survey.h").read_text()
PRESENT, STRIDED, ODD = 1, 2, 4

KINDS = {torch.float32: 0, torch.float64: 1, torch.int64: 2, torch.int32: 3}


class _Functions(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("data_ptr", "grad", "is_contiguous", "dtype", "layout", "data")),
        ("bump_version", ctypes.c_void_p),
        ("offset", ctypes.c_int64),
        ("nothing", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Compiled:
    """The compiled library, and torch's functions for it."""

    library: Any
    functions: Any


_ONE_AT_A_TIME = threading.Lock()
_OUTCOME: list[Compiled | None] = []  # of the last attempt; empty before the first


def compiled() -> Compiled | None:
    """Return the compiled functions; None if one of torch's or the compiler is missing. The first call compiles."""
    if not _OUTCOME:
        with _ONE_AT_A_TIME:
            if not _OUTCOME:
                _OUTCOME.append(_compile())
    return _OUTCOME[0]


def try_again() -> Compiled | None:
    """Return `compiled()`, repeating an attempt that failed: what was missing may exist now."""
    with _ONE_AT_A_TIME:
        if _OUTCOME == [None]:
            _OUTCOME.clear()
    return compiled()


def _compile() -> Compiled | None:
    try:
        found: TensorFunctions = tensor_functions()
        library = with_python_lock(build(_SOURCE))  # it touches Python objects
    except (LookupError, OSError, CompilerMissing) as reason:
        log.info("tensors are looked at one by one, in Python: %s", reason)
        return None
    library.compare_dictionaries.restype = library.find_distinct.restype = ctypes.c_int64
    names = [name for name, _ in _Functions._fields_]  # type: ignore[misc]
    return Compiled(library, _Functions(*(getattr(found, name) for name in names)))


@functools.cache
def _code_of(dtype: torch.dtype) -> int:
    return code_of(dtype)


def _objects(values: Sequence[Any]) -> np.ndarray:
    return np.fromiter(map(id, values), np.uint64, len(values))


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Parameters:
    """The parameters of an optimizer, kept alive, and where they and their gradients are.

    param_at, grad_at: uint64 addresses. A gradient's is old where there is none.
    flags: whether a gradient exists (1), is not contiguous (2), or is of another type or layout than expected (4).
    present: for each parameter, whether it has a gradient.
    moved: whether the address of a parameter has changed at the last look.
    all_present, any_strided, any_odd: what the flags say in short.
    """

    moved, all_present, any_strided, any_odd = False, False, False, False

    def __init__(self, tensors: Sequence[Tensor], grad_dtypes: Sequence[torch.dtype]):
        self.tensors, self.grad_dtypes = list(tensors), list(grad_dtypes)
        self.param_at = np.zeros(len(tensors), np.uint64)
        self.grad_at = np.zeros(len(tensors), np.uint64)
        self.flags, self.present = np.zeros(len(tensors), np.uint8), np.zeros(len(tensors), bool)
        self._objects = _objects(tensors)
        self._compiled = compiled()
        if self._compiled is not None:
            self._dtypes = np.array([_code_of(d) for d in grad_dtypes], np.int32)
            size = ctypes.c_int64(len(tensors))
            self._arguments = (ctypes.byref(self._compiled.functions), size, _at(self._objects))
            self._grads = np.zeros(len(tensors), np.uint64)
            self._results = tuple(map(_at, (self._grads, self.param_at, self.grad_at, self.flags, self.present)))
            self._layout = ctypes.c_int32(code_of_strided())
            self._dtypes_at = _at(self._dtypes)

    def look(self) -> bool:
        """Read all addresses and flags again. Return whether a parameter has moved."""
        if self._compiled is None:
            self._look_in_python()
            return self.moved
        found = self._compiled.library.look_at_gradients(
            *self._arguments, self._dtypes_at, self._layout, *self._results
        )
        self.moved, self.all_present = bool(found & 1), not found & 2
        self.any_strided, self.any_odd = bool(found & 4), bool(found & 8)
        return self.moved

    def _look_in_python(self) -> None:
        now = np.fromiter((t.data_ptr() for t in self.tensors), np.uint64, len(self.tensors))
        self.moved = bool((now != self.param_at).any())
        self.param_at[:] = now
        for i, (tensor, dtype) in enumerate(zip(self.tensors, self.grad_dtypes, strict=True)):
            grad = tensor.grad
            self.flags[i] = 0
            if grad is None:
                continue
            if grad.layout != torch.strided or grad.dtype != dtype:
                self.flags[i] = PRESENT | ODD
                continue
            self.flags[i] = PRESENT if grad.is_contiguous() else PRESENT | STRIDED
            self.grad_at[i] = grad.data_ptr()
        self.present[:] = self.flags & PRESENT != 0
        self.all_present = bool(self.present.all())
        self.any_strided, self.any_odd = bool((self.flags & STRIDED).any()), bool((self.flags & ODD).any())


class HostNumbers:
    """0-dim tensors on the host, kept alive.

    values: float64, the numbers when they were read last.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)
        self.values = np.zeros(len(tensors), np.float64)
        self._objects, self._address = _objects(tensors), np.zeros(len(tensors), np.uint64)
        self._compiled = compiled() if all(t.dtype in KINDS for t in tensors) else None
        self._kinds = np.array([KINDS.get(t.dtype, 0) for t in tensors], np.uint8)
        if self._compiled is not None:
            self._places = (_at(self._kinds), _at(self._address))
            pointers = (_at(self._objects), *self._places, _at(self.values))
            self._arguments = (ctypes.byref(self._compiled.functions), ctypes.c_int64(len(tensors)), *pointers)

    def read(self) -> np.ndarray:
        """Read the numbers, and return them."""
        if self._compiled is None:
            self.values[:] = [t.item() for t in self.tensors]
        elif len(self.tensors):
            self._compiled.library.read_numbers(*self._arguments)
        return self.values

    def write(self, positions: np.ndarray, values: np.ndarray) -> None:
        """Write float64 `values` to the tensors at `positions`, int64."""
        if self._compiled is None:
            for position, value in zip(positions.tolist(), values.tolist(), strict=True):
                tensor = self.tensors[position]
                tensor.fill_(value if tensor.is_floating_point() else int(value))
            return
        size = ctypes.c_int64(len(positions))
        self._compiled.library.write_numbers(size, _at(positions), *self._places, _at(values))


class Distinct:
    """Which of some numbers are the same: their bits are.

    values: float64 `[n]`, the numbers.
    positions: int64, those of them that count.
    """

    def __init__(self, values: np.ndarray, positions: np.ndarray):
        self.values, self.positions = values, positions
        self._found, self._which = np.empty(len(positions)), np.empty(len(positions), np.int64)
        self._compiled = compiled()
        self._results = (_at(values), _at(self._found), _at(self._which))
        self._whole = (ctypes.c_int64(len(positions)), _at(positions), *self._results)

    def find(self, members: np.ndarray | None = None) -> tuple[list[float], np.ndarray | None]:
        """Return the distinct ones, and which of them each number is; None if there is one. Valid until the next call.

        members: indices of the positions that count; None for all.
        """
        at = self.positions if members is None else self.positions[members]
        if self._compiled is None:
            bits, first, which = np.unique(self.values[at].view(np.int64), return_index=True, return_inverse=True)
            return self.values[at][first].tolist(), which if len(bits) > 1 else None
        arguments = self._whole if members is None else (ctypes.c_int64(len(at)), _at(at), *self._results)
        count = self._compiled.library.find_distinct(*arguments)
        return self._found[:count].tolist(), self._which[: len(at)] if count > 1 else None


class Dictionaries:
    """Dictionaries and what they held: their keys and values are compared by identity."""

    def __init__(self, dictionaries: Sequence[dict[Any, Any]]):
        self.dictionaries = list(dictionaries)
        self._compiled = compiled()
        self.hold()

    def hold(self) -> None:
        """Compare with what they hold now from here on."""
        self._held = [entry for d in self.dictionaries for item in d.items() for entry in item]  # keeps ids unique
        self._entries = _objects(self._held)
        self._first = np.concatenate([[0], np.cumsum([len(d) for d in self.dictionaries])]).astype(np.int64)
        self._objects = _objects(self.dictionaries)
        self._changed = np.zeros(max(1, len(self.dictionaries)), np.int64)
        if self._compiled is not None:
            self._tags = np.zeros(len(self.dictionaries), np.uint64)
            arrays = (self._objects, self._first, self._entries)
            tags = (ctypes.c_int64(dictionary_tag()), _at(self._tags), _at(self._changed))
            self._arguments = (ctypes.c_int64(len(self.dictionaries)), *map(_at, arrays), *tags)

    def changed(self) -> list[int]:
        """Return the positions of those that hold other objects than before."""
        if self._compiled is not None:
            count = self._compiled.library.compare_dictionaries(*self._arguments)
            return self._changed[:count].tolist() if count else []
        found = []
        for position, dictionary in enumerate(self.dictionaries):
            now = [entry for item in dictionary.items() for entry in item]
            held = self._held[2 * self._first[position] : 2 * self._first[position + 1]]
            if len(now) != len(held) or any(a is not b for a, b in zip(now, held, strict=True)):
                found.append(position)
        return found

    def hold_again(self, position: int) -> None:
        """Compare one dictionary with what it holds now from here on."""
        now = [entry for item in self.dictionaries[position].items() for entry in item]
        start, stop = 2 * int(self._first[position]), 2 * int(self._first[position + 1])
        if len(now) != stop - start:
            self.hold()
            return
        self._held[start:stop] = now
        self._entries[start:stop] = [id(entry) for entry in now]


class Lists:
    """Lists and what they held: their entries are compared by identity."""

    def __init__(self, lists: Sequence[list[Any]]):
        self.lists, self._compiled = list(lists), compiled()
        self._held = [list(entries) for entries in lists]  # keeps ids unique
        flat = [entry for entries in self._held for entry in entries]
        arrays = (
            _objects(self.lists),
            np.concatenate([[0], np.cumsum([len(entries) for entries in lists])]).astype(np.int64),
            _objects(flat),
        )
        self._arrays = arrays
        self._arguments = (ctypes.c_int64(len(self.lists)), *map(_at, arrays))

    def changed(self) -> bool:
        """Return whether any list holds other objects than before."""
        if self._compiled is not None:
            return bool(self._compiled.library.compare_lists(*self._arguments))
        return any(
            len(now) != len(held) or any(a is not b for a, b in zip(now, held, strict=True))
            for now, held in zip(self.lists, self._held, strict=True)
        )


class Written:
    """Tensors, kept alive, whose version counters are bumped for autograd, as any in-place operation does."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors, self._objects, self._compiled = list(tensors), _objects(tensors), compiled()
        self._arguments: tuple[Any, ...] = ()
        if self._compiled is not None:
            size = ctypes.c_int64(len(self._objects))
            self._arguments = (ctypes.byref(self._compiled.functions), size, _at(self._objects))

    def mark(self, present: np.ndarray | None = None) -> None:
        """Bump the version counters of all tensors, or of those that are `present` (a truth value for each)."""
        if self._compiled is None:
            here = self.tensors if present is None else [t for t, p in zip(self.tensors, present, strict=True) if p]
            torch.autograd.graph.increment_version(here)
        else:
            self._compiled.library.mark(*self._arguments, None if present is None else _at(present))
