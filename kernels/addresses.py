"""Addresses of many tensors at once.

`Tensor.data_ptr` costs about 0.1 us a call: with hundreds of tensors, more than all else that a step does on the host.
torch has a C function that reads the address behind a Python object, made for the wrappers that Inductor compiles; a
loop around it costs a few nanoseconds a tensor. Where either is missing, Python reads the addresses.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from baoc_compile.kernels.build_cpp import CompilerMissing, build

log = logging.getLogger("baoc")

_SOURCE = """\
#include <cstdint>

// addresses[i] becomes read(objects[i]); returns 1 if one has changed, and 2 more if one of another column than `passing` has
extern "C" int read_all(void* (*read)(void*), int64_t rows, int64_t columns, int64_t passing, void* const* objects,
                        void** addresses) {
  int changed = 0;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      void* const now = read(*objects++);
      if (now != *addresses) changed |= column == passing ? 1 : 3;
      *addresses++ = now;
    }
  return changed;
}
"""


def warm_up() -> None:
    """Compiles the loop, which takes a moment, before it is needed."""
    _reader()


@functools.cache
def _reader() -> Callable[..., int] | None:
    """The compiled loop, with torch's function bound; None where it can't be had."""
    read = getattr(torch._C._dynamo.guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    if read is None:
        log.info("this torch has no function that reads a tensor's address: addresses are read in Python")
        return None
    try:
        library = ctypes.PyDLL(build(_SOURCE)._name)  # the objects are Python's: its lock is kept
    except CompilerMissing as reason:
        log.info("addresses are read in Python: %s", reason)
        return None
    function = library.read_all
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return functools.partial(function, read)


@dataclass(frozen=True)
class Moved:
    """What has another address than before: any tensor, and one that is there to stay."""

    any: bool
    lasting: bool


def read_addresses(objects: np.ndarray, addresses: np.ndarray, passing: int = -1) -> Moved:
    """Overwrites `addresses` (uint64, [rows, columns]) with those of the tensors whose `id`s are in `objects`, which have
    to be alive. `passing`: a column whose tensors, the gradients, are others every time."""
    reader = _reader()
    if reader is not None:
        changed = reader(*addresses.shape, passing, objects.ctypes.data, addresses.ctypes.data)
        return Moved(changed > 0, changed > 1)
    now = np.fromiter((_tensor_at(i).data_ptr() for i in objects.reshape(-1).tolist()), np.uint64, objects.size)
    columns = (now.reshape(addresses.shape) != addresses).any(axis=0)
    addresses.reshape(-1)[:] = now
    lasting = np.delete(columns, passing) if passing >= 0 else columns
    return Moved(bool(columns.any()), bool(lasting.any()))


def _tensor_at(identity: int) -> torch.Tensor:
    return ctypes.cast(identity, ctypes.py_object).value
