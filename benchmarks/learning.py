"""What does compressed optimizer state cost in learning? Validation loss against bytes per parameter.

Every workload is trained with AdamW once for every (configuration, seed). Runs of one seed start from the same weights
and see the same batches, so a configuration is compared with fp32 seed by seed. Finished runs are kept in a JSON file
and not repeated. A page with tables and a plot is written from it.

    python benchmarks/learning.py [--workloads language digits_vit] [--seeds 3] [--processes 2] [--only 8bit]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from paths import RESULTS, shown_at
from scipy.stats import ttest_rel
from workloads import WORKLOADS, warmup_then_cosine

import baoc_compile

REFERENCE = "fp32"  # torch's own AdamW, without baoc

#: Name -> `plan` of `baoc_compile.prepare`: a format for all state, slot -> format or codec, or a plan's JSON.
CONFIGURATIONS: dict[str, str | dict[str, str]] = {
    REFERENCE: "fp32",
    "bf16": "bf16",
    "8bit": "8bit",
    "8bit-learned": "8bit-learned",
    "8bit m, 4bit v": {"exp_avg": "8bit", "exp_avg_sq": "4bit"},
    "4bit m, 8bit v": {"exp_avg": "4bit", "exp_avg_sq": "8bit"},
    "8bit m, factored v": {"exp_avg": "8bit", "exp_avg_sq": "factored"},
    "8bit m, row v": {"exp_avg": "8bit", "exp_avg_sq": "row"},
    "4bit-learned": "4bit-learned",
    "4bit": "4bit",
    "4bit m, factored v": {"exp_avg": "4bit", "exp_avg_sq": "factored"},
    "no m, factored v": {"exp_avg": "dropped", "exp_avg_sq": "factored"},
}


@dataclass(frozen=True)
class Job:
    workload: str
    configuration: str
    seed: int
    plan: str | dict[str, str]
    steps: int
    batch_size: int
    lr: float

    @property
    def key(self) -> str:
        return f"{self.workload}/{self.configuration}/{self.seed}"

    def is_in(self, runs: Mapping[str, dict[str, Any]]) -> bool:
        """Whether it ran, with the same settings."""
        return asdict(self).items() <= runs.get(self.key, {}).items()


def run(job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.perf_counter()
    workload = WORKLOADS[job.workload]
    train_data, validation_data = workload.load()
    torch.manual_seed(job.seed)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(job.lr))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(job.steps))
    if job.configuration != REFERENCE:
        baoc_compile.prepare(optimizer, model=model, plan=job.plan, seed=job.seed)

    train_losses = []
    for batch in islice(workload.batches(train_data, job.batch_size, job.seed), job.steps):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        train_losses.append(loss.item())

    parameters = sum(parameter.numel() for parameter in model.parameters())
    state_bytes = baoc_compile.state_bytes(optimizer)
    return {
        **asdict(job),
        "parameters": parameters,
        "state_bytes": state_bytes,
        "bytes_per_parameter": state_bytes / parameters,
        "validation_loss": workload.evaluate(model, validation_data),
        "train_loss": statistics.fmean(train_losses[-max(1, job.steps // 10) :]),  # of the last tenth of the steps
        "seconds": time.perf_counter() - started,
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def run_all(jobs: list[Job], runs: dict[str, dict[str, Any]], processes: int, results: Path) -> int:
    """Runs `jobs` into `runs` and the file `results`, one by one as they finish. Returns how many failed."""
    failed = 0
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes started now
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for count, future in enumerate(as_completed(futures), start=1):
            key = futures[future].key
            if error := future.exception():
                failed += 1
                print(f"[{count}/{len(jobs)}] {key}: {type(error).__name__}: {error}", flush=True)
                continue
            runs[key] = future.result()
            save(runs, results)
            print(
                f"[{count}/{len(jobs)}] {key}: validation loss {runs[key]['validation_loss']:.4f}, "
                f"{runs[key]['bytes_per_parameter']:.3f} bytes per parameter, {runs[key]['seconds']:.0f} s",
                flush=True,
            )
    return failed


def save(runs: dict[str, dict[str, Any]], results: Path) -> None:
    unfinished = results.with_suffix(".part")
    unfinished.write_text(json.dumps(runs, indent=1) + "\n")
    unfinished.replace(results)


@dataclass(frozen=True)
class Row:
    """One configuration on one workload; the gap is to the reference, over the seeds that both ran."""

    configuration: str
    bytes_per_parameter: float
    loss: float
    gap: float
    error: float  # standard error of the gap; NaN for a single seed
    p: float  # two-sided, of the paired t test; NaN for a single seed
    seeds: int
    diverged: int  # runs whose loss is not a number


def rows_of(workload: str, runs: Mapping[str, dict[str, Any]]) -> list[Row]:
    """From most bytes to least; configurations that share no seed with the reference are left out."""
    losses: dict[str, dict[int, float]] = {}
    sizes: dict[str, float] = {}
    for entry in runs.values():
        if entry["workload"] == workload:
            losses.setdefault(entry["configuration"], {})[entry["seed"]] = entry["validation_loss"]
            sizes[entry["configuration"]] = entry["bytes_per_parameter"]
    reference = losses.get(REFERENCE, {})
    rows = []
    for name, by_seed in losses.items():
        seeds = sorted(by_seed.keys() & reference.keys())
        if not seeds:
            continue
        own, exact = [by_seed[seed] for seed in seeds], [reference[seed] for seed in seeds]
        gaps = [a - b for a, b in zip(own, exact, strict=True)]
        error = p = math.nan
        if len(seeds) > 1 and name != REFERENCE:
            if all(map(math.isfinite, gaps)):
                error = statistics.stdev(gaps) / math.sqrt(len(gaps))
            p = float(ttest_rel(own, exact).pvalue)
        diverged = sum(not math.isfinite(loss) for loss in own)
        rows.append(
            Row(name, sizes[name], statistics.fmean(own), statistics.fmean(gaps), error, p, len(seeds), diverged)
        )
    return sorted(rows, key=lambda row: (row.configuration != REFERENCE, -row.bytes_per_parameter))


def table(rows: list[Row]) -> str:
    lines = [
        "| configuration | bytes per parameter | validation loss | gap to fp32 | p | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        gap, p = f"{row.gap:+.4f}", "–"
        if row.configuration == REFERENCE:
            gap = "–"
        elif row.diverged:
            gap = f"diverged in {row.diverged} of {row.seeds} runs"
        elif row.seeds > 1:
            digits = (
                1 - math.floor(math.log10(row.error)) if row.error > 0 else 4
            )  # two that say something of the error
            gap, p = f"{row.gap:+.{digits}f} ± {row.error:.{digits}f}", f"{row.p:.2g}"
        lines.append(
            f"| {row.configuration} | {row.bytes_per_parameter:.3f} | {row.loss:.4f} | {gap} | {p} | {row.seeds} |"
        )
    return "\n".join(lines)


def plot(tables: Mapping[str, list[Row]], path: Path) -> None:
    """One panel per workload; a configuration has the same colour and marker in all of them."""
    figure = Figure(figsize=(4 * len(tables) + 2, 4), layout="constrained")
    names = list(dict.fromkeys(row.configuration for rows in tables.values() for row in rows))
    handles = {}
    for axes, (workload, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        axes.axhline(0, color="gray", linewidth=0.5)
        for row in rows:
            index = names.index(row.configuration)
            style = f"C{index % 10}" + "osD^vP*X"[index // 10 % 8]
            error = 0 if math.isnan(row.error) else row.error
            handles[row.configuration] = axes.errorbar(row.bytes_per_parameter, row.gap, error, fmt=style, capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_xlim(
            min(row.bytes_per_parameter for row in rows) / 1.2, 1.2 * max(row.bytes_per_parameter for row in rows)
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(workload)
        axes.set_xlabel("bytes of optimizer state per parameter")
        axes.set_ylabel(f"gap to fp32 ({WORKLOADS[workload].loss})")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    figure.savefig(path, dpi=150)


#: Of the report's file, what stands above this line is written by hand and kept.
GENERATED = "<!-- Below: written by benchmarks/learning.py. -->"


def report(runs: Mapping[str, dict[str, Any]], results: Path) -> None:
    tables = {name: rows for name in WORKLOADS if (rows := rows_of(name, runs))}
    if not tables:
        print(f"No {REFERENCE} run in {results}: no report.")
        return
    image, page = shown_at(results, ".png"), shown_at(results, ".md")
    plot(tables, image)
    by_hand = page.read_text().partition(GENERATED)[0] if page.exists() else "# Learning with compressed state\n\n"
    cpus, releases = (" and ".join(sorted({entry[field] for entry in runs.values()})) for field in ("cpu", "torch"))
    sections = [
        f"{by_hand}{GENERATED}",
        "Made by `python benchmarks/learning.py`. Every run trains with AdamW in one thread, from the seed's weights on "
        "the seed's batches. The learning rate warms up over a tenth of the steps, then follows a cosine; gradients are "
        "clipped to norm 1. fp32 is torch's own step, without baoc. The gap is the validation loss "
        "minus that of fp32 with the same seed, mean ± standard error over seeds. p is that of a two-sided paired t test. "
        f"Hardware: {cpus} (CPU), torch {releases}.",
        f"![gap to fp32 against bytes of state per parameter]({image.name})",
    ]
    for name, rows in tables.items():
        some = next(entry for entry in runs.values() if entry["workload"] == name)
        settings = f"{some['steps']} steps at batch size {some['batch_size']}, peak learning rate {some['lr']:g}"
        sections += [
            f"## {name}",
            f"{some['parameters']:,} parameters, {settings}; the loss is {WORKLOADS[name].loss}.",
            table(rows),
        ]
    page.write_text("\n\n".join(sections) + "\n")
    print(f"Report: {page}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, help="instead of the workload's own number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "learning.json")
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the report")
    options = parser.parse_args()

    options.results.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(options.results.read_text()) if options.results.exists() else {}
    failed = 0
    if not options.report:
        jobs = []
        for seed, workload, configuration in product(range(options.seeds), options.workloads, options.only):
            settings = WORKLOADS[workload]
            steps = options.steps or settings.steps
            plan = CONFIGURATIONS[configuration]
            jobs.append(Job(workload, configuration, seed, plan, steps, settings.batch_size, settings.lr))
        wanted = [job for job in jobs if options.again or not job.is_in(runs)]
        failed = run_all(wanted, runs, options.processes, options.results)
    report(runs, options.results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
