"""What the runs say: every contender beside the baseline, seed by seed, with an interval for the mean gap."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t

from evidence.contenders import CONTENDERS
from evidence.contenders.contender import BASELINE
from evidence.contenders.ours import REFERENCE
from evidence.records import Records
from evidence.schedule import FIRST_SEED
from evidence.workloads import WORKLOADS

__all__ = ["Comparison", "Interval", "Row", "compare"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of paired gaps, and half the width of its confidence interval: NaN for a single one."""

    mean: float
    half: float

    @staticmethod
    def of(gaps: Sequence[float]) -> Interval:
        count = len(gaps)
        if count < 2:
            return Interval(statistics.fmean(gaps), math.nan)
        error = statistics.stdev(gaps) / math.sqrt(count)
        return Interval(statistics.fmean(gaps), float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error)

    def verdict(self) -> str:
        """Return what the interval says of the contender: it is "better" or "worse" if it leaves out zero."""
        if math.isnan(self.half):
            return "one seed"
        if abs(self.mean) <= self.half:
            return "no difference shown"
        return "better" if self.mean < 0 else "worse"


@dataclass(frozen=True)
class Row:
    """One contender on one workload, with its best learning rate.

    losses: by seed; NaN where training diverged.
    other_losses: with its other learning rates, on the first seed.
    is_at_end: whether the best of several learning rates is the smallest or the largest of them.
    gap: to the baseline over the seeds that both ran; None for the baseline, and where there is none or one diverged.
    """

    contender: str
    lr: float
    bytes_per_parameter: float
    losses: Mapping[int, float]
    other_losses: Mapping[float, float]
    is_at_end: bool
    gap: Interval | None

    @property
    def kind(self) -> str:
        return CONTENDERS[self.contender].kind


@dataclass(frozen=True)
class Comparison:
    """A workload's rows, the baseline first and then from most bytes to least.

    loss: the baseline's mean.
    failed: contender -> the error with which it failed.
    runs: records of the rows' runs, by contender and seed.
    """

    workload: str
    rows: Sequence[Row]
    loss: float
    failed: Mapping[str, str]
    runs: Mapping[tuple[str, int], Mapping[str, Any]]


def compare(workload: str, records: Records) -> Comparison | None:
    """Compare the whole trainings that have run on a workload; None if the baseline has not."""
    settings = WORKLOADS[workload]
    by_contender: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    failed: dict[str, str] = {}
    for job, record in records.items():
        if (job.workload, job.steps, job.batch_size) != (workload, settings.steps, settings.batch_size):
            continue
        if "error" in record:
            failed[job.contender] = record["error"]
        elif job.contender in CONTENDERS:
            by_contender[job.contender].append(record)
    best = {name: _best_lr(runs) for name, runs in by_contender.items()}
    runs = {(name, run["seed"]): run for name, some in by_contender.items() for run in some if run["lr"] == best[name]}
    exact = {seed: run["validation_loss"] for (name, seed), run in runs.items() if name == REFERENCE.name}
    if not exact:
        return None
    rows = [_row(name, best[name], some, exact) for name, some in by_contender.items()]
    rows.sort(key=lambda row: (row.kind != BASELINE, -row.bytes_per_parameter))
    return Comparison(workload, rows, statistics.fmean(exact.values()), failed, runs)


def _best_lr(runs: Iterable[Mapping[str, Any]]) -> float:
    """Return the learning rate of the least loss on the first seed among those that ran."""
    first = [run for run in runs if run["seed"] == FIRST_SEED] or list(runs)
    return min(first, key=lambda run: (_or_infinite(run["validation_loss"]), run["lr"]))["lr"]


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _row(name: str, lr: float, runs: Sequence[Mapping[str, Any]], exact: Mapping[int, float]) -> Row:
    losses = {run["seed"]: run["validation_loss"] for run in sorted(runs, key=lambda r: r["seed"]) if run["lr"] == lr}
    others = {run["lr"]: run["validation_loss"] for run in sorted(runs, key=lambda r: r["lr"]) if run["lr"] != lr}
    gaps = [losses[seed] - exact[seed] for seed in losses.keys() & exact.keys()]
    is_comparable = name != REFERENCE.name and gaps and all(map(math.isfinite, gaps))
    return Row(
        contender=name,
        lr=lr,
        bytes_per_parameter=next(run["bytes_per_parameter"] for run in runs if run["lr"] == lr),
        losses=losses,
        other_losses=others,
        is_at_end=len(others) > 1 and (lr < min(others) or lr > max(others)),
        gap=Interval.of(gaps) if is_comparable else None,
    )
