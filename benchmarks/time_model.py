"""How well does `TimeModel` predict step times of AdamW?

A plan's time is predicted from its configurations alone, before its first step, with timings made for this; earlier ones
are not reused. Two times of the step are measured: the whole step, and the part in which it runs what it is bound to
(*launches*: the kernels and the upkeep of their tables on the host). The whole step also checks what it is bound to and
computes its numbers, for which the prediction has two constants. As in training, a forward and backward pass comes
before every step and takes the caches.

Every case has a process of its own, and the plans of a model take turns. With one thread, processor time counts where
it is less than wall time. Writes time_model.json (on a GPU time_model_cuda.json): hardware, releases, figures.

    python benchmarks/time_model.py [--models GPT 10x1M convnet] [--threads 1] [--turns 6] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from models import Shape, count, resnet
from paired import Spread, machine
from paths import RESULTS, ROOT
from rich.console import Console
from rich.table import Table

import baoc_compile
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.build.cache import Folder
from baoc_compile.kernels.codecs.catalogue import codec_for
from baoc_compile.passes.programs.make_programs import need_of
from baoc_compile.passes.programs.measure_time import HOST_NS_PER_STEP, HOST_NS_PER_TENSOR, TimeModel
from baoc_compile.passes.programs.step_cost import Cost, RememberedTimes
from baoc_compile.passes.rules.read_step import read_step, slots_of
from baoc_compile.runtime.lead_steps import own_function
from baoc_compile.runtime.session import session_of
from baoc_compile.state.plan import SMALL_NUMEL, ParameterPlan, Plan

TURN_SECONDS = 0.5
OTHER_WIDTH = 1536  # of the work before every step: 36 MiB of weights
Format = str | dict[str, str]
MIXED = {"exp_avg": "8bit", "exp_avg_sq": "factored"}

#: Formats that the matrices have in turn; vectors and small matrices are of fp32.
PLANS: dict[str, Sequence[Format]] = {
    "fp32": ["fp32"],
    "bf16": ["bf16"],
    "8bit": ["8bit"],
    "4bit": ["4bit"],
    "8bit, factored v": [MIXED],
    "fp32 | 8bit": ["fp32", "8bit"],
    "8bit | 4bit | bf16": ["8bit", "4bit", "bf16"],
    "fp32 | 8bit, factored v | 4bit | 8bit": ["fp32", MIXED, "4bit", "8bit"],
}


def gpt() -> list[Shape]:
    sys.path.insert(0, str(ROOT / "examples"))
    from language_model import GPT

    with torch.device("meta"):
        return [tuple(p.shape) for p in GPT().parameters()]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "GPT": gpt,
    "10x1M": lambda: [(1024, 1024) for _ in range(10)],
    "convnet": resnet,
}


@dataclass(frozen=True)
class Case:
    model: str
    plan: str
    threads: int
    device: str


class Probe:
    """Nanoseconds of a function: on the wall, and of processors."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.ns = (0, 0)

    def __call__(self, *arguments: Any) -> Any:
        wall, processor = time.perf_counter_ns(), time.process_time_ns()
        found = self.function(*arguments)
        self.ns = (time.perf_counter_ns() - wall, time.process_time_ns() - processor)
        return found


class Running:
    """One case in its own process."""

    def __init__(self, case: Case):
        torch.set_num_threads(case.threads)
        self.case = case
        shapes = MODELS[case.model]()
        generator = torch.Generator(case.device).manual_seed(0)
        parameters = [
            torch.nn.Parameter(0.02 * torch.randn(shape, device=case.device, generator=generator)) for shape in shapes
        ]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, device=case.device, generator=generator)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        baoc_compile.prepare(self.optimizer, plan=plan(case.plan, self.optimizer))
        self.predicted = predict(self.optimizer, case)
        self.other = torch.nn.Sequential(*(torch.nn.Linear(OTHER_WIDTH, OTHER_WIDTH) for _ in range(4))).to(case.device)
        self.inputs = torch.randn(8, OTHER_WIDTH, device=case.device)
        self.step = Probe(self.optimizer.step)
        for _ in range(5):
            self.step()
        bound = session_of(self.optimizer).own.bound
        bound.run = self.launches = Probe(bound.run)

    def turn(self) -> list[tuple[float, float]]:
        """Nanoseconds of some steps, (whole, launches)."""
        self.step()
        taken: list[tuple[float, float]] = []
        deadline = time.perf_counter() + TURN_SECONDS
        while len(taken) < 3 or time.perf_counter() < deadline:
            self.other(self.inputs).sum().backward()
            if self.case.device == "cuda":
                taken.append(self._on_gpu())
                continue
            self.step()
            pair = (self.step.ns, self.launches.ns)
            taken.append(tuple(float(min(ns) if self.case.threads == 1 else ns[0]) for ns in pair))  # type: ignore[arg-type]
        return taken

    def _on_gpu(self) -> tuple[float, float]:
        """On a GPU that is idle before; the launches end when it is done with them."""
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        self.step()
        before = self.step.ns[0] - self.launches.ns[0]
        torch.cuda.synchronize()
        whole = time.perf_counter_ns() - begin
        return float(whole), float(whole - before)


