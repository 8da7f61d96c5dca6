"""Compile emitted C++ with the machine's compiler, cached on disk by source, compiler and processor.

If the cache folder can't be used, a program is compiled in a temporary folder for this process alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from baoc_compile.core.errors import CompilerMissing, warn_once
from baoc_compile.kernels.build.cache import (
    Folder,
    cache_folder,
    is_intact,
    locked,
    reason_of,
    seal,
    sweep,
    unfinished,
)

log = logging.getLogger("baoc")

#: No contraction into fused multiply-adds, and wrapping integers, so that the bits are those of torch's own operations.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fwrapv"]
#: Eliminating partial redundancies makes selections between truth values, at which g++ 12 gives up vectorizing a loop.
FLAGS += ["-fno-tree-pre"]

#: Time to wait for another process that compiles the same program.
SECONDS_TO_COMPILE = 60.0


def compiler() -> str:
    """Return `$CXX`, else g++, else clang++, whichever is found first. Raises CompilerMissing."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++"):
        if candidate and shutil.which(candidate.split()[0]):
            return candidate
    raise CompilerMissing("no C++ compiler found: install g++ or clang++, or name one in the variable CXX")


def _machine() -> str:
    """Describe the processor features that -march=native depends on."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return platform.machine() + flags


@functools.cache
def build(source: str) -> ctypes.CDLL:
    """Compile a source, or find it in the cache, and return the loaded library.

    Raises CompilerMissing. A failure is not cached: the next call tries again.
    """
    command = [*compiler().split(), *FLAGS]
    key = hashlib.sha256("\0".join([source, *command, _machine()]).encode()).hexdigest()[:24]
    folder = cache_folder()
    try:
        return _library(folder, key, command, source)
    except (OSError, CompilerMissing) as error:
        reason = reason_of(error)
    remedy = "mend what is wrong, or name another folder in the environment variable BAOC_CACHE_DIR"
    try:
        with TemporaryDirectory(prefix="baoc-", ignore_cleanup_errors=True) as private:
            library = _library(Folder(Path(private)), key, command, source)  # stays loaded after its file is removed
    except (OSError, CompilerMissing) as error:
        raise CompilerMissing(
            f"a program could not be compiled in the cache folder {folder.path} ({reason}), nor in a temporary folder "
            f"({reason_of(error)}): {remedy}"
        ) from error
    warn_once(
        f"baoc can't keep compiled programs in the cache folder {folder.path} ({reason}), so every process compiles them "
        f"anew: {remedy}",
        about=CompilerMissing,
    )
    return library


def _library(folder: Folder, key: str, command: list[str], source: str) -> ctypes.CDLL:
    """Load the library from the folder, or compile it into the folder. Raises OSError and CompilerMissing."""
    with folder.opened() as opened:
        if os.statvfs(opened).f_flag & getattr(os, "ST_NOEXEC", 0):
            raise PermissionError("it is mounted noexec")
        path = opened / f"{key}.so"
        found = _loaded(path)
        if found is not None:
            return found
        with locked(path.with_suffix(".lock"), SECONDS_TO_COMPILE):
            found = _loaded(path)  # another process may have compiled it meanwhile
            if found is not None:
                return found
            with unfinished(opened) as scratch:
                made = _compiled(command, source, scratch)
                seal(made, path.name)
                library = ctypes.CDLL(str(made))
                os.replace(made, path)
        log.info("compiled %s", folder.path / path.name)
        sweep(opened)
        return library


def _loaded(path: Path) -> ctypes.CDLL | None:
    """Load a library; None if it is missing, damaged or built for other system libraries."""
    if not is_intact(path):
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        log.info("%s can't be loaded: %s", path.name, error)
        return None


def _compiled(command: list[str], source: str, scratch: Path) -> Path:
    """Compile into the scratch folder, which also takes the compiler's own temporary files. Raises CompilerMissing."""
    text, made = scratch / "program.cpp", scratch / "program.so"
    text.write_text(source)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    try:
        done = subprocess.run(
            [*command, "-o", str(made), str(text)], capture_output=True, text=True, errors="replace", env=environment
        )
    except OSError as error:
        raise CompilerMissing(f"{command[0]} can't be run: {reason_of(error)}") from error
    if done.returncode:
        log.debug("%s failed on this source:\n%s", command[0], source)
        said = done.stderr.replace(f"{scratch}/", "")[-1000:].strip()
        raise CompilerMissing(f"{command[0]} failed with exit status {done.returncode}: {said}")
    return made
