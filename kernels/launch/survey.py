"""Survey an optimizer before a step: where its parameters and gradients are, and which exist.

One compiled loop does it. A method call on a tensor costs 50 to 100 ns, and with hundreds of tensors that would exceed all
other work of a step on the host. Without a compiler, or if torch lacks a function, Python does the same.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.torch_private import (
    TensorFunctions,
    code_of,
    code_of_strided,
    tensor_functions,
    with_python_lock,
)
from baoc_compile.kernels.build.attempt import Attempt
from baoc_compile.kernels.build.compile_cpp import build

_SOURCE = Path(__file__).with_name("survey.h").read_text()
PRESENT, STRIDED, ODD = 1, 2, 4


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


def _compile() -> Compiled:
    found: TensorFunctions = tensor_functions()
    library = with_python_lock(build(_SOURCE))  # it touches Python objects
    library.compare_dictionaries.restype = library.find_distinct.restype = ctypes.c_int64
    names = [name for name, _ in _Functions._fields_]  # type: ignore[misc]
    return Compiled(library, _Functions(*(getattr(found, name) for name in names)))


compiled = Attempt(_compile, "tensors are looked at one by one, in Python")


@functools.cache
def _code_of(dtype: torch.dtype) -> int:
    return code_of(dtype)


def objects_of(values: Sequence[Any]) -> np.ndarray:
    """Return the addresses of Python objects, uint64."""
    return np.fromiter(map(id, values), np.uint64, len(values))


def at(array: np.ndarray) -> ctypes.c_void_p:
    """Return the address of an array's numbers."""
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
        self._objects = objects_of(tensors)
        self._compiled = compiled()
        if self._compiled is not None:
            self._dtypes = np.array([_code_of(d) for d in grad_dtypes], np.int32)
            size = ctypes.c_int64(len(tensors))
            self._arguments = (ctypes.byref(self._compiled.functions), size, at(self._objects))
            self._grads = np.zeros(len(tensors), np.uint64)
            self._results = tuple(map(at, (self._grads, self.param_at, self.grad_at, self.flags, self.present)))
            self._layout = ctypes.c_int32(code_of_strided())
            self._dtypes_at = at(self._dtypes)

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


class SomeParameters(Parameters):
    """Some of an optimizer's parameters, at their positions among all; of the others nothing is looked at.

    only: their positions.
    """

    def __init__(self, tensors: Sequence[Tensor], grad_dtypes: Sequence[torch.dtype], only: Sequence[int]):
        super().__init__(tensors, grad_dtypes)
        self._only = np.array(only, dtype=np.int64)
        self._some = Parameters([tensors[i] for i in only], [grad_dtypes[i] for i in only])

    def look(self) -> bool:
        some, only = self._some, self._only
        self.moved, self.all_present = some.look(), some.all_present
        self.any_strided, self.any_odd = some.any_strided, some.any_odd
        self.param_at[only], self.grad_at[only] = some.param_at, some.grad_at
        self.flags[only], self.present[only] = some.flags, some.present
        return self.moved


class Written:
    """Tensors, kept alive, whose version counters are bumped for autograd, as any in-place operation does."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors, self._objects, self._compiled = list(tensors), objects_of(tensors), compiled()
        self._arguments: tuple[Any, ...] = ()
        if self._compiled is not None:
            size = ctypes.c_int64(len(self._objects))
            self._arguments = (ctypes.byref(self._compiled.functions), size, at(self._objects))

    def mark(self, present: np.ndarray | None = None) -> None:
        """Bump the version counters of all tensors, or of those that are `present` (a truth value for each)."""
        if self._compiled is None:
            here = self.tensors if present is None else [t for t, p in zip(self.tensors, present, strict=True) if p]
            torch.autograd.graph.increment_version(here)
        else:
            self._compiled.library.mark(*self._arguments, None if present is None else at(present))
