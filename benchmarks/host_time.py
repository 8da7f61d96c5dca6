"""Host time of AdamW's step beyond its kernels, over tiny tensors, beside torch's own foreach and fused steps.

Two times are taken of every step: of `optimizer.step()`, and, inside it, of its programs. Their difference is what the
host does besides: checks, numbers, tables, counters. On a GPU, a program's time is that of launching.

Steps run in three situations:

    constant lr         nothing changes between steps but the counters
    new lr              the learning rate is another Python number at every step
    new lr, absent      besides, every second gradient or so is absent, by a new random pattern at every step

What makes a situation is not timed. Every number of tensors has a process of its own, in which all optimizers take
turns, some steps at a time. Writes host_time.json and host_time.md (on a GPU host_time_cuda.*).

    python benchmarks/host_time.py [--counts 10 50 300 1700] [--steps 400] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from paired import Spread, machine
from paths import RESULTS, shown_at

import baoc_compile
from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.runtime.session import session_of
from baoc_compile.state.plan import ParameterPlan, Plan

AT_ONCE = 20  # steps of a case before it is another one's turn
CONSTANT, NEW, ABSENT = SITUATIONS = ("constant lr", "new lr", "new lr, absent")
SHARE_ABSENT = 0.5
MATRIX, VECTOR = (8, 8), (8,)  # every other tensor

#: What the matrices' state is stored as; the vectors' stays fp32.
PLANS = {
    "fp32": {"exp_avg": "fp32", "exp_avg_sq": "fp32"},
    "8bit": {"exp_avg": "e2m5", "exp_avg_sq": "e3m5"},
}
RIVALS: dict[str, dict[str, Any]] = {"torch foreach": {"foreach": True}, "torch fused": {"fused": True}}

#: What is aimed at beyond the kernels: microseconds by number of tensors, with a new lr; absent gradients over that.
MOST_US = {300: 100.0, 1700: 400.0}
MOST_FOR_ABSENT = 2.0


@dataclass(frozen=True)
class Case:
    tensors: int
    contender: str  # "baoc " and a plan, or a rival
    situation: str
    device: str


class Running:
    """One optimizer in one situation."""

    def __init__(self, case: Case):
        self.case, self.random = case, random.Random(0)
        generator = torch.Generator(case.device).manual_seed(0)

        def normal(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, device=case.device, generator=generator)

        shapes = [MATRIX if i % 2 == 0 else VECTOR for i in range(case.tensors)]
        self.parameters = [torch.nn.Parameter(normal(shape)) for shape in shapes]
        self.grads = [normal(shape) for shape in shapes]
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        self.optimizer = torch.optim.AdamW(self.parameters, **RIVALS.get(case.contender, {}))
        self.own: Any = None
        if case.contender not in RIVALS:
            slots = PLANS[case.contender.removeprefix("baoc ")]
            chosen = {i: ParameterPlan(f"{i}", MATRIX, slots) for i in range(0, case.tensors, 2)}
            baoc_compile.prepare(self.optimizer, plan=Plan(parameters=chosen))
            self.own = session_of(self.optimizer).own
        for _ in range(10):
            self.one()

    def change(self) -> None:
        """Make the situation of the next step."""
        if self.case.situation == CONSTANT:
            return
        self.optimizer.param_groups[0]["lr"] = 1e-3 * (1 + self.random.random())
        if self.case.situation == ABSENT:
            for parameter, grad in zip(self.parameters, self.grads, strict=True):
                parameter.grad = None if self.random.random() < SHARE_ABSENT else grad

    def one(self) -> dict[str, float]:
        """Return the seconds of one step, by part. A GPU is idle before it, and not waited for in it."""
        self.change()
        _programs.taken = 0.0
        wall, processor = time.perf_counter(), time.process_time()
        self.optimizer.step()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.settle()
        found = {"step": wall, "processor": processor}
        if self.own is not None:
            found["kernels"] = _programs.taken
            found["beyond"] = wall - found["kernels"]
        return found

    def launches(self) -> list[Any]:
        """Return the launches that the last step has made."""
        if self.own is None:
            return []
        bound = self.own.bound
        return [launch for launch in bound.bound.launches if bound.parameters.present[launch.indices].any()]

    def settle(self) -> None:
        if self.case.device == "cuda":
            torch.cuda.synchronize()


class Programs:
    """The seconds that programs have taken since `taken` was set to 0."""

    taken = 0.0

    def watch(self) -> None:
        """Time every launch of this process."""
        launch = Launch.launch

        def timed(launched: Launch, table: Any) -> None:
            began = time.perf_counter()
            launch(launched, table)
            self.taken += time.perf_counter() - began

        Launch.launch = timed  # type: ignore[assignment, method-assign]


_programs = Programs()
_running: dict[Case, Running] = {}  # of this process


def start(cases: list[Case]) -> list[int]:
    """Start all cases; return how many launches a step of each has."""
    torch.set_num_threads(1)
    _programs.watch()
    _running.update({case: Running(case) for case in cases})
    for running in _running.values():
        assert running.own is None or running.own.bound is not None, f"the step runs as written: {running.own.refused}"
    return [len(running.launches()) for running in _running.values()]


def run(case: Case, steps: int) -> list[dict[str, float]]:
    for _ in range(3):  # the other cases' turn has emptied the caches
        _running[case].one()
    return [_running[case].one() for _ in range(steps)]


def measure(cases: list[Case], steps: int) -> list[dict[str, Any]]:
    """Return medians and quartiles in microseconds, case by case."""
    by_count: dict[int, list[Case]] = {}
    for case in cases:
        by_count.setdefault(case.tensors, []).append(case)
    pools = {count: ProcessPoolExecutor(1, mp_context=get_context("spawn")) for count in by_count}
    try:
        launches: dict[Case, int] = {}
        for count, several in by_count.items():
            launches |= dict(zip(several, pools[count].submit(start, several).result(), strict=True))
        taken: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
        order = list(cases)
        for _ in range(-(-steps // AT_ONCE)):
            for case in order:
                taken[case] += pools[case.tensors].submit(run, case, AT_ONCE).result()
            order.reverse()
    finally:
        for pool in pools.values():
            pool.shutdown()
    return [
        {
            **asdict(case),
            "launches": launches[case],
            "steps": len(own),
            **{part: vars(Spread.of(1e6 * step[part] for step in own)) for part in own[0]},
            "processor_share": statistics.median(step["processor"] / step["step"] for step in own),
        }
        for case, own in taken.items()
    ]


def missed(results: list[dict[str, Any]]) -> list[str]:
    """Return which aims were missed."""
    beyond = {(e["contender"], e["tensors"], e["situation"]): e["beyond"]["median"] for e in results if "beyond" in e}
    found = []
    for (contender, tensors, situation), us in beyond.items():
        of = f"{contender}, {tensors} tensors, {situation}"
        if situation == NEW and us > MOST_US.get(tensors, us):
            found.append(f"{of}: {us:.0f} us beyond the kernels, aim {MOST_US[tensors]:.0f}")
        usual = beyond.get((contender, tensors, NEW), us)
        if situation == ABSENT and us > MOST_FOR_ABSENT * usual:
            found.append(f"{of}: {us / usual:.1f} times what it is with all gradients, aim {MOST_FOR_ABSENT:g}")
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the page: what ran, and a table."""
    about, results = report["machine"], report["results"]
    where = f"{about['cpu']}, 1 thread" + (f", {about['gpu']}" if report["device"] == "cuda" else "")
    releases = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "triton") if about[name])
    own = list(dict.fromkeys(e["contender"] for e in results if "beyond" in e))
    rivals = list(dict.fromkeys(e["contender"] for e in results if "beyond" not in e))
    of = {(e["tensors"], e["situation"], e["contender"]): e for e in results}
    launches = ", ".join(f"{name} {next(e['launches'] for e in results if e['contender'] == name)}" for name in own)
    columns = ["tensors", "situation", *(f"{name}{part}" for name in own for part in ("", ", beyond")), *rivals]
    lines = [
        "# Host time of a step",
        "",
        f"AdamW, half of the tensors 8×8, half of 8 elements; {where}; {releases}. Times are microseconds, medians of",
        f"{results[0]['steps']} steps, with quartiles in brackets. *beyond* is the step less the "
        f"{'launching' if report['device'] == 'cuda' else 'programs'} in it. Launches in a step: {launches}.",
        "*new lr*: the learning rate is another number at every step. *absent*: besides, half of the gradients are absent, "
        "by a new",
        "random pattern at every step. Made by `benchmarks/host_time.py`, which describes the method.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---:|---" + "|---:" * (len(columns) - 2) + "|",
    ]
    for tensors, situation in dict.fromkeys((e["tensors"], e["situation"]) for e in results):
        cells = [(name, part) for name in own for part in ("step", "beyond")] + [(name, "step") for name in rivals]
        shown = [_shown(of[tensors, situation, name][part]) for name, part in cells]
        lines.append("| " + " | ".join([f"{tensors:,}", situation, *shown]) + " |")
    share = min(e["processor_share"] for e in results)
    lines += ["", f"Processor time over wall time: at least {share:.2f} in the median of every case."]
    return "\n".join(lines) + "\n"


def _shown(spread: dict[str, float]) -> str:
    return f"{spread['median']:.0f} [{spread['low']:.0f}, {spread['high']:.0f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 50, 300, 1700], help="of tensors")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    contenders = [*(f"baoc {plan}" for plan in options.plans), *RIVALS]
    cases = [Case(n, name, s, options.device) for n, s, name in product(options.counts, SITUATIONS, contenders)]
    report = {"machine": machine(), "device": options.device, "results": measure(cases, options.steps)}
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / ("host_time_cuda.json" if options.device == "cuda" else "host_time.json")
    results.write_text(json.dumps(report, indent=1) + "\n")
    shown_at(results, ".md").write_text(markdown(report))
    print(markdown(report))
    for aim in missed(report["results"]):
        print(f"missed: {aim}")
    return 1 if missed(report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
