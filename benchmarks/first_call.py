"""Time of the first compiled step of AdamW: baoc against Dynamo's bare tracing and torch.compile's default backend.

Every contender runs in processes of its own, in turn with the others. Compile caches are empty unless the contender's
name says warm. For all of them, state exists before the first call. `prepare` is timed separately and counts in one of
the two ratios to bare tracing. Processor time includes finished child processes such as compilers.

    python benchmarks/first_call.py [--tensors 150] [--rounds 3] [--out results.json] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "BAOC_CACHE_DIR")
BARE = "bare tracing"
#: Contender -> where its compile caches come from: a new folder every time, or one that an earlier process has filled.
CONTENDERS = {BARE: "cold", "baoc 8bit cold": "cold", "baoc 8bit warm": "warm", "inductor": "cold"}


def shapes_of(tensors: int) -> list[tuple[int, ...]]:
    """Matrices that are compressed, and vectors that are too small to be."""
    return [(64, 64) if i % 2 == 0 else (64,) for i in range(tensors)]


def first_call(contender: str, tensors: int, device: str, profile: bool = False) -> dict[str, float]:
    """Seconds in this process, which must be a new one. What is imported here is not timed, for all alike."""
    import torch
    import torch._inductor.compile_fx

    import baoc_compile
    import baoc_compile.backend

    torch.set_num_threads(1)  # on a busy machine threads wait for each other longer than the step takes
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes_of(tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters)
    found: dict[str, float] = {"prepare": 0.0}
    backend: Any = "inductor" if contender == "inductor" else lambda gm, inputs: gm.forward
    if contender.startswith("baoc"):
        found["prepare"] = _timed(lambda: baoc_compile.prepare(optimizer, plan="8bit"), device)[0]
        backend = "baoc"
    else:
        optimizer.step()  # makes the state
    step = torch.compile(optimizer.step, backend=backend)
    profiler = cProfile.Profile()
    found["first_call"], found["processor"] = _timed((lambda: profiler.runcall(step)) if profile else step, device)
    found["second_call"] = _timed(step, device)[0]
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(r"baoc|kernels/|passes/|_dynamo|subprocess", 60)
    return found


def _timed(function: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds on the wall, and of processors."""
    import torch

    wall, before = time.perf_counter(), os.times()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])


def apart(contender: str, options: argparse.Namespace, caches: str, profile: bool = False) -> dict[str, float]:
    """The same in a new process, with its compile caches below `caches`."""
    os.environ.update({name: f"{caches}/{name}" for name in CACHES})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(first_call, contender, options.tensors, options.device, profile).result()


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians, and medians of the ratios to bare tracing within rounds."""
    found = {}
    for name, own in runs.items():
        pairs = [*zip(own, runs[BARE], strict=True)]
        found[name] = {key: statistics.median(run[key] for run in own) for key in own[0]}
        found[name]["ratio"] = statistics.median(a["first_call"] / b["first_call"] for a, b in pairs)
        found[name]["processor_ratio"] = statistics.median(a["processor"] / b["processor"] for a, b in pairs)
        found[name]["ratio_with_prepare"] = statistics.median(
            (a["first_call"] + a["prepare"]) / b["first_call"] for a, b in pairs
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--profile", action="store_true", help="one profiled run of each, no figures")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    names = list(dict.fromkeys([BARE, *options.contenders]))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        if any(CONTENDERS[name] == "warm" for name in names):
            apart("baoc 8bit cold", options, f"{folder}/warm")
        for index in range(1 if options.profile else options.rounds):
            for name in names if index % 2 == 0 else reversed(names):
                caches = f"{folder}/warm" if CONTENDERS[name] == "warm" else f"{folder}/{name}-{index}"
                runs[name].append(apart(name, options, caches, options.profile))
                print(f"round {index}, {name}: {runs[name][-1]}", flush=True)
    if options.profile:
        return 0
    from paired import machine

    report = {"machine": machine(), "tensors": options.tensors, "device": options.device}
    report |= {"runs": runs, "summary": summary(runs)}
    for name, figures in report["summary"].items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    ratios = {name: figures["ratio"] for name, figures in report["summary"].items()}
    slow = [name for name in ratios if name.startswith("baoc") and ratios[name] > 1.3]
    return 1 if slow or ratios.get("baoc 8bit cold", 0.0) >= ratios.get("inductor", float("inf")) else 0


if __name__ == "__main__":
    sys.exit(main())
