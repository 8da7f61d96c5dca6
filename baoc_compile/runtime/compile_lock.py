"""A lock: one thread at a time reads and rewrites steps.

Tracing patches modules of torch while it runs: `make_fx` patches `torch.nn.Module`, and FX keeps module-global flags.
Two threads that traced at once would spoil each other's graphs. Meanwhile Python's garbage collector may pause: a collection
visits every object. Beside a trace of hundreds of parameters that takes longer than most passes, and it frees nothing: the
passes make no reference cycles that outlive them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from baoc_compile.core.torch_private import dynamo_lock


@contextmanager
def compile_lock() -> Iterator[None]:
    """Hold the lock under which Dynamo compiles. It is reentrant.

    Dynamo already holds this lock when it calls the backend. With a second lock, two threads could take the two in
    opposite orders and deadlock.
    """
    with dynamo_lock:
        yield


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause collections within this context; if they were off before, they stay off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
