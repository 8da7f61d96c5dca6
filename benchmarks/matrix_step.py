"""A step that is replayed: torch's Muon on square matrices, its momentum in 8 bits, beside torch's own step.

Muon multiplies matrices, so that its pieces are no elementwise programs: baoc decodes the momentum, replays the step's calls,
and encodes the momentum again. "baoc fp32" replays, too, but stores the momentum as it is: a control. All take turns, and are
compared by rounds (`paired.py`).

Transient memory is the peak of what one step has allocated and not freed yet, beyond what is there before it (state,
parameters and gradients), in units of one matrix in fp32. On a CPU it is added up from the events of torch's profiler, which
reports every allocation and every release; on a GPU torch counts it.

Writes matrix_step.json and matrix_step.md (on a GPU matrix_step_cuda.*).

    python benchmarks/matrix_step.py [--matrices 8] [--columns 1024] [--threads 1 2] [--rounds 20] [--device cuda]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from paired import compare, machine, measure
from paths import RESULTS, shown_at

import baoc_compile
from baoc_compile.runtime.session import session_of

TORCH = "torch"
PLANS = {"baoc fp32": "fp32", "baoc 8bit": "8bit"}
WARM_UP = 4  # the second step is recorded anew

#: What is aimed at: the time over torch's, and the transient memory beyond torch's own, in matrices.
MOST_TIME = 1.2
MOST_MATRICES = 1.0


def started(name: str, matrices: int, columns: int, device: str) -> torch.optim.Optimizer:
    """Return a warm optimizer."""
    generator = torch.Generator(device).manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(columns, columns, device=device, generator=generator)

    parameters = [torch.nn.Parameter(normal()) for _ in range(matrices)]
    for parameter in parameters:
        parameter.grad = normal()
    optimizer = torch.optim.Muon(parameters)
    if name != TORCH:
        baoc_compile.prepare(optimizer, plan=PLANS[name])
    for _ in range(WARM_UP):
        optimizer.step()
    if name != TORCH:
        own = session_of(optimizer).own
        assert own.bound is not None and len(own.bound.bound.replays) == matrices, f"it is not replayed: {own.refused}"
    return optimizer


def peak_bytes(step: Callable[[], Any], device: str) -> int:
    """Return the most bytes that a step has allocated and not freed."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    found = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((e for e in found if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in events), initial=0))


def run(matrices: int, columns: int, threads: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Return what every contender takes."""
    torch.set_num_threads(threads)
    optimizers = {name: started(name, matrices, columns, device) for name in (TORCH, *PLANS)}
    taken = measure({name: optimizer.step for name, optimizer in optimizers.items()}, rounds, device)
    peaks = {name: peak_bytes(optimizer.step, device) / (4 * columns**2) for name, optimizer in optimizers.items()}
    return [
        {
            "contender": name,
            "threads": threads,
            "state_bytes_per_parameter": baoc_compile.state_bytes(optimizer) / (matrices * columns**2),
            "transient_matrices": peaks[name],
            "beyond_torch": peaks[name] - peaks[TORCH],
            **asdict(compare(taken[TORCH], taken[name], threads, device)),
        }
        for name, optimizer in optimizers.items()
    ]


def missed(results: list[dict[str, Any]]) -> list[str]:
    """Return which aims were missed."""
    found = []
    for entry in results:
        of = f"{entry['contender']}, {entry['threads']} threads"
        if entry["ratio"] is None:
            found.append(f"{of}: the machine was too busy to tell")
        elif entry["ratio"]["median"] > MOST_TIME:
            found.append(f"{of}: {entry['ratio']['median']:.2f} times torch's time, aim {MOST_TIME:g}")
        if entry["beyond_torch"] > MOST_MATRICES:
            found.append(f"{of}: {entry['beyond_torch']:.2f} matrices beyond torch's own, aim {MOST_MATRICES:g}")
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the page: what ran, and a table."""
    about, results = report["machine"], report["results"]
    where = about["cpu"] + f", {about['cores']} cores" + (f", {about['gpu']}" if report["device"] == "cuda" else "")
    lines = [
        "# A step that is replayed",
        "",
        f"torch's Muon on {report['matrices']} matrices of {report['columns']:,}×{report['columns']:,}; {where}; python "
        f"{about['python']}, torch {about['torch']}.",
        f"Medians of {results[0]['rounds']} paired rounds, with quartiles in brackets. *transient*: the most that a step has "
        "allocated and not freed",
        "yet, beyond state, parameters and gradients, in matrices of fp32. Made by `benchmarks/matrix_step.py`, which "
        "describes the method.",
        "",
        "| threads | contender | state bytes per parameter | ms | over torch | transient | rounds dropped |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for entry in results:
        busy = entry["ratio"] is None
        shown = [
            f"{entry['threads']}",
            entry["contender"],
            f"{entry['state_bytes_per_parameter']:.2f}",
            "noisy" if busy else _shown(entry["seconds"], 1e3, 0),
            "noisy" if busy else _shown(entry["ratio"], 1, 2),
            f"{entry['transient_matrices']:.2f}",
            f"{entry['dropped']}",
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _shown(spread: dict[str, float], unit: float, digits: int) -> str:
    median, low, high = (f"{unit * spread[k]:.{digits}f}" for k in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=8)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2, on a GPU 1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    counts = options.threads or ([1] if options.device == "cuda" else [1, 2])
    asked = {"matrices": options.matrices, "columns": options.columns, "device": options.device}
    report: dict[str, Any] = {"machine": machine(), **asked, "results": []}
    for threads in counts:
        report["results"] += run(options.matrices, options.columns, threads, options.rounds, options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / ("matrix_step_cuda.json" if options.device == "cuda" else "matrix_step.json")
    results.write_text(json.dumps(report, indent=1) + "\n")
    shown_at(results, ".md").write_text(markdown(report))
    print(markdown(report))
    for aim in missed(report["results"]):
        print(f"missed: {aim}")
    return 1 if missed(report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
