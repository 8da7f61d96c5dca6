"""What does momentum contribute? Whole trainings without it in one block, in all blocks but one, and in all.

Everything else is in full precision, which isolates the effect of momentum. The blocks are those that baoc finds.
Losses are compared with fp32 on the same seed (learning.json).

    python benchmarks/dropping.py [--workloads language ...] [--seeds 1] [--report]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from learning import REFERENCE, Job, run_all
from paths import RESULTS, shown_at
from workloads import WORKLOADS

import baoc_compile
from baoc_compile.core.block import Block
from baoc_compile.state.plan import ParameterPlan, Plan

SMALLEST_BLOCK = 4000  # elements
WITHOUT = {"exp_avg": "dropped", "exp_avg_sq": "fp32"}


def jobs_of(workload_name: str, seeds: int) -> list[Job]:
    workload = WORKLOADS[workload_name]
    torch.manual_seed(0)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(workload.lr))
    baoc_compile.prepare(optimizer, model=model, plan="fp32")
    batches = workload.batches(workload.load()[0], workload.batch_size, 0)

    def train() -> None:
        optimizer.zero_grad()
        model(*next(batches)).backward()
        optimizer.step()

    train()
    profile = baoc_compile.profile(optimizer, train, sample_steps=3)
    sizes = [sum(math.prod(profile.shapes[i]) for i in b.parameters) for b in profile.blocks]
    blocks = [b for b, size in zip(profile.blocks, sizes, strict=True) if size >= SMALLEST_BLOCK]

    def plan(several: list[Block]) -> str:
        entries = {
            i: ParameterPlan(profile.names[i], profile.shapes[i], WITHOUT) for b in several for i in b.parameters
        }
        return Plan(parameters=entries).to_json()

    plans = {f"only {b.name}": plan([b]) for b in blocks}
    plans |= {f"all but {b.name}": plan([o for o in blocks if o is not b]) for b in blocks if len(blocks) > 2}
    plans["all"] = plan(blocks)
    settings = workload.steps, workload.batch_size, workload.lr
    return [Job(workload_name, name, seed, text, *settings) for seed in range(seeds) for name, text in plans.items()]


def report(runs: Mapping[str, dict[str, Any]], path: Path) -> None:
    exact = json.loads((RESULTS / "learning.json").read_text())
    some = next(iter(runs.values()))
    parts = [
        "# Momentum, block by block",
        "Made by `python benchmarks/dropping.py`, which describes the method. AdamW runs without momentum in some "
        "blocks and in full precision everywhere else, in whole trainings as in [learning.md](learning.md). The "
        "numbers are differences to fp32 on the same seeds. Negative means that the training ended better *without* momentum. "
        f"Seeds: {len({r['seed'] for r in runs.values()})}. Hardware: {some['cpu']} (CPU), torch {some['torch']}.",
    ]
    for workload in WORKLOADS:
        found: dict[str, dict[str, list[float]]] = {}
        for r in runs.values():
            if r["workload"] == workload:
                reference = exact[f"{workload}/{REFERENCE}/{r['seed']}"]
                for key in ("validation_loss", "train_loss"):
                    row = found.setdefault(r["configuration"], {})
                    row.setdefault(key, []).append(r[key] - reference[key])
        if found:
            table = ["| without momentum | validation loss | training loss, last tenth |", "|---|---|---|"]
            for name, row in found.items():
                figures = (statistics.fmean(row[key]) for key in ("validation_loss", "train_loss"))
                table.append(f"| {name} | " + " | ".join(f"{f:+.4f}" for f in figures) + " |")
            parts += [f"## {workload}", "\n".join(table)]
    path.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "dropping.json")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the report")
    options = parser.parse_args()
    runs: dict[str, dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else {}
    failed = 0
    if not options.report:
        jobs = [job for name in options.workloads for job in jobs_of(name, options.seeds)]
        failed = run_all([job for job in jobs if not job.is_in(runs)], runs, options.processes, options.results)
    report(runs, shown_at(options.results, ".md"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
