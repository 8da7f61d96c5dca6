"""Emitted Triton source -> module. Triton reads kernels from files, so the source is kept in the cache directory."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import tempfile
from types import ModuleType

from baoc_compile.kernels.build.compile_cpp import cache_dir


@functools.cache
def load_module(source: str) -> ModuleType:
    """The imported module. Compiled kernels are cached by Triton itself, on disk too."""
    name = f"baoc_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    path = cache_dir() / "triton" / f"{name}.py"
    if not path.exists() or path.read_text() != source:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as text:
            text.write(source)
        os.replace(text.name, path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
