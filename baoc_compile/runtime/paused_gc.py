"""Python's garbage collector, kept from running in the middle of a pass.

A collection looks at every object there is. Beside a trace of hundreds of parameters that takes longer than most passes,
and it frees nothing: the passes make no cycles that outlive them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_gc() -> Iterator[None]:
    """Collections wait until the end; as before if they were off already."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