def plan(name: str, optimizer: Any) -> Plan:
    """Of every parameter by index, the formats of `PLANS` in turn over the matrices that are worth it."""
    chosen, worth = {}, 0
    table = ParameterTable.of(optimizer)
    found = slots_of(read_step(table, own_function(optimizer), frozenset(range(len(table.parameters)))), table)
    for index, parameter in enumerate(table.parameters):
        form: Format = "fp32"
        if parameter.ndim >= 2 and parameter.numel() >= SMALL_NUMEL:
            form = PLANS[name][worth % len(PLANS[name])]
            worth += 1
        slots = {}
        for slot in found[index]:
            wanted = form if isinstance(form, str) else form[slot.key]
            slots[slot.key] = codec_for(wanted, slot, parameter.shape, parameter.dtype)[0].name
        chosen[index] = ParameterPlan(table.names[index], tuple(parameter.shape), slots)
    return Plan(parameters=chosen)


def predict(optimizer: Any, case: Case) -> dict[str, float]:
    """Nanoseconds: of the launches, of the whole step, and of the launches when nothing but a copy is measured."""
    session = session_of(optimizer)
    table, storage = session.table(), session.storage
    pieces = {
        p.parameters[0]: (c.rule, p) for c in session.own.readings[0].classes if c.rule is not None for p in c.members
    }
    needs = [need_of(table, storage, *pieces[i]) for i in range(len(table.parameters))]
    elements = sum(p.numel() for p in table.parameters)
    model = TimeModel(case.device, case.threads, elements)
    found = {}
    with tempfile.TemporaryDirectory() as empty:
        model.remembered = RememberedTimes(Folder(Path(empty)))
        for is_measured in (False, True):
            loads: dict[Cost, list[int]] = defaultdict(lambda: [0, 0])
            for parameter, need in zip(table.parameters, needs, strict=True):
                load = loads[model.cost(need.rule, need.configuration, need.signature, measure=is_measured)]
                load[0] += parameter.numel()
                load[1] += 1
            every = [(cost, numel, tensors) for cost, (numel, tensors) in loads.items()]
            found["launches" if is_measured else "reckoned"] = model.predict(every, host=False)
            found["whole"] = model.predict(every)
    return found


_running: list[Running] = []  # of this process


def start(case: Case) -> dict[str, float]:
    _running.append(Running(case))
    return _running[0].predicted


def turn() -> list[tuple[float, float]]:
    return _running[0].turn()


def measure(cases: list[Case], turns: int) -> list[dict[str, Any]]:
    """Of the plans of one model: predicted milliseconds, and medians and quartiles of measured ones."""
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in cases]
    try:
        predicted = [pool.submit(start, case).result() for pool, case in zip(pools, cases, strict=True)]
        taken: list[list[tuple[float, float]]] = [[] for _ in cases]
        order = list(range(len(cases)))
        for _ in range(turns):
            for index in order:
                taken[index] += pools[index].submit(turn).result()
            order.reverse()
    finally:
        for pool in pools:
            pool.shutdown()
    return [entry(*figures) for figures in zip(cases, predicted, taken, strict=True)]


def entry(case: Case, predicted: dict[str, float], taken: list[tuple[float, float]]) -> dict[str, Any]:
    """`error`: predicted over measured, less 1."""
    shapes = MODELS[case.model]()
    found: dict[str, Any] = {**asdict(case), "parameters": count(shapes), "tensors": len(shapes), "steps": len(taken)}
    for part, column in (("launches", 1), ("whole", 0)):
        measured = Spread.of(step[column] / 1e6 for step in taken)
        ms = predicted[part] / 1e6
        found[part] = {"predicted": ms, "measured": vars(measured), "error": ms / measured.median - 1}
    found["reckoned_error"] = predicted["reckoned"] / 1e6 / found["launches"]["measured"]["median"] - 1
    return found


def show(report: dict[str, Any]) -> None:
    table = Table()
    for heading in ("model", "plan"):
        table.add_column(heading, no_wrap=True)
    headings = ("launches ms", "predicted", "error", "step ms", "predicted", "error", "from bytes: error")
    for heading in ("threads", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for e in report["results"]:
        cells = [e["model"], e["plan"], str(e["threads"])]
        for part in ("launches", "whole"):
            measured = e[part]["measured"]
            cells.append(f"{measured['median']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]")
            cells += [f"{e[part]['predicted']:.3f}", f"{e[part]['error']:+.0%}"]
        table.add_row(*cells, f"{e['reckoned_error']:+.0%}")
    Console(width=170).print(table)
    errors = sorted(abs(e["whole"]["error"]) for e in report["results"])
    print(f"Whole steps: median error {errors[len(errors) // 2]:.1%}, largest {errors[-1]:.1%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["GPT", "10x1M"])
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS), metavar="PLAN")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    host = {"step": HOST_NS_PER_STEP, "tensor": HOST_NS_PER_TENSOR}
    report: dict[str, Any] = {"machine": machine(), "host_ns": host, "results": []}
    results = options.out / ("time_model_cuda.json" if options.device == "cuda" else "time_model.json")
    for model in options.models:
        for threads in options.threads:
            cases = [Case(model, name, threads, options.device) for name in options.plans]
            report["results"] += measure(cases, options.turns)
            results.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"Results: {results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
