"""Cost of `prepare` and the first step of AdamW in 8 bits, beside one eager step and Dynamo's bare trace of the step.

Every figure is processor time, of a process of its own with one thread; what it imports is not timed. The programs'
compiler runs as a child process and is counted separately. "cold": the cache of programs is empty; "warm": an earlier
process has filled it. The bare trace is the first call of torch's own step, compiled with a backend that returns the
graph as it is; its state exists before. Contenders take turns in every round; of more than 300 tensors, Dynamo traces
in the first round only.

Memory is how far the resident memory of the process grows at most (the kernel's high-water mark, reset before), less
the bytes of the state that is there at the end: all that Python, torch and the allocators take, the compiler's own
process left out. On a GPU, the growth of what torch has allocated there is taken too.

Cases are numbers of tensors, half of them 64×64 and half of 64 elements, and the shapes of whole models; all sizes of
a model are divided by the smallest number for which its elements stay within the limit. Writes first_call.json and
first_call.md (on a GPU first_call_cuda.*).

    python benchmarks/first_call.py [--cases 300 gpt2] [--rounds 3] [--no-dynamo | --dynamo 10 300] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import json
import logging
import math
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count as counting
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from models import Shape, count, gpt2, llama, resnet
from paths import RESULTS, shown_at

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "BAOC_CACHE_DIR")
COLD, WARM, EAGER, BARE = "baoc cold", "baoc warm", "eager", "Dynamo"
MODELS: dict[str, Callable[[], list[Shape]]] = {
    "gpt2": gpt2,
    "resnet101": resnet,
    "llama-8b": partial(llama, vocabulary=128_256, layers=32, width=4_096, keys=1_024, hidden=14_336),
}
CASES = ("10", "50", "300", "1700", *MODELS)
MOST_ELEMENTS = 1 << 27
DYNAMO_AGAIN = 300  # tensors: Dynamo traces more only once

#: What is aimed at: seconds by case, and bytes beyond the state.
MOST_SECONDS = {"300": 1.0, "1700": 4.0}
MOST_BYTES = 100e6


@dataclass(frozen=True)
class Job:
    case: str
    foreach: bool
    elements: int  # limit on those of a model
    device: str

    def shapes(self) -> list[Shape]:
        if self.case not in MODELS:
            return [(64, 64) if i % 2 == 0 else (64,) for i in range(int(self.case))]
        whole = MODELS[self.case]()
        smaller = ([tuple(-(-size // k) for size in shape) for shape in whole] for k in counting(1))
        return next(shapes for shapes in smaller if count(shapes) <= self.elements)


def measure(contender: str, job: Job, profile: bool = False) -> dict[str, float]:
    """Run a contender in this process, which must be a new one, and return seconds and bytes."""
    import torch
    import torch._dynamo  # an eager step imports it too

    torch.set_num_threads(1)
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, device=job.device)) for shape in job.shapes()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, foreach=job.foreach)
    prepare, step = _nothing, optimizer.step
    if contender in (COLD, WARM):
        import baoc_compile

        prepare = partial(baoc_compile.prepare, optimizer, plan="8bit")
    elif contender == BARE:
        import torch._inductor.compile_fx

        torch._logging.set_logs(dynamo=logging.ERROR)
        optimizer.step()
        step = torch.compile(optimizer.step, backend=_as_it_is)
    profiler = cProfile.Profile()
    if profile:
        prepare, step = partial(profiler.runcall, prepare), partial(profiler.runcall, step)
    growth = Growth(job.device)
    found = {f"prepare_{key}": value for key, value in _timed(prepare, job.device).items()}
    found |= {f"first_{key}": value for key, value in _timed(step, job.device).items()}
    found |= growth.now()
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(r"baoc|kernels/|passes/|_dynamo|subprocess", 60)
    _timed(step, job.device)
    found |= {f"later_{key}": value for key, value in _timed(step, job.device).items()}
    import baoc_compile

    if contender in (COLD, WARM):
        baoc_compile.inspect(optimizer)  # raises if the step ran as written
    found["state_bytes"] = baoc_compile.state_bytes(optimizer)
    for key in ("host_bytes", "device_bytes"):
        is_here = (key == "device_bytes") == (job.device == "cuda")
        found[key] -= found["state_bytes"] if is_here and contender != BARE else 0
    found["seconds"] = found["prepare_seconds"] + found["first_seconds"]
    found["compiler_seconds"] = found["prepare_children"] + found["first_children"]
    return found


class Growth:
    """How far memory grows from here on."""

    def __init__(self, device: str):
        import torch

        self.device = device
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # memory that was freed before counts when it is taken again
        with suppress(OSError):  # without it the high-water mark of the whole process counts
            Path("/proc/self/clear_refs").write_text("5")
        self._host = _status("VmRSS")
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._device = torch.cuda.memory_allocated()

    def now(self) -> dict[str, float]:
        import torch

        return {
            "host_bytes": _status("VmHWM") - self._host,
            "device_bytes": torch.cuda.max_memory_allocated() - self._device if self.device == "cuda" else 0,
        }


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _nothing() -> None:
    pass


def _as_it_is(gm: Any, inputs: Any) -> Callable[..., Any]:
    return gm.forward


def _timed(function: Callable[[], object], device: str) -> dict[str, float]:
    """Return processor seconds of this process and of its finished children, and seconds on the wall."""
    import torch

    wall, own, before = time.perf_counter(), time.process_time(), os.times()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    after = os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.process_time() - own, "children": children, "wall": time.perf_counter() - wall}


def apart(contender: str, job: Job, caches: str, profile: bool = False) -> dict[str, float]:
    """Measure in a new process, with its compile caches below `caches`."""
    os.environ.update({name: f"{caches}/{name}" for name in CACHES})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, contender, job, profile).result()


def measure_all(job: Job, contenders: list[str], rounds: int, profile: bool) -> dict[str, Any]:
    """Return the runs of all contenders, and their medians."""
    shapes = job.shapes()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(rounds):
            again = [name for name in contenders if index == 0 or name != BARE or len(shapes) <= DYNAMO_AGAIN]
            for name in again if index % 2 == 0 else reversed(again):
                # the first cold run fills the cache of the warm ones
                caches = f"{folder}/{name}-{index}" if index and name != WARM else f"{folder}/first"
                runs[name].append(apart(name, job, caches, profile))
                taken = ", ".join(
                    f"{key} {runs[name][-1][key]:.4g}" for key in ("seconds", "compiler_seconds", "host_bytes")
                )
                print(f"{job.case}, foreach={job.foreach}, {name}: {taken}", flush=True)
    medians = {name: {key: statistics.median(run[key] for run in own) for key in own[0]} for name, own in runs.items()}
    entry = {"case": job.case, "foreach": job.foreach, "tensors": len(shapes), "elements": count(shapes)}
    return entry | {"runs": runs, "medians": medians}


def growth_with_tensors(results: list[dict[str, Any]], foreach: bool) -> float:
    """Return the exponent p of seconds ~ tensors^p between 300 and 1,700 tensors (1: linear); NaN if either did not run."""
    at = {r["case"]: r["medians"][WARM]["seconds"] for r in results if r["foreach"] == foreach}
    if not {"300", "1700"} <= at.keys():
        return math.nan
    return math.log(at["1700"] / at["300"]) / math.log(1700 / 300)


def missed(results: list[dict[str, Any]]) -> list[str]:
    """Return which aims were missed."""
    found = []
    for r in results:
        for name in (COLD, WARM):
            own, of = r["medians"][name], f"{r['case']}, foreach={r['foreach']}, {name}"
            if own["seconds"] > MOST_SECONDS.get(r["case"], math.inf):
                found.append(f"{of}: {own['seconds']:.2f} s, aim {MOST_SECONDS[r['case']]:g} s")
            found += [
                f"{of}: {own[key] / 1e6:.0f} MB beyond the state ({key}), aim {MOST_BYTES / 1e6:.0f} MB"
                for key in ("host_bytes", "device_bytes")
                if own[key] > MOST_BYTES
            ]
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the page: what ran, and a table."""
    about = report["machine"]
    where = f"{about['cpu']}, 1 thread" + (f", {about['gpu']}" if report["device"] == "cuda" else "")
    releases = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "triton") if about[name])
    rounds = max(len(r["runs"][COLD]) for r in report["results"])
    lines = [
        "# Cost of `prepare` and the first step",
        "",
        f"AdamW in 8 bits; {where}; {releases}. Seconds of processor time, medians of {rounds} runs (of Dynamo with "
        f"more than {DYNAMO_AGAIN} tensors, one).",
        "*cold*, *warm*: `prepare` and the first step together, with an empty cache of programs and with a full one; the C++ "
        "compiler's",
        "time in its own processes is beside it. *later*: a later step of the same optimizer, most of it in the kernels. "
        "*eager*: one step of",
        "torch's own, the first. *Dynamo*: its bare trace. *memory*: how far the resident memory of the process grows at "
        "most beyond the",
        "state, cold / warm, in MB (10^6 bytes). Made by `benchmarks/first_call.py`, which describes the method.",
        "",
        "| case | tensors | elements | foreach | cold | compiler | warm | later | eager | Dynamo | memory |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in report["results"]:
        m = r["medians"]
        by_case = [r["case"], f"{r['tensors']:,}", f"{r['elements'] / 1e6:.1f}M", str(r["foreach"])]
        cells = [m[COLD]["seconds"], m[COLD]["compiler_seconds"], m[WARM]["seconds"], m[WARM]["later_seconds"]]
        cells += [m[EAGER]["seconds"], m[BARE]["seconds"] if BARE in m else math.nan]
        memory = " / ".join(f"{m[name]['host_bytes'] / 1e6:.0f}" for name in (COLD, WARM))
        shown = ["–" if math.isnan(cell) else f"{cell:.3f}" for cell in cells]
        lines.append("| " + " | ".join([*by_case, *shown, memory]) + " |")
    for foreach in (False, True):
        exponent = growth_with_tensors(report["results"], foreach)
        if not math.isnan(exponent):
            lines += [
                "",
                f"foreach={foreach}, warm: from 300 to 1,700 tensors, seconds grow as tensors^{exponent:.2f}.",
            ]
    return "\n".join(lines) + "\n"


def case_named(text: str) -> str:
    if text in MODELS or (text.isdigit() and int(text) > 0):
        return text
    raise argparse.ArgumentTypeError(f"expected a number of tensors or one of {', '.join(MODELS)}, got {text!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=case_named, default=list(CASES), metavar="CASE")
    parser.add_argument("--foreach", nargs="+", choices=("False", "True"), default=["False", "True"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dynamo", nargs="+", type=case_named, metavar="CASE", help="trace these only; default: all")
    parser.add_argument("--no-dynamo", action="store_true", help="trace nothing: 1,700 tensors take it 50 seconds")
    parser.add_argument("--elements", type=int, default=MOST_ELEMENTS, help="limit on the elements of a model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--profile", action="store_true", help="one profiled run of each, no figures")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    traced = [] if options.no_dynamo else options.dynamo or options.cases
    results = []
    for case in options.cases:
        contenders = [COLD, WARM, EAGER, *([BARE] if case in traced else [])]
        for foreach in (text == "True" for text in options.foreach):
            job = Job(case, foreach, options.elements, options.device)
            results.append(measure_all(job, contenders, 1 if options.profile else options.rounds, options.profile))
    if options.profile:
        return 0
    from paired import machine

    report = {"machine": machine(), "device": options.device, "results": results}
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / ("first_call_cuda.json" if options.device == "cuda" else "first_call.json")
    written.write_text(json.dumps(report, indent=1) + "\n")
    shown_at(written, ".md").write_text(markdown(report))
    print(markdown(report))
    for aim in missed(results):
        print(f"missed: {aim}")
    return 1 if missed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
