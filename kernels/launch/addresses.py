"""Read the data pointers of many tensors in one C call.

A method call on a tensor costs 50 to 100 ns. With hundreds of tensors that exceeds all other work of a step on the
host. So one compiled loop calls functions that torch exports for compiled code (Inductor's and AOTInductor's). These
functions take the C++ tensor inside the Python object; its offset is looked up
in one object. If a function or the compiler is missing, Python reads tensor by tensor.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from baoc_compile.core.torch_private import object_at, tensor_functions, with_python_lock
from baoc_compile.kernels.build.attempt import Attempt
from baoc_compile.kernels.build.compile_cpp import build

_SOURCE = Path(__file__).with_name("addresses.h").read_text()


@dataclass(frozen=True)
class Compiled:
    """The compiled function, with torch's own already bound.

    look: reads data pointers.
    """

    look: Callable[..., int]


def _compile() -> Compiled:
    functions = tensor_functions()
    look, count = with_python_lock(build(_SOURCE)).look, ctypes.c_int64  # it touches Python objects
    look.argtypes = [*[ctypes.c_void_p] * 2, *[count] * 4, ctypes.py_object, *[ctypes.c_void_p] * 2]
    look.restype = ctypes.c_int
    return Compiled(functools.partial(look, functions.data_ptr, functions.is_contiguous, functions.offset))


compiled = Attempt(_compile, "tensors are looked at one by one, in Python")


@dataclass(frozen=True)
class Seen:
    """What a look at the tensors found.

    moved: whether any address has changed.
    lasting_moved: whether the address of a lasting tensor, not a passing one, has changed.
    contiguous: whether all passing tensors are contiguous.
    """

    moved: bool
    lasting_moved: bool
    contiguous: bool


class Watched:
    """Tensors in rows and columns whose addresses are read again at every look.

    Tensors must stay alive, except those of column `passing`: the gradients, new at every look (-1: no such column).

    addresses: uint64 `[rows, columns]`.
    """

    def __init__(self, tensors: Sequence[Tensor], columns: int, passing: int = -1):
        self._objects = _objects_of(tensors)
        self.addresses = np.array([t.data_ptr() for t in tensors], dtype=np.uint64).reshape(-1, columns)
        self.passing = passing
        self._compiled = compiled()
        self._size = (*self.addresses.shape, passing)
        self._arrays = self._objects.ctypes.data, self.addresses.ctypes.data

    def look(self, passing: Sequence[Tensor] = ()) -> Seen:
        """Update `addresses`, given the tensors of the passing column."""
        if self._compiled is None:
            return self._look_in_python(passing)
        found = self._compiled.look(*self._size, list(passing), *self._arrays)
        return Seen(found & 1 > 0, found & 2 > 0, found & 4 == 0)

    def _look_in_python(self, passing: Sequence[Tensor]) -> Seen:
        if self.passing >= 0:
            self._objects[self.passing :: self.addresses.shape[1]] = _objects_of(passing)
        now = np.fromiter((object_at(i).data_ptr() for i in self._objects.tolist()), np.uint64, self._objects.size)
        moved = (now.reshape(self.addresses.shape) != self.addresses).any(axis=0)
        self.addresses.reshape(-1)[:] = now
        lasting = np.delete(moved, self.passing) if self.passing >= 0 else moved
        return Seen(bool(moved.any()), bool(lasting.any()), all(t.is_contiguous() for t in passing))


def _objects_of(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.fromiter(map(id, tensors), np.uint64, len(tensors))
