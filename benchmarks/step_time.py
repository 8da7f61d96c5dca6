"""Step time of AdamW on a CPU: baoc's configurations against torch's fused, foreach and compiled steps.

Paired (A B A B ...): every round times each contender once, ratios are taken within a round, medians are reported. A
round whose process time is not about threads x wall time was disturbed by other work and is dropped.

    python benchmarks/step_time.py [--parameters 10000000] [--rounds 15] [--threads 1 2] [--out step_time.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import baoc_compile

BASELINE = "torch fused"


def contenders(numel: int) -> dict[str, Callable[[], object]]:
    """Name -> a step over its own parameter of `numel` elements."""
    steps: dict[str, Callable[[], object]] = {}

    def optimizer(**options: Any) -> torch.optim.Optimizer:
        parameter = torch.nn.Parameter(torch.randn(numel))
        parameter.grad = torch.randn(numel)
        return torch.optim.AdamW([parameter], **options)

    steps[BASELINE] = optimizer(fused=True).step
    steps["torch foreach"] = optimizer(foreach=True).step
    steps["torch inductor"] = torch.compile(optimizer().step)
    for plan in ("fp32", "bf16", "8bit"):
        ours = optimizer()
        baoc_compile.prepare(ours, plan=plan)
        steps[f"baoc {plan}"] = torch.compile(ours.step, backend="baoc")
    return steps


def measure(steps: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of every step in every undisturbed round, and the number of rounds dropped."""
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    dropped = 0
    for _ in range(rounds):
        taken, disturbed = {}, False
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            taken[name] = time.perf_counter() - wall
            disturbed |= (time.process_time() - cpu) < 0.6 * taken[name]
        if disturbed:
            dropped += 1
            continue
        for name, value in taken.items():
            seconds[name].append(value)
    return seconds, dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    report = {
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "parameters": options.parameters,
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch._dynamo.reset()
        seconds, dropped = measure(contenders(options.parameters), options.rounds)
        print(f"\n{threads} threads, {options.parameters} parameters, {dropped} disturbed rounds dropped")
        for name, values in seconds.items():
            if not values:
                print(f"{name:<16} every round was disturbed")
                continue
            ratio = statistics.median(v / base for v, base in zip(values, seconds[BASELINE], strict=True))
            print(f"{name:<16} {1e3 * statistics.median(values):8.2f} ms   {ratio:6.2f} x {BASELINE}")
            report.setdefault("results", []).append(
                {
                    "threads": threads,
                    "name": name,
                    "ms": 1e3 * statistics.median(values),
                    "ratio": ratio,
                    "rounds": len(values),
                }
            )
    if options.out:
        options.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
