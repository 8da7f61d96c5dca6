"""Can the risk be trusted? Predicted against true damage, configuration by configuration, block by block.

Every workload is trained in full precision up to a fork, and the last steps before it are profiled
(`baoc_compile.profile`). For each cell (block, candidate), training then continues with that block alone switched to
that configuration. It sees the same batches as the fork that switches nothing. The learning rate falls to 0, since at
its peak chance makes more of a difference than most configurations. The damage is the mean difference of the two
training losses over the fork, averaged over several sets of batches. A rank correlation (Spearman) says how well a
prediction orders the cells.

Then all blocks are switched at once to the uniform configurations of learning.json. Do damages add up, and what remains
of them at the end of a training?

    python benchmarks/risk.py [--workloads language ...] [--steps 40] [--repeats 2] [--report]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from learning import CONFIGURATIONS, REFERENCE, cpu_name, rows_of
from matplotlib.figure import Figure
from paths import RESULTS, shown_at
from scipy.stats import spearmanr
from workloads import WORKLOADS, Workload, warmup_then_cosine

import baoc_compile
from baoc_compile.core.profile import BlockCandidate, Profile
from baoc_compile.core.storage import StoredParameter, StoredSlot
from baoc_compile.kernels.codecs.catalogue import FORMATS, codec_named, full_precision
from baoc_compile.passes.plan.solve_plan import risk_of
from baoc_compile.passes.risk.proxy_risk import proxy_risk
from baoc_compile.runtime.session import session_of
from baoc_compile.state.plan import SMALL_NUMEL, as_plan

FORK_AT = 0.3  # of the workload's steps: the learning rate is near its peak
SMALLEST_BLOCK = 1000  # elements: what the other blocks do is too little to be seen
PREDICTORS = {
    "predicted": "our prediction (F + N)",
    "risk": "our risk, as the solver minimizes it, of this block alone",
    "proxy": "BAOC-style proxy (our reconstruction)",
    "relative_error": "relative L2 error of the updates",
    "bytes": "bytes saved",
}


class Fork:
    """Training in full precision up to a point, from which it can go on again and again."""

    def __init__(self, workload: Workload):
        self.workload = workload
        self.data, _ = workload.load()
        torch.manual_seed(0)
        self.model = workload.model()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=torch.tensor(workload.lr))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, warmup_then_cosine(workload.steps))
        baoc_compile.prepare(self.optimizer, model=self.model, plan="fp32")

    def train(self, batch: tuple[torch.Tensor, ...]) -> float:
        self.optimizer.zero_grad()
        loss = self.model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def batches(self, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
        return self.workload.batches(self.data, self.workload.batch_size, seed)

    def advance(self) -> Profile:
        """To the fork; what its last steps showed."""
        batches = self.batches(0)
        for batch in islice(batches, int(FORK_AT * self.workload.steps)):
            self.train(batch)
        profile = baoc_compile.profile(self.optimizer, lambda: self.train(next(batches)))
        self.session = session_of(self.optimizer)
        self.saved = copy.deepcopy((self.model.state_dict(), self.schedule.state_dict()))
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.state = [{k: v.clone() for k, v in self.optimizer.state[p].items()} for p in self.parameters]
        return profile

    def run(self, chosen: Mapping[int, BlockCandidate], seed: int, steps: int) -> list[float]:
        """Return the training losses from the fork on; parameters that are not in `chosen` stay in full precision."""
        self.model.load_state_dict(self.saved[0])
        self.schedule.load_state_dict(copy.deepcopy(self.saved[1]))
        self.optimizer.param_groups[0]["lr"].fill_(self.lr)
        stored = {}
        for i, parameter in enumerate(self.parameters):
            self.optimizer.state[parameter] = {k: v.clone() for k, v in self.state[i].items()}
            names = chosen[i].codecs if i in chosen else {}
            full = full_precision(parameter.dtype)
            stored[i] = StoredParameter(
                {
                    key: StoredSlot(codec_named(names[key]) if key in names else full)
                    for key in self.session.storage.of(i).slots
                },
            )
        self.session.store(self.session.storage.with_parameters(stored))
        self.session.own.release()  # the next step converts the state
        losses = []
        for t, batch in enumerate(islice(self.batches(1000 + seed), steps)):
            losses.append(self.train(batch))
            self.optimizer.param_groups[0]["lr"].fill_(self.lr * (1 - (t + 1) / steps))
        return losses


def measure(name: str, steps: int, repeats: int) -> dict[str, Any]:
    """All cells of one workload."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    fork = Fork(WORKLOADS[name])
    profile = fork.advance()
    cells: list[dict[str, Any]] = []
    uniform: list[dict[str, Any]] = []
    for seed in range(repeats):
        reference = fork.run({}, seed, steps)

        def damage(chosen: Mapping[int, BlockCandidate], seed: int = seed, reference: Any = reference) -> float:
            losses = fork.run(chosen, seed, steps)
            return statistics.fmean(a - b for a, b in zip(losses, reference, strict=True))

        choices = list(choices_of(profile))
        for at, (k, candidate) in enumerate(choices):
            if seed == 0:
                cells.append(cell(profile, k, candidate))
            cells[at]["damage"].append(damage(dict.fromkeys(profile.blocks[k].parameters, candidate)))
            if at + 1 == len(choices) or choices[at + 1][0] != k:
                elapsed = time.perf_counter() - started
                print(f"{name}, batches {seed}: {profile.blocks[k].name} ({elapsed:.0f} s)", flush=True)
        for at, (configuration, by_block) in enumerate(uniform_choices(profile).items()):
            if seed == 0:
                uniform.append(together(profile, configuration, by_block))
            every = {i: c for k, c in by_block.items() for i in profile.blocks[k].parameters}
            uniform[at]["damage"].append(damage(every))
    return {
        "cells": cells,
        "uniform": uniform,
        "steps": steps,
        "sampled_elements": profile.sampled_elements,
        "curvature": profile.curvature,
        "window": profile.steps,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - started,
    }


