"""Are plans by block worth making? Their validation loss against uniform configurations and random plans.

For every budget, workload and seed, training runs as a user would run it, after `prepare(optimizer, memory_budget=...)`:
after the warm-up the plan is solved and state migrates to it. Runs of one seed start from the same weights and see the
same batches as the uniform configurations in learning.json (`make learning`), so losses are compared seed by seed.
Random plans are made in the same training at the same step: each block gets a candidate at random, within the same
budget.

    python benchmarks/decisions.py [--workloads language ...] [--seeds 3] [--report]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from learning import REFERENCE, cpu_name, save
from matplotlib.figure import Figure
from paths import RESULTS, shown_at
from scipy.stats import ttest_1samp
from workloads import WORKLOADS, warmup_then_cosine

import baoc_compile
from baoc_compile.core.budget import MemoryBudget, TimeBudget
from baoc_compile.core.profile import Profile
from baoc_compile.passes.plan.solve_plan import Solution, solve_profile
from baoc_compile.runtime.configurator import configurator_of
from baoc_compile.runtime.session import session_of

BUDGETS = (0.3, 0.5, 0.75, 1.1, 2.2, 4.0)  # bytes of state per parameter
KINDS = ("plan", "random")
WARMUP_STEPS = 100  # runs are short: a fifth to a quarter of them, and well past the learning rate's warm-up


def run(workload_name: str, kind: str, budget: float, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.perf_counter()
    workload = WORKLOADS[workload_name]
    train_data, validation_data = workload.load()
    torch.manual_seed(seed)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(workload.lr))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(workload.steps))
    text = f"{budget} B/param"
    baoc_compile.prepare(optimizer, model=model, memory_budget=text, seed=seed, warmup_steps=WARMUP_STEPS)
    session = session_of(optimizer)
    configurator = configurator_of(optimizer)
    assert configurator is not None
    if kind == "random":
        configurator.solve = partial(solve_at_random, seed)
    most = 0
    for batch in islice(workload.batches(train_data, workload.batch_size, seed), workload.steps):
        optimizer.zero_grad()
        model(*batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        most = max(most, baoc_compile.state_bytes(optimizer))
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "workload": workload_name,
        "kind": kind,
        "budget": budget,
        "seed": seed,
        "validation_loss": workload.evaluate(model, validation_data),
        "bytes_per_parameter": most / parameters,
        "plan": {p.name: dict(p.slots) for p in session.plan().parameters.values()},
        "history": configurator.history,
        "configurator_seconds": dict(configurator.seconds),
        "seconds": time.perf_counter() - started,
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }


def solve_at_random(
    seed: int, profile: Profile, memory_budget: MemoryBudget, time_budget: TimeBudget | None = None
) -> Solution:
    """Every block's candidates in a random order of preference, as far as the budget allows."""
    generator = random.Random(seed)
    candidates = tuple(
        tuple(replace(c, risk=generator.random(), interaction=0.0, excluded="", gate="") for c in several)
        for several in profile.candidates
    )
    return solve_profile(replace(profile, candidates=candidates), memory_budget, time_budget)


def uniform_losses(workload: str) -> dict[str, tuple[float, dict[int, float]]]:
    """Configuration -> bytes per parameter and loss by seed."""
    runs = json.loads((RESULTS / "learning.json").read_text()).values()
    found: dict[str, tuple[float, dict[int, float]]] = {}
    for r in runs:
        if r["workload"] == workload:
            found.setdefault(r["configuration"], (r["bytes_per_parameter"], {}))[1][r["seed"]] = r["validation_loss"]
    return found


class Difference(NamedTuple):
    """Of the mean losses over seeds that both have: its standard error, and the two-sided p of a paired t test."""

    mean: float
    error: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" if math.isnan(self.p) else f"{self.mean:+.4f} ± {self.error:.4f} (p = {self.p:.2g})"


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    gaps = [a[s] - b[s] for s in sorted(a.keys() & b.keys())]
    mean = statistics.fmean(gaps)
    if len(gaps) < 2:
        return Difference(mean, math.nan, math.nan)
    return Difference(mean, statistics.stdev(gaps) / math.sqrt(len(gaps)), float(ttest_1samp(gaps, 0.0).pvalue))


