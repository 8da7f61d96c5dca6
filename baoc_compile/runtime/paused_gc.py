"""Pause of Python's garbage collector during a pass.

A collection visits every object. Beside a trace of hundreds of parameters that takes longer than most passes, and it
frees nothing: the passes make no reference cycles that outlive them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
