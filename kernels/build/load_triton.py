"""Load emitted Triton source as a module, without a file.

Triton reads a kernel's source through `inspect`, which asks `linecache`. The source is entered there, so the code
executed is exactly the text that was emitted.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
from types import ModuleType


@functools.cache
def load_module(source: str) -> ModuleType:
    """Execute the source and return its module. Triton itself caches compiled kernels, on disk too."""
    name = f"baoc_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # None: no file to compare with
    module = ModuleType(name)
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module