def rows_of(workload: str, runs: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    uniform = uniform_losses(workload)
    rows = []
    for budget in BUDGETS:
        by_kind: dict[str, dict[int, float]] = {kind: {} for kind in KINDS}
        for r in runs.values():
            if r["workload"] == workload and r["budget"] == budget:
                by_kind[r["kind"]][r["seed"]] = r["validation_loss"]
        if not by_kind["plan"]:
            continue
        fitting = {n: losses for n, (size, losses) in uniform.items() if size <= budget}
        best = min(fitting, key=lambda n: statistics.fmean(fitting[n].values()), default=None)
        paired = by_kind["plan"].keys() & uniform[REFERENCE][1].keys()
        rows.append(
            {
                "budget": budget,
                "plan": statistics.fmean(by_kind["plan"][seed] for seed in paired),
                "gap": difference(by_kind["plan"], uniform[REFERENCE][1]),
                "best": best or "none fits",
                "to_best": difference(by_kind["plan"], fitting[best]) if best else None,
                "to_random": difference(by_kind["plan"], by_kind["random"]) if by_kind["random"] else None,
                "seeds": len(paired),
                "random_seeds": len(by_kind["plan"].keys() & by_kind["random"].keys()),
            }
        )
    return rows


def report(runs: Mapping[str, dict[str, Any]], path: Path) -> None:
    some = next(iter(runs.values()))
    parts = [
        "# Plans against uniform configurations",
        "Made by `python benchmarks/decisions.py`, which describes the method. AdamW trains with a plan that is solved online "
        f"after {WARMUP_STEPS} steps; "
        "everything else is as in [learning.md](learning.md), whose uniform configurations serve for comparison. Each plan "
        "is compared with the uniform configuration of no more bytes that is best on the same seeds; this favours the "
        "uniform one. Random plans are drawn in the same trainings at the same step, within the same budget. Differences are "
        "plan minus other, in the workload's loss: mean ± standard error over paired seeds, and p of a paired t test. "
        "Negative means that the plan is better. "
        f"Hardware: {some['cpu']} (CPU), torch {some['torch']}.",
        f"![loss against bytes]({path.stem}.png)",
    ]
    for name in WORKLOADS:
        rows = rows_of(name, runs)
        if not rows:
            continue
        table = [
            "| budget (B/param) | validation loss | to fp32 | best uniform, no more bytes | to that | seeds | to random plans "
            "| seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            table.append(
                f"| {r['budget']:g} | {r['plan']:.4f} | {r['gap']} | {r['best']} | {r['to_best'] or '–'} | {r['seeds']} "
                f"| {r['to_random'] or '–'} | {r['random_seeds']} |"
            )
        parts += [f"## {name}", "\n".join(table)]
    path.write_text("\n\n".join(parts) + "\n")
    plot(runs, path.with_suffix(".png"))
    print("\n\n".join(parts))


def plot(runs: Mapping[str, dict[str, Any]], path: Path) -> None:
    names = [n for n in WORKLOADS if rows_of(n, runs)]
    figure = Figure(figsize=(4.4 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        uniform = uniform_losses(name)
        reference = uniform[REFERENCE][1]
        points = [(size, *difference(losses, reference)[:2]) for n, (size, losses) in uniform.items() if n != REFERENCE]
        axes.errorbar(*zip(*points, strict=True), fmt="o", color="gray", markersize=4, capsize=2, label="uniform")
        for kind, color in (("random", "C1"), ("plan", "C0")):
            found = []
            for budget in BUDGETS:
                several = [r for r in runs.values() if (r["workload"], r["kind"], r["budget"]) == (name, kind, budget)]
                if several:
                    size = statistics.fmean(r["bytes_per_parameter"] for r in several)
                    losses = {r["seed"]: r["validation_loss"] for r in several}
                    found.append((size, *difference(losses, reference)[:2]))
            if found:
                style = "*-" if kind == "plan" else "x"
                axes.errorbar(*zip(*found, strict=True), fmt=style, color=color, capsize=2, label=kind)
        axes.axhline(0, color="gray", linewidth=0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(name)
        axes.set_xlabel("bytes of state per parameter")
        axes.set_ylabel(f"gap to fp32 ({WORKLOADS[name].loss})")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "decisions.json")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the report")
    options = parser.parse_args()
    runs: dict[str, dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else {}
    failed = 0
    if not options.report:
        os.environ["OMP_NUM_THREADS"] = "1"
        order = product(range(options.seeds), options.budgets, options.kinds, options.workloads)
        jobs = [(w, kind, b, s) for s, b, kind, w in order if f"{w}/{kind}/{b}/{s}" not in runs]
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(run, *job): "/".join(map(str, job)) for job in jobs}
            for count, future in enumerate(as_completed(futures), start=1):
                key = futures[future]
                if error := future.exception():
                    failed += 1
                    print(f"[{count}/{len(jobs)}] {key}: {type(error).__name__}: {error}", flush=True)
                    continue
                runs[key] = future.result()
                save(runs, options.results)
                print(
                    f"[{count}/{len(jobs)}] {key}: {runs[key]['validation_loss']:.4f} at "
                    f"{runs[key]['bytes_per_parameter']:.3f} B/param, {runs[key]['seconds']:.0f} s",
                    flush=True,
                )
    report(runs, shown_at(options.results, ".md"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
