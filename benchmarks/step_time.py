"""Step time of AdamW and SGD: baoc's configurations against torch's steps and other packages' compressed ones.

Every contender runs beside torch's fused step of the same optimizer, several times, in processes of its own. The first
process has empty compile caches. Every second one creates the two optimizers in the other order, since where memory lies
moves a ratio by more than rounds do. The fused step also runs beside itself, which shows what difference the machine can
resolve. Writes step_time.json and step_time.png (on a GPU step_time_cuda.*): hardware, releases and figures.

    python benchmarks/step_time.py [--models 10M convnet] [--threads 1 2] [--rounds 20] [--contenders "baoc 8bit"]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS, PACKAGES, Contender, Running, start
from models import MODELS, Shape, count
from paired import Timing, compare, copy_bandwidth, machine, measure, timed
from paths import RESULTS, shown_at
from rich.console import Console
from rich.table import Table
from step_time_plot import plot

WARM_UP = 4  # steps after the first
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "BAOC_CACHE_DIR")


@dataclass(frozen=True)
class Job:
    model: str
    contender: str
    threads: int
    device: str
    rounds: int  # of all processes together


def run(job: Job, rounds: int, contender_first: bool) -> tuple[dict[str, Any], dict[str, list[Timing]]]:
    """Facts and timings of one process. Raises what the contender raises."""
    torch.set_num_threads(job.threads)
    torch._logging.set_logs(dynamo=logging.ERROR, inductor=logging.ERROR)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than time what is no longer compiled
    shapes = MODELS[job.model]()
    contender = CONTENDERS[job.contender]
    roles = {"baseline": CONTENDERS[contender.baseline], "contender": contender}
    order = reversed(roles) if contender_first else iter(roles)
    ready = {role: _warm(roles[role], shapes, job.device) for role in order}
    with torch.compiler.set_stance("fail_on_recompile"):
        taken = measure({role: ready[role][0].step for role in roles}, rounds, job.device)
    return ready["contender"][1], taken


def _warm(contender: Contender, shapes: list[Shape], device: str) -> tuple[Running, dict[str, Any]]:
    """The contender after some steps, and what it takes. `peak_bytes`: weights, gradients, state, and a step's own."""
    before = _allocated(device)
    running = start(contender, shapes, device)
    facts: dict[str, Any] = {"parameters": count(shapes), "first_call_seconds": timed(running.step, device).wall}
    for _ in range(WARM_UP):
        running.step()
    if device == "cuda":
        torch.cuda.synchronize()
        facts["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return running, facts | {"state_bytes": running.state_bytes(), "bytes_moved": running.bytes_moved()}


def _allocated(device: str) -> int:
    """Bytes on the GPU now; the peak is counted anew."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _refusal(error: Exception, package: str) -> str:
    if isinstance(error, ModuleNotFoundError) and package.endswith(error.name or "?"):
        return "not installed"
    lines = str(error).strip().splitlines() or [""]
    return f"refuses: {type(error).__name__}: {lines[0][:200]}"


def run_apart(job: Job, processes: int) -> dict[str, Any]:
    """Figures of one contender: `status` is "ran", "noisy" (no times), "not installed" or "refuses: ...".

    In new processes, one after the other, which may die.
    """
    entry: dict[str, Any] = asdict(job)
    timings: dict[str, list[Timing]] = {"baseline": [], "contender": []}
    os.environ["OMP_NUM_THREADS"] = str(job.threads)  # for the processes started now
    with tempfile.TemporaryDirectory() as caches:
        os.environ.update({name: f"{caches}/{name}" for name in CACHES})
        for index in range(processes):
            rounds = job.rounds // processes + (index < job.rounds % processes)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                try:
                    facts, taken = pool.submit(run, job, rounds, index % 2 == 1).result()
                except Exception as error:
                    return {**entry, "status": _refusal(error, CONTENDERS[job.contender].package)}
            entry = facts | entry  # those of the first process stay
            for name, some in taken.items():
                timings[name] += some
    comparison = compare(timings["baseline"], timings["contender"], job.threads, job.device)
    return {**entry, **asdict(comparison), "status": "ran" if comparison.seconds else "noisy"}


def summary(entry: Mapping[str, Any]) -> str:
    if entry["status"] == "noisy":
        return f"noisy: {entry['dropped']} of {entry['rounds']} rounds dropped, {entry['processors']:.2f} processors"
    if entry["status"] != "ran":
        return entry["status"]
    baseline = CONTENDERS[entry["contender"]].baseline
    return f"{1e3 * entry['seconds']['median']:.2f} ms, {entry['ratio']['median']:.2f} x {baseline}"


def row(entry: Mapping[str, Any], copies: Mapping[str, float]) -> list[str]:
    """Cells of the table, empty where there is no figure."""
    cells = [entry["model"], entry["contender"], str(entry["threads"])]
    parameters = entry.get("parameters", 1)
    if entry["status"] != "ran":
        return [*cells, "", entry["status"].partition(":")[0]]
    seconds, ratio = entry["seconds"]["median"], entry["ratio"]
    speed = entry["bytes_moved"] / seconds / 1e9
    cells += [
        f"{1e3 * seconds:.2f}",
        f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        f"{entry['state_bytes'] / parameters:.3f}",
        f"{entry['bytes_moved'] / parameters:.2f}",
        f"{speed:.1f} ({speed / copies[str(entry['threads'])]:.0%})",
    ]
    peak = f"{entry['peak_bytes'] / parameters:.2f}" if "peak_bytes" in entry else "–"
    return [
        *cells,
        peak,
        f"{entry['first_call_seconds']:.1f}",
        f"{entry['rounds'] - entry['dropped']}/{entry['rounds']}",
    ]


def table(report: Mapping[str, Any]) -> Table:
    shown = Table()
    for heading in ("model", "contender", "threads"):
        shown.add_column(heading, no_wrap=True)
    figures = ("ms", "x torch fused", "state B/param", "moved B/param", "GB/s (of a copy)")
    for heading in (*figures, "peak B/param", "first call s", "rounds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in report["results"]:
        shown.add_row(*row(entry, report["copy_gb_per_second"]))
    return shown


def others(results: Path, here: Mapping[str, Any], jobs: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """What an earlier run on this machine, with these versions, found for other jobs."""
    known = json.loads(results.read_text()) if results.exists() else {"machine": None, "results": []}
    entries = known["results"] if known["machine"] == here else []
    return [e for e in entries if (e["model"], e["contender"], e["threads"]) not in jobs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all, on a CPU all but the largest")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2, on a GPU 1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=4, help="for every contender; they share its rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    models = options.models or [name for name in MODELS if on_gpu or name not in ("100M", "llama-1b")]
    counts = options.threads or ([1] if on_gpu else [1, 2])

    report: dict[str, Any] = {"machine": machine(PACKAGES), "copy_gb_per_second": {}, "results": []}
    for threads in counts:
        torch.set_num_threads(threads)
        report["copy_gb_per_second"][str(threads)] = copy_bandwidth(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / ("step_time_cuda.json" if on_gpu else "step_time.json")
    jobs = list(product(models, options.contenders, counts))
    earlier = others(results, report["machine"], jobs)
    for index, (model, contender, threads) in enumerate(jobs, start=1):
        started = time.perf_counter()
        entry = run_apart(Job(model, contender, threads, options.device, options.rounds), options.processes)
        report["results"].append(entry)
        results.write_text(json.dumps(report | {"results": earlier + report["results"]}, indent=1) + "\n")
        taken = f"{time.perf_counter() - started:.0f} s"
        print(f"[{index}/{len(jobs)}] {model}, {contender}, {threads} threads: {summary(entry)} ({taken})", flush=True)
    report["results"] = earlier + report["results"]
    Console(width=180).print(table(report))
    plot(report, shown_at(results, ".png"))
    print(f"Results: {results}")
    own = (entry for entry in report["results"] if not CONTENDERS[entry["contender"]].package)
    return 1 if any(entry["status"] not in ("ran", "noisy") for entry in own) else 0


if __name__ == "__main__":
    sys.exit(main())
