"""Host time of a compiled AdamW step beside its kernels: torch's guards and wrappers, and what baoc adds.

Three times are taken in every step: of the whole step, inside the callable that the backend returned, and inside the
executables. Torch's part is the whole less the callable; baoc's part is the callable less the executables. On a GPU, an
executable's time is that of launching. Every case has a process of its own, and the cases take turns, some steps at a
time. Writes host_time.json and host_time.md (on a GPU host_time_cuda.*).

    python benchmarks/host_time.py [--counts 10 300 600] [--steps 400] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from first_call import shapes_of
from paired import Spread, machine
from paths import RESULTS, shown_at

import baoc_compile
import baoc_compile.backend

AT_ONCE = 20  # steps of a case before it is another one's turn
PARTS = ("whole", "torch", "baoc", "kernels", "processor")


@dataclass(frozen=True)
class Case:
    tensors: int
    plan: str
    device: str


class Probe:
    """Seconds spent in the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed

    def take(self) -> float:
        taken, self.seconds = self.seconds, 0.0
        return taken


@dataclass
class Running:
    """A compiled step with its probes, in the process that runs it."""

    step: Callable[[], object]
    inside: Probe
    kernels: Probe
    launches: int
    device: str

    @staticmethod
    def of(case: Case) -> Running:
        torch.set_num_threads(1)
        inside, kernels = Probe(), Probe()
        generator = torch.Generator(case.device).manual_seed(0)
        parameters = [
            torch.nn.Parameter(torch.randn(shape, device=case.device, generator=generator))
            for shape in shapes_of(case.tensors)
        ]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, device=case.device, generator=generator)
        optimizer = torch.optim.AdamW(parameters)
        baoc_compile.prepare(optimizer, plan=case.plan)
        executable = _executable(case.device)
        executable.run = kernels.wrap(executable.run)
        step = torch.compile(
            optimizer.step, backend=lambda gm, inputs: inside.wrap(baoc_compile.backend.baoc(gm, inputs))
        )
        for _ in range(10):
            step()
        launches = sum(
            "fused_update" in str(n.target) for n in baoc_compile.inspect(optimizer).graphs["rewritten"].graph.nodes
        )
        return Running(step, inside, kernels, launches, case.device)

    def one(self) -> dict[str, float]:
        """Seconds of one step, by part. A GPU is idle before it, and not waited for in it."""
        self.inside.take()
        self.kernels.take()
        wall, processor = time.perf_counter(), time.process_time()
        self.step()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        if self.device == "cuda":
            torch.cuda.synchronize()
        inside, kernels = self.inside.take(), self.kernels.take()
        parts = (wall, wall - inside, inside - kernels, kernels, processor)
        return dict(zip(PARTS, parts, strict=True))


def _executable(device: str) -> Any:
    if device == "cuda":
        from baoc_compile.kernels.triton.program import TritonProgram

        return TritonProgram
    from baoc_compile.kernels.cpp.program import CppProgram

    return CppProgram


_running: list[Running] = []  # of this process


def start(case: Case) -> int:
    """Compiles; returns how many launches a step has."""
    _running[:] = [Running.of(case)]
    return _running[0].launches


def run(steps: int) -> list[dict[str, float]]:
    for _ in range(3):  # the other cases' turn has emptied the caches
        _running[0].one()
    return [_running[0].one() for _ in range(steps)]


def measure(cases: list[Case], steps: int) -> list[dict[str, Any]]:
    """Medians and quartiles in microseconds, case by case."""
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in cases]
    try:
        launches = [pool.submit(start, case).result() for pool, case in zip(pools, cases, strict=True)]
        taken: list[list[dict[str, float]]] = [[] for _ in cases]
        order = list(range(len(cases)))
        for _ in range(-(-steps // AT_ONCE)):
            for index in order:
                taken[index] += pools[index].submit(run, AT_ONCE).result()
            order.reverse()
    finally:
        for pool in pools:
            pool.shutdown()
    return [
        {
            "tensors": case.tensors,
            "plan": case.plan,
            "launches": count,
            "steps": len(own),
            **{part: vars(Spread.of(1e6 * step[part] for step in own)) for part in PARTS},
            "processor_share": statistics.median(step["processor"] / step["whole"] for step in own),
        }
        for case, count, own in zip(cases, launches, taken, strict=True)
    ]


def markdown(report: dict[str, Any]) -> str:
    """The page: what ran, and a table."""
    about = report["machine"]
    where = f"{about['cpu']}, 1 thread" + (f", {about['gpu']}" if report["device"] == "cuda" else "")
    releases = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "triton") if about[name])
    kernels = "launching" if report["device"] == "cuda" else "kernels"
    lines = [
        "# Host time of a step",
        "",
        f"AdamW, half of the tensors 64×64, half of 64 elements; {where}; {releases}. Times are microseconds, medians of",
        f"{report['results'][0]['steps']} steps, with quartiles in brackets. *torch* is Dynamo's guards and the wrapper of "
        "`Optimizer.step`. *baoc* is all",
        f"that a launch needs besides the {'launch itself' if report['device'] == 'cuda' else 'kernel'}. *processor* is "
        "processor time over wall time. Made by `benchmarks/host_time.py`.",
        "",
        f"| tensors | plan | launches | whole step | torch | baoc | {kernels} | processor |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in report["results"]:
        cells = [f"{entry[p]['median']:.0f} [{entry[p]['low']:.0f}, {entry[p]['high']:.0f}]" for p in PARTS[:4]]
        head = [str(entry["tensors"]), entry["plan"], str(entry["launches"])]
        lines.append("| " + " | ".join([*head, *cells, f"{entry['processor_share']:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 300], help="of tensors; 600 compile for a minute")
    parser.add_argument("--plans", nargs="+", default=["fp32", "8bit"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    cases = [Case(count, plan, options.device) for count in options.counts for plan in options.plans]
    report = {"machine": machine(), "device": options.device, "results": measure(cases, options.steps)}
    results = options.out / ("host_time_cuda.json" if options.device == "cuda" else "host_time.json")
    options.out.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(report, indent=1) + "\n")
    shown_at(results, ".md").write_text(markdown(report))
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
