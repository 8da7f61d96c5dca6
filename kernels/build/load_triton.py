"""Emitted Triton source -> module, without a file: what is executed is the very text that was emitted.

Triton reads the source of a kernel through `inspect`, which asks `linecache`.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
from types import ModuleType


@functools.cache
def load_module(source: str) -> ModuleType:
    """The executed module. Compiled kernels are cached by Triton itself, on disk too."""
    name = f"baoc_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # None: no file to compare with
    module = ModuleType(name)
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module
