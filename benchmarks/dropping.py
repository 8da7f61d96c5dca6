"""Whole trainings without momentum in one block, in all blocks but one, and in all.

Everything else is in full precision, so that what momentum does is seen by itself. Blocks are those that baoc finds;
their updates get a gain of 0.5, about what is fitted on samples. Compared with fp32 on the same seed (learning.json).

Then single blocks lose their momentum at step 100, when decisions.py plans: torch's own AdamW, with beta1 = 0 and half the
learning rate from there on.

    python benchmarks/dropping.py [--workloads language ...] [--seeds 1] [--report]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from learning import DOCS, REFERENCE, WORKLOADS, Job, cpu_name, run_all, warmup_then_cosine

import baoc_compile
from baoc_compile.block import Block
from baoc_compile.plan import ParameterPlan, Plan

GAIN = 0.5
SMALLEST_BLOCK = 4000  # elements
LATE = 100  # step
WITHOUT = {"exp_avg": "dropped", "exp_avg_sq": "fp32"}


def jobs_of(workload_name: str, seeds: int) -> list[Job]:
    workload = WORKLOADS[workload_name]
    torch.manual_seed(0)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(workload.lr))
    baoc_compile.prepare(optimizer, model=model, plan="fp32")
    step = torch.compile(optimizer.step, backend="baoc")
    batches = workload.batches(workload.load()[0], workload.batch_size, 0)

    def train() -> None:
        optimizer.zero_grad()
        model(*next(batches)).backward()
        step()

    train()
    profile = baoc_compile.profile(optimizer, train, sample_steps=3)
    sizes = [sum(math.prod(profile.shapes[i]) for i in b.parameters) for b in profile.blocks]
    blocks = [b for b, size in zip(profile.blocks, sizes, strict=True) if size >= SMALLEST_BLOCK]

    def plan(several: list[Block]) -> str:
        entries = {
            i: ParameterPlan(profile.names[i], profile.shapes[i], WITHOUT, GAIN) for b in several for i in b.parameters
        }
        return Plan(parameters=entries).to_json()

    plans = {f"only {b.name}": plan([b]) for b in blocks}
    plans |= {f"all but {b.name}": plan([o for o in blocks if o is not b]) for b in blocks if len(blocks) > 2}
    plans["all"] = plan(blocks)
    settings = workload.steps, workload.batch_size, workload.lr
    return [Job(workload_name, name, seed, text, *settings) for seed in range(seeds) for name, text in plans.items()]


@dataclass(frozen=True)
class LateJob(Job):
    from_step: int = LATE

    @property
    def key(self) -> str:
        return f"{super().key}/from step {self.from_step}"


def run_late(job: LateJob) -> dict[str, Any]:
    torch.set_num_threads(1)
    workload = WORKLOADS[job.workload]
    train_data, validation_data = workload.load()
    torch.manual_seed(job.seed)
    model = workload.model()
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=torch.tensor(job.lr))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(job.steps))
    losses = []
    for t, batch in enumerate(islice(workload.batches(train_data, job.batch_size, job.seed), job.steps)):
        if t == job.from_step:
            for i in Plan.from_json(str(job.plan)).parameters:
                group = optimizer.param_groups[i]
                group["betas"] = (0.0, group["betas"][1])
                group["weight_decay"] /= GAIN  # decay has no gain
                group["lr"].mul_(GAIN)
                scheduler.base_lrs[i] *= GAIN
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return {
        **asdict(job),
        "validation_loss": workload.evaluate(model, validation_data),
        "train_loss": statistics.fmean(losses[-job.steps // 10 :]),
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }


def report(runs: Mapping[str, dict[str, Any]], path: Path) -> None:
    exact = json.loads((DOCS / "learning.json").read_text())
    some = next(iter(runs.values()))
    parts = [
        "# Momentum, block by block",
        "Made by `python benchmarks/dropping.py`, which says how: AdamW without momentum (gain 0.5) in some blocks, full "
        "precision everywhere else, whole trainings as in [learning.md](learning.md), from the first step or from step "
        f"{LATE} on. Differences to fp32 on the same seeds: "
        "negative means that the training ended better *without*. "
        f"Seeds: {len({r['seed'] for r in runs.values()})}. Hardware: {some['cpu']} (CPU), torch {some['torch']}.",
    ]
    for workload in WORKLOADS:
        found: dict[str, dict[str, list[float]]] = {}
        for r in runs.values():
            if r["workload"] == workload:
                reference = exact[f"{workload}/{REFERENCE}/{r['seed']}"]
                row = found.setdefault(r["configuration"], {})
                for key in ("validation_loss", "train_loss"):
                    row.setdefault(f"{key} {r.get('from_step', 0)}", []).append(r[key] - reference[key])
        if found:
            table = [
                f"| without momentum | validation loss | training loss, last tenth | validation loss, from step {LATE} on |",
                "|---|---|---|---|",
            ]
            for name, row in found.items():
                columns = ("validation_loss 0", "train_loss 0", f"validation_loss {LATE}")
                figures = (f"{statistics.fmean(row[c]):+.4f}" if c in row else "–" for c in columns)
                table.append(f"| {name} | {' | '.join(figures)} |")
            parts += [f"## {workload}", "\n".join(table)]
    path.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=DOCS / "dropping.json")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the report")
    options = parser.parse_args()
    runs: dict[str, dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else {}
    failed = 0
    if not options.report:
        jobs = [job for name in options.workloads for job in jobs_of(name, options.seeds)]
        failed = run_all([job for job in jobs if not job.is_in(runs)], runs, options.processes, options.results)
        late = [LateJob(**asdict(job)) for job in jobs if job.configuration.startswith("only")]
        failed += run_all(
            [job for job in late if not job.is_in(runs)], runs, options.processes, options.results, run_late
        )
    report(runs, options.results.with_suffix(".md"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