def choices_of(profile: Profile) -> Iterator[tuple[int, BlockCandidate]]:
    """The cells: every candidate but full precision, of every block that is not too small."""
    for k, block in enumerate(profile.blocks):
        if sum(math.prod(profile.shapes[i]) for i in block.parameters) >= SMALLEST_BLOCK:
            yield from ((k, c) for c in profile.candidates[k][1:])


def uniform_choices(profile: Profile) -> dict[str, dict[int, BlockCandidate]]:
    """Configuration of learning.json -> what every block takes, of those that are candidates; small tensors stay as they
    are, as in those runs."""
    found: dict[str, dict[int, BlockCandidate]] = {}
    for name, formats in CONFIGURATIONS.items():
        default = as_plan(formats).default
        for k, block in enumerate(profile.blocks):
            if math.prod(profile.shapes[block.parameters[0]]) < SMALL_NUMEL or name == REFERENCE:
                continue
            for candidate in profile.candidates[k]:
                wanted = [(codec, default.get(key, default.get("*", ""))) for key, codec in candidate.codecs.items()]
                if all(codec in FORMATS.get(choice, (choice,)) for codec, choice in wanted):
                    found.setdefault(name, {})[k] = candidate
    return found


def together(profile: Profile, configuration: str, by_block: Mapping[int, BlockCandidate]) -> dict[str, Any]:
    return {
        "configuration": configuration,
        "blocks": {profile.blocks[k].name: candidate.label for k, candidate in by_block.items()},
        "predicted": sum(c.predicted for c in by_block.values()),
        "risk": risk_of(profile, list(by_block.values())),
        "damage": [],
    }


def cell(profile: Profile, k: int, candidate: BlockCandidate) -> dict[str, Any]:
    codecs = {key: codec_named(name) for key, name in candidate.codecs.items()}
    full = max(c.size_bytes for c in profile.candidates[k])
    return {
        "block": profile.blocks[k].name,
        "configuration": candidate.label,
        "predicted": candidate.predicted,
        "error": candidate.error,
        "risk": risk_of(profile, [candidate]),
        "proxy": proxy_risk(profile.statistics[k], codecs),
        "relative_error": candidate.relative_error,
        "bytes": full - candidate.size_bytes,
        "excluded": candidate.excluded,
        "damage": [],
    }


def correlations(cells: list[dict[str, Any]]) -> dict[str, float]:
    damage = [statistics.fmean(c["damage"]) for c in cells]
    return {p: float(spearmanr([c[p] for c in cells], damage).statistic) for p in PREDICTORS}


def repeatability(cells: list[dict[str, Any]]) -> float:
    """Spearman of the damage on the first set of batches with that on the others."""
    if len(cells[0]["damage"]) < 2:
        return math.nan  # one set of batches
    first = [c["damage"][0] for c in cells]
    return float(spearmanr(first, [statistics.fmean(c["damage"][1:]) for c in cells]).statistic)


