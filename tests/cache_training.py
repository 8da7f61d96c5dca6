"""What the tests of the cache folder run in processes of their own: a short training, and compilations side by side."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import pwd
import tempfile
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

import baoc_compile.backend
from baoc_compile.core.errors import BaocWarning
from baoc_compile.kernels.build import cache, compile_cpp
from baoc_compile.kernels.launch import addresses
from baoc_compile.passes.programs import make_programs
from baoc_compile.state.state_tensor import StateTensor

#: A process that has imported all this, for the others to be forked from.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "torch", "torch._dynamo", "baoc_compile.backend", __name__])


@dataclass(frozen=True)
class Trained:
    """`bits`: those of parameters and state. `programs`: the types of the executables. `addresses`: were the functions that
    read addresses compiled? `warnings`: baoc's."""

    bits: bytes
    programs: set[str]
    addresses: bool
    warnings: list[str]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a new process. Raises what it raises, and if the process is killed."""
    with ProcessPoolExecutor(1, _CONTEXT) as pool:
        return pool.submit(function, *arguments).result(timeout=120)


def train(environment: Mapping[str, str], temporary: str = "", injected: str = "") -> Trained:
    """Three steps of AdamW in 8 bits. `temporary`: where temporary files go. `injected`: what is wrong with the cache folder
    where no folder can be made so."""
    os.environ.update(environment)
    tempfile.tempdir = temporary or None
    if injected:
        INJECTIONS[injected](os.path.realpath(environment["BAOC_CACHE_DIR"]))
    return _trained()


def train_twice(environment: Mapping[str, str], temporary: str, mended: Mapping[str, str]) -> tuple[Trained, Trained]:
    """The second time after the environment has been mended."""
    os.environ.update(environment)
    tempfile.tempdir = temporary or None
    first = _trained()
    os.environ.update(mended)
    return first, _trained()


def train_homeless(temporary: str) -> Trained:
    """The user has no home directory, nor an entry in the table of users."""
    for name in ("HOME", "XDG_CACHE_HOME", "BAOC_CACHE_DIR"):
        os.environ.pop(name, None)
    tempfile.tempdir = temporary

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    pwd.getpwuid = unknown
    return _trained()


def _trained() -> Trained:
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(96, 64, generator=generator))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        baoc_compile.prepare(optimizer, plan="8bit")
        step = torch.compile(optimizer.step, backend="baoc")
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            step()
    tensors = [p.detach() for p in parameters]
    for value in optimizer.state[parameters[0]].values():
        tensors += value.parts.values() if isinstance(value, StateTensor) else [value]
    return Trained(
        b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors),
        {type(made.result()).__name__ for programs in make_programs._PROGRAMS.values() for _, made in programs},
        addresses.compiled() is not None,
        [str(w.message) for w in given if issubclass(w.category, BaocWarning)],
    )


# what is wrong with a folder where none can be mounted


def _raising(function: Callable[..., Any], folder: str, error: OSError) -> Callable[..., Any]:
    """The function, which fails with a path in the folder."""

    def raising(*arguments: Any, **options: Any) -> Any:
        for argument in (*arguments, *options.values()):
            if isinstance(argument, str | Path) and os.path.realpath(argument).startswith(folder):
                raise error
        return function(*arguments, **options)

    return raising


def _noexec(folder: str) -> None:
    error = OSError("program.so: failed to map segment from shared object")
    ctypes.CDLL = _raising(ctypes.CDLL, folder, error)  # type: ignore[misc]


def _full(folder: str) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    compile_cpp.seal = _raising(cache.seal, folder, error)


def _read_only(folder: str) -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    compile_cpp.unfinished = _raising(cache.unfinished, folder, error)


INJECTIONS = {"noexec": _noexec, "full": _full, "read-only": _read_only}


# two processes at once


def build_side_by_side(environment: Mapping[str, str], rounds: int, with_locks: bool) -> list[int]:
    """Exit codes of two processes that compile the same program at the same time, again and again."""
    barrier = _CONTEXT.Barrier(2)
    both = [_CONTEXT.Process(target=_build_rounds, args=(environment, rounds, with_locks, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=120)
    return [process.exitcode if process.exitcode is not None else -1 for process in both]


def _build_rounds(environment: Mapping[str, str], rounds: int, with_locks: bool, barrier: Any) -> None:
    os.environ.update(environment)
    if not with_locks:
        compile_cpp.locked = lambda path, seconds: nullcontext()  # type: ignore[assignment]
    for number in range(rounds):
        barrier.wait(timeout=60)
        assert compile_cpp.build(source_of(number)).run() == number


def source_of(number: int) -> str:
    return f'extern "C" int run() {{ return {number}; }}\n'


# files of numbers


def add_side_by_side(folder: Path, count: int) -> list[int]:
    """Exit codes of two processes that add entries to the same file at the same time."""
    both = [_CONTEXT.Process(target=_add_entries, args=(folder, letter, count)) for letter in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=120)
    return [process.exitcode if process.exitcode is not None else -1 for process in both]


def _add_entries(folder: Path, letter: str, count: int) -> None:
    for number in range(count):
        cache.Folder(folder).add_entries("numbers.json", {f"{letter}{number}": number})
