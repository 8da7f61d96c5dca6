"""A lock: one thread at a time reads and rewrites steps.

Tracing patches modules of torch while it runs: `make_fx` patches `torch.nn.Module`, and FX keeps module-global flags.
Two threads that traced at once would spoil each other's graphs.
"""

from __future__ import annotations

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
