"""One thread at a time reads and rewrites steps.

Tracing patches modules of torch for its time (`make_fx` patches `torch.nn.Module`, FX keeps module-global flags), so two
threads that trace at once spoil each other's graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from baoc_compile.core.torch_private import dynamo_lock


@contextmanager
def compile_lock() -> Iterator[None]:
    """Hold the lock under which Dynamo compiles, reentrant.

    It is Dynamo's own, not another one beside it: Dynamo holds it while it calls the backend, so two locks could be taken
    in two orders, and never be released.
    """
    with dynamo_lock:
        yield
