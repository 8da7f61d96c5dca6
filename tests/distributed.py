"""Run functions of some modules in several gloo processes, all of them within one start of the processes.

    python distributed.py FOLDER WORLD RANK MODULE ...      one process

A case is a function of a module whose name begins with `on_`, then the number of processes: `on_2_...`. Each process runs the
cases of its world size in order, and writes what became of them to a file. The first one that fails on any rank ends the run.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

#: Seconds after which the processes are killed, and after which one stops to wait for another.
MOST_SECONDS, MOST_WAITED = 60, 15


def cases_of(modules: Iterable[str]) -> dict[str, Callable[[], None]]:
    """The cases of some modules, by name."""
    found = (vars(importlib.import_module(module)) for module in modules)
    return {name: case for names in found for name, case in names.items() if name.startswith("on_")}


def check(modules: tuple[str, ...], name: str) -> None:
    """Fail unless the case went well on every rank."""
    failures = {r: text for r, text in enumerate(_run(modules, int(name.split("_")[1]))[name]) if text}
    if failures:
        pytest.fail("\n".join(f"rank {rank}: {text}" for rank, text in failures.items()), pytrace=False)


@functools.cache
def _run(modules: tuple[str, ...], world: int) -> dict[str, list[str]]:
    """Run the cases of one world size; return name -> for each rank, the failure, or an empty text."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    names = [name for name in cases_of(modules) if name.startswith(f"on_{world}_")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, str(world)]
        processes = [
            subprocess.Popen(
                [*command, str(rank), *modules], env=environment, stderr=(Path(folder) / f"{rank}.err").open("w")
            )
            for rank in range(world)
        ]
        began = time.monotonic()
        try:
            for process in processes:
                process.wait(max(0.0, MOST_SECONDS - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for process in processes:
                process.kill()
                process.wait()
        found = [_read(Path(folder) / f"{rank}.json") for rank in range(world)]
        errors = [(Path(folder) / f"{rank}.err").read_text()[-2000:] for rank in range(world)]
    return {n: [r.get(n, f"was not finished\n{errors[k]}") for k, r in enumerate(found)] for n in names}


def _read(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}


def _work(folder: Path, world: int, rank: int, modules: list[str]) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), world)
    waits = timedelta(seconds=MOST_WAITED)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=waits)
    results: dict[str, str] = {}
    for name, case in cases_of(modules).items():
        if name.startswith(f"on_{world}_"):
            failed = ""
            try:
                case()
            except Exception:
                failed = traceback.format_exc()
            results[name] = failed
            (folder / f"{rank}.new").write_text(json.dumps(results))
            (folder / f"{rank}.new").rename(folder / f"{rank}.json")
            if failed:
                return
    distributed.destroy_process_group()


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
