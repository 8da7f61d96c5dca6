"""Which runs are wanted, in which order, given those that are there.

First the baseline's learning rates on seed 0, three of them, and more while the best is at an end. With the best one, the
baseline and ours run on all seeds. Rivals run with their own learning rates on seed 0, and with the best of them on the
other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evidence.contenders import CONTENDERS
from evidence.contenders.contender import OURS, RIVAL
from evidence.contenders.ours import REFERENCE
from evidence.records import Records
from evidence.train import Job
from evidence.workloads import WORKLOADS

FIRST_SEED = 0
WIDEST = 12  # learning rates at most in the baseline's grid


@dataclass(frozen=True)
class Order:
    """What is asked for: workloads and contenders by name, how many seeds, and steps if not the workload's own."""

    workloads: Sequence[str]
    contenders: Sequence[str]
    seeds: int
    steps: int | None = None

    def job(self, workload: str, contender: str, lr: float, seed: int) -> Job:
        settings = WORKLOADS[workload]
        return Job(workload, contender, lr, seed, self.steps or settings.steps, settings.batch_size)

    def of_kind(self, kind: str, workload: str) -> list[str]:
        """Return the contenders of a kind that are asked for and can run on the workload, in the order of the catalogue."""
        rule = WORKLOADS[workload].rule.name
        return [n for n, c in CONTENDERS.items() if n in self.contenders and c.kind == kind and rule in c.make]

    def jobs(self, records: Records) -> Iterator[Job]:
        """Yield all that can be known to be wanted by now, whether it is in `records` or not."""
        best: dict[str, float] = {}
        for workload in self.workloads:
            yield from (self.job(workload, REFERENCE.name, lr, FIRST_SEED) for lr in self.grid(workload, records))
            if (lr := self.best_baseline(workload, records)) is not None:
                best[workload] = lr
        for seed in range(self.seeds):
            yield from (self.job(w, REFERENCE.name, lr, seed) for w, lr in best.items())
            for name in CONTENDERS:
                yield from (self.job(w, name, lr, seed) for w, lr in best.items() if name in self.of_kind(OURS, w))
        for name in CONTENDERS:
            found = {
                w: [lr * f for f in CONTENDERS[name].factors]
                for w, lr in best.items()
                if name in self.of_kind(RIVAL, w)
            }
            yield from (self.job(w, name, lr, FIRST_SEED) for w, grid in found.items() for lr in grid)
            for seed in range(1, self.seeds):
                for workload, grid in found.items():
                    if (lr := self._best(workload, name, grid, records)) is not None:
                        yield self.job(workload, name, lr, seed)

    def grid(self, workload: str, records: Records) -> list[float]:
        """Return the baseline's learning rates, each twice the one before, with one more while the best is at an end."""
        middle = WORKLOADS[workload].lr
        grid = [middle / 2, middle, middle * 2]
        while len(grid) < WIDEST:
            best = self._best(workload, REFERENCE.name, grid, records)
            if best == grid[0]:
                grid.insert(0, grid[0] / 2)
            elif best == grid[-1]:
                grid.append(grid[-1] * 2)
            else:
                break
        return grid

    def best_baseline(self, workload: str, records: Records) -> float | None:
        """Return the baseline's best learning rate, None while its grid is not complete."""
        return self._best(workload, REFERENCE.name, self.grid(workload, records), records)

    def best_lr(self, workload: str, contender: str, records: Records) -> float | None:
        """Return the best of a contender's learning rates, None while its grid is not complete."""
        best = self.best_baseline(workload, records)
        factors = CONTENDERS[contender].factors
        return None if best is None else self._best(workload, contender, [best * f for f in factors], records)

    def _best(self, workload: str, contender: str, grid: Sequence[float], records: Records) -> float | None:
        """Return the learning rate of the least validation loss on the first seed, None unless all have run."""
        losses = []
        for lr in grid:
            record = records.get(self.job(workload, contender, lr, FIRST_SEED))
            if record is None:
                return None
            loss = record.get("validation_loss", math.inf)
            losses.append(loss if math.isfinite(loss) else math.inf)
        return grid[losses.index(min(losses))]