def report(results: dict[str, dict[str, Any]], path: Path) -> None:
    groups = {"all cells": lambda c: True, "momentum kept": lambda c: "dropped" not in c["configuration"]}
    lines = [
        "# Predicted and true damage",
        "Made by `python benchmarks/risk.py`, which describes the method. A cell is one block switched to one "
        "configuration. The numbers are Spearman rank correlations between a prediction and the damage: the mean difference "
        "of the training loss after the switch, while the learning rate falls to 0. *Repeatable* is the correlation of the "
        "damage on one set of batches with that on another. No prediction can be expected to exceed it by much.",
    ]
    for title, keep in groups.items():
        lines += [
            f"## {title.capitalize()}",
            "| workload | cells | repeatable | " + " | ".join(PREDICTORS.values()) + " |",
        ]
        lines.append("|---|" + "---|" * (len(PREDICTORS) + 2))
        table = [lines.pop(), lines.pop()]
        rows = []
        for name, result in results.items():
            cells = [c for c in result["cells"] if keep(c)]
            found = correlations(cells)
            values = " | ".join(f"{found[p]:.2f}" for p in PREDICTORS)
            rows.append(f"| {name} | {len(cells)} | {repeatability(cells):.2f} | {values} |")
        lines.append("\n".join([table[1], table[0], *rows]))
    lines += all_at_once(results)
    some = next(iter(results.values()))
    sets = ", ".join(f"{len(r['cells'][0]['damage'])} ({name})" for name, r in results.items())
    lines.append(
        f"Forks run for {some['steps']} steps, from {FORK_AT:.0%} of the schedule on. Sets of batches: {sets}. "
        f"Profiles cover {some['window']} steps. Hardware: {some['cpu']} (CPU), torch {some['torch']}.\n\n"
        f"![predicted against true damage]({path.stem}.png)"
    )
    path.write_text("\n\n".join(lines) + "\n")
    plot(results, path.with_suffix(".png"))
    print("\n\n".join(lines))


def all_at_once(results: Mapping[str, dict[str, Any]]) -> list[str]:
    """What uniform configurations do: sums over blocks, forks of all blocks at once, whole trainings."""
    trainings = json.loads((RESULTS / "learning.json").read_text())
    lines = [
        "## All blocks at once",
        "Uniform configurations; tensors under 4,096 elements stay fp32. *Sum of forks* adds the damages of single blocks. "
        "*Whole training* is the gap to fp32 at the end, from [learning.md](learning.md), where update scales are 1 unless "
        "the name says otherwise. Improvements by single blocks do not add up, and a fork does not show damage that lasts. "
        "The risk that the solver minimizes is therefore meant to order whole trainings.",
    ]
    for name, result in results.items():
        gaps = {row.configuration: row.gap for row in rows_of(name, trainings)}
        single = {(c["block"], c["configuration"]): statistics.fmean(c["damage"]) for c in result["cells"]}
        table = [
            f"| {name} | predicted, sum | sum of forks | fork of all blocks | risk, sum | whole training |",
            "|---|---|---|---|---|---|",
        ]
        for u in result["uniform"]:
            forks = sum(single.get(cell, 0.0) for cell in u["blocks"].items())
            figures = [u["predicted"], forks, statistics.fmean(u["damage"]), u["risk"], gaps[u["configuration"]]]
            table.append(f"| {u['configuration']} | " + " | ".join(f"{f:+.4f}" for f in figures) + " |")
        whole = [gaps[u["configuration"]] for u in result["uniform"]]
        orders = {
            p: float(spearmanr([u[p] for u in result["uniform"]], whole).statistic) for p in ("predicted", "risk")
        }
        lines += [
            "\n".join(table),
            f"Spearman with whole trainings: risk {orders['risk']:.2f}, predicted {orders['predicted']:.2f}.",
        ]
    return lines


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(4.2 * len(results), 4), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for kept, color in ((True, "C0"), (False, "C3")):
            cells = [c for c in result["cells"] if ("dropped" not in c["configuration"]) == kept]
            x, y = [c["predicted"] for c in cells], [statistics.fmean(c["damage"]) for c in cells]
            axes.plot(x, y, "o", markersize=3, color=color, label="momentum kept" if kept else "momentum dropped")
        axes.set_xscale("symlog", linthresh=1e-6)
        axes.set_yscale("symlog", linthresh=1e-6)
        axes.tick_params(axis="x", labelrotation=60, labelsize=8)
        axes.set_title(f"{name}: Spearman {correlations(result['cells'])['predicted']:.2f}")
        axes.set_xlabel("predicted damage (nats per window)")
        axes.set_ylabel("true damage")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "risk.json")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write the report")
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if not options.report:
        os.environ["OMP_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
            jobs = {n: pool.submit(measure, n, options.steps, options.repeats) for n in options.workloads}
            for name, job in jobs.items():
                results[name] = job.result()
                options.results.write_text(json.dumps(results, indent=1) + "\n")
    report({n: results[n] for n in WORKLOADS if n in results}, shown_at(options.results, ".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
