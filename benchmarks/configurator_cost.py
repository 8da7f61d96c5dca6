"""What does the configurator cost while it works, and do time budgets bind?

Overhead: the language model of the examples trains as a user would train it. The time of sampling, solving and
migrating is compared with the time of the warm-up, both in processor time of one thread. The time that baoc needs to
read the step and to compile its programs is left out on both sides.

Time budgets: plans are solved from one profile, for one memory budget and ever tighter time budgets. The predicted step
time is compared with the median of measured ones; the plans take turns.

    python benchmarks/configurator_cost.py [--steps 60] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from paired import machine
from paths import RESULTS
from workloads import WORKLOADS

import baoc_compile
from baoc_compile.core.budget import MemoryBudget, TimeBudget
from baoc_compile.passes.plan.solve_plan import solve_profile
from baoc_compile.runtime.configurator import configurator_of
from baoc_compile.runtime.session import session_of
from baoc_compile.state.plan import Plan

TIME_BUDGETS = ("10 s", "500%", "300%", "200%", "150%", "130%")
MEMORY_BUDGET = "40%"


class Training:
    def __init__(self, **options: Any):
        workload = WORKLOADS["language"]
        torch.manual_seed(0)
        self.model = workload.model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=torch.tensor(workload.lr))
        baoc_compile.prepare(self.optimizer, model=self.model, **options)
        self.batches = workload.batches(workload.load()[0], workload.batch_size, 0)

    def train(self) -> tuple[float, float]:
        """One step: processor seconds of all of it, and wall seconds of the optimizer's part."""
        begun = time.process_time()
        batch = next(self.batches)
        self.optimizer.zero_grad()
        self.model(*batch).backward()
        started = time.perf_counter()
        self.optimizer.step()
        return time.process_time() - begun, time.perf_counter() - started


def overhead(warmup_steps: int) -> dict[str, Any]:
    training = Training(memory_budget="15%", warmup_steps=warmup_steps)
    configurator = configurator_of(training.optimizer)
    assert configurator is not None
    configurator.clock = time.process_time
    seconds = [training.train()[0] for _ in range(warmup_steps)]
    own = dict(configurator.seconds)
    usual = statistics.median(seconds)
    after = [training.train()[1] for _ in range(40)][10:]
    plan = session_of(training.optimizer).plan().to_json()
    same = Training(plan=plan)
    for _ in range(warmup_steps // 4):
        same.train()
    without = [same.train()[1] for _ in range(30)]
    return {
        "warmup_steps": warmup_steps,
        "warmup_seconds": usual * warmup_steps,
        "seconds": own,
        "share": sum(own.values()) / (usual * warmup_steps),
        "step_ms_after": 1e3 * statistics.median(after),
        "step_ms_of_the_same_plan_without": 1e3 * statistics.median(without),
        "sampled_elements": configurator.profile.sampled_elements if configurator.profile else 0,
    }


def time_budgets(steps: int, rounds: int) -> list[dict[str, Any]]:
    looked_at = Training(plan="fp32")
    for _ in range(30):
        looked_at.train()
    profile = baoc_compile.profile(looked_at.optimizer, looked_at.train, measure_time=True)
    found = []
    for text in TIME_BUDGETS:
        solution = solve_profile(profile, MemoryBudget.parse(MEMORY_BUDGET), TimeBudget.parse(text))
        training = Training(plan=solution.plan(Plan()).to_json())
        for _ in range(5):
            training.train()
        found.append((text, solution, training))
    seconds: list[list[float]] = [[] for _ in found]
    for _ in range(rounds):
        for measured, (_, _, training) in zip(seconds, found, strict=True):
            measured += [training.train()[1] for _ in range(steps)]
    return [
        {
            "time_budget": text,
            "budget_ms": (solution.budget_ns or 0.0) / 1e6,
            "predicted_ms": solution.time_ns / 1e6,
            "measured_ms": 1e3 * statistics.median(measured),
            "risk": solution.allocation.risk,
            "bytes": solution.allocation.size_bytes,
            "certificate": solution.allocation.certificate,
        }
        for measured, (text, solution, _) in zip(seconds, found, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of each plan in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", nargs="*", type=int, default=[400], help="none: time budgets only")
    parser.add_argument("--out", type=Path, default=RESULTS / "configurator_cost.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "machine": machine("cpu"),
        "overhead": [overhead(steps) for steps in options.warmup],
        "time_budgets": time_budgets(options.steps, options.rounds),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for row in results["overhead"]:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    for row in results["time_budgets"]:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
