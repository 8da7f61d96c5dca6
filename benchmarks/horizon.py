"""How many gradients should an error meet? The cost of sharing and dropping state, by that number.

Training runs in full precision and is sampled at some steps (`baoc_compile.profile`). For every horizon, `assess_risk`
estimates the change of the loss by all blocks together, G. The page shows G relative to the blocks' interactions, I,
and relative to its standard error. Whole trainings are in dropping.md and learning.md.

    python benchmarks/horizon.py [--workloads language ...] [--seeds 2] [--at 100 150 200]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from unittest.mock import patch

import torch
from learning import cpu_name
from paths import DOCS
from workloads import WORKLOADS, warmup_then_cosine

import baoc_compile
from baoc_compile.core.configuration import Configuration
from baoc_compile.passes.plan import make_profile
from baoc_compile.passes.risk import assess_risk
from baoc_compile.passes.risk.assess_risk import Assessment, assess, curvature
from baoc_compile.passes.risk.measure_risk import ShadowRuns, without_rounding

HORIZONS = (1, 2, 4, 8, 24)
SAMPLED = 24  # steps
WAYS = ({"exp_avg": "dropped"}, {"exp_avg_sq": "factored"})


def assessments(
    configurations: Sequence[Sequence[Configuration]], runs: Sequence[ShadowRuns], way: Mapping[str, str]
) -> Iterator[Assessment]:
    """Of every block that has a candidate which does `way` and otherwise rounds at most."""
    factor = curvature([reference for run in runs for reference in run.references.values()])
    for run in runs:
        for k in run.blocks:
            for codecs in (without_rounding(c.codecs) for c in configurations[k]):
                if codecs and {key: c.name for key, c in codecs.items() if c.mechanism != "rounding"} == way:
                    updates = run.updates((k,), codecs)[k]
                    yield assess(run.references[k], updates, factor, updates)
                    break


def cells(name: str, seed: int, at: Sequence[int]) -> Iterator[str]:
    """Rows of the table."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    torch.manual_seed(seed)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(workload.lr))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(workload.steps))
    baoc_compile.prepare(optimizer, model=model, plan="fp32", seed=seed)
    batches = workload.batches(workload.load()[0], workload.batch_size, seed)

    def train() -> None:
        optimizer.zero_grad()
        model(*next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()

    done = 0
    for until in at:
        for _ in range(until - done - SAMPLED - 1):
            train()
        with patch.object(make_profile, "measure_risk", return_value=({}, 0.0)) as seen:
            baoc_compile.profile(optimizer, train, sample_steps=SAMPLED)
        blocks, configurations, *rest = seen.call_args.args
        runs = ShadowRuns.of(blocks, *rest)
        for way in WAYS:
            row = []
            for horizon in HORIZONS:
                with patch.object(assess_risk, "HORIZON", horizon):
                    several = list(assessments(configurations, runs, way))
                by_step = torch.stack([a.lasting for a in several]).sum(0)
                total, error = float(by_step.sum()), float(by_step.std()) * math.sqrt(len(by_step))
                row.append(f"{total / math.fsum(a.risk.interaction for a in several):+.2f} ({total / error:+.1f})")
            text = ", ".join(f"{key} {codec}" for key, codec in way.items())
            yield f"| {text} | {seed} | {until} | {' | '.join(row)} |"
        done = until


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--at", nargs="+", type=int, default=[100, 150, 200], help="steps")
    options = parser.parse_args()
    header = ["way", "seed", "at step", *(f"{h} ahead" for h in HORIZONS)]
    parts = [
        "# How many gradients an error meets",
        "Made by `python benchmarks/horizon.py`, which describes the method. AdamW runs in full precision and is sampled for "
        f"{SAMPLED} steps. A cell is the estimated cost of changing all blocks, relative to the blocks' interactions, and in "
        "brackets the same in standard errors. Columns differ in the number of later gradients that each error meets. "
        "A negative cost is a gain. In whole trainings ([dropping.md](dropping.md), [learning.md](learning.md)), dropping "
        "momentum in single blocks gains on the language model and the vision transformer, but not on the diffusion model. "
        "Factored second moments cost on all three. "
        f"Hardware: {cpu_name()} (CPU), torch {torch.__version__}.",
    ]
    for name in options.workloads:
        rows = [row for seed in range(options.seeds) for row in cells(name, seed, options.at)]
        table = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *sorted(rows)]
        parts += [f"## {name}", "\n".join(table)]
        print(parts[-2], parts[-1], sep="\n\n", flush=True)
    (DOCS / "horizon.md").write_text("\n\n".join(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
