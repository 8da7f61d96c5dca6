"""Compile emitted C++ with the machine's compiler, cached on disk by source, compiler and processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger("baoc")

#: No contraction into fused multiply-adds and wrapping integers: the bits are those of torch's own operations.
FLAGS = ["-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-fPIC", "-shared", "-fopenmp"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fwrapv"]
#: For g++, clang++ ignores them with a warning: the few vectors of a group side by side, without a loop.
FLAGS += ["-fpeel-loops", "-fschedule-insns"]


class CompilerMissing(RuntimeError):
    """No C++ compiler on this machine, or it rejects the flags."""


@functools.cache
def compiler() -> str:
    """`$CXX`, else g++, else clang++. Raises CompilerMissing."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++"):
        if candidate and shutil.which(candidate.split()[0]):
            return candidate
    raise CompilerMissing("no C++ compiler found: install g++ or clang++, or name one in the variable CXX")


def cache_dir() -> Path:
    """`$BAOC_CACHE_DIR`, else `baoc` in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "baoc"
    return Path(os.environ.get("BAOC_CACHE_DIR", default))


@functools.cache
def _machine() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return platform.machine() + flags


@functools.cache
def build(source: str) -> ctypes.CDLL:
    """The loaded library. Raises CompilerMissing; a compile error is a bug and names the kept source file."""
    command = [*compiler().split(), *FLAGS]
    key = hashlib.sha256("\0".join([source, *command, _machine()]).encode()).hexdigest()[:24]
    library = cache_dir() / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        text = library.with_suffix(".cpp")
        text.write_text(source)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            built = Path(scratch) / library.name
            done = subprocess.run([*command, "-o", str(built), str(text)], capture_output=True, text=True)
            if done.returncode:
                raise CompilerMissing(f"{command[0]} failed on {text}:\n{done.stderr[-2000:]}")
            os.replace(built, library)
        log.info("compiled %s", library)
    return ctypes.CDLL(str(library))
