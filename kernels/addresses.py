"""Addresses of many tensors at once.

`Tensor.data_ptr` costs about 0.1 us a call, which is the larger part of a step's host time for models of hundreds of tensors. torch
has a C function that reads the address behind a Python object, made for the wrappers that Inductor compiles; a loop
around it costs a few nanoseconds a tensor. Where either is missing, Python reads the addresses.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable

import numpy as np
import torch
from baoc_compile.kernels.build_cpp import CompilerMissing, build

log = logging.getLogger("baoc")

_SOURCE = """\
#include <cstdint>

// addresses[i] becomes read(objects[i]); returns whether one has changed
extern "C" int read_all(void* (*read)(void*), int64_t count, void* const* objects, void** addresses) {
  int changed = 0;
  for (int64_t i = 0; i < count; ++i) {
    void* const now = read(objects[i]);
    changed |= now != addresses[i];
    addresses[i] = now;
  }
  return changed;
}
"""


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
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return functools.partial(function, read)


def read_addresses(objects: np.ndarray, addresses: np.ndarray) -> bool:
    """Overwrites `addresses` (uint64, any shape) with those of the tensors whose `id`s are in `objects`, which have to
    be alive. True if one has changed."""
    reader = _reader()
    if reader is not None:
        return bool(reader(objects.size, objects.ctypes.data, addresses.ctypes.data))
    now = np.fromiter((_tensor_at(i).data_ptr() for i in objects.tolist()), np.uint64, objects.size)
    changed = not np.array_equal(now, addresses.reshape(-1))
    addresses.reshape(-1)[:] = now
    return changed


def _tensor_at(identity: int) -> torch.Tensor:
    return ctypes.cast(identity, ctypes.py_object).value
