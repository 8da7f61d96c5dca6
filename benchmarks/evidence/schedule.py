"""Which runs are wanted, in which order, given those that are there.

First the baseline's learning rates on seed 0, three of them, and more while the best is at an end. Then the stages of
contenders, each seed by seed: on seed 0 a contender runs with its learning rates, multiples of the baseline's best, and on
the other seeds with the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from evidence.contenders import STAGES
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

    def jobs(self, records: Records) -> Iterator[Job]:
        """Yield all that can be known to be wanted by now, whether it is in `records` or not."""
        best: dict[str, float] = {}
        for workload in self.workloads:
            yield from (self.job(workload, REFERENCE.name, lr, FIRST_SEED) for lr in self.grid(workload, records))
            if (lr := self.best_baseline(workload, records)) is not None:
                best[workload] = lr
        for stage, seed in product(STAGES, range(self.seeds)):
            for contender, workload in product(stage, best):
                if contender.name not in self.contenders or WORKLOADS[workload].rule.name not in contender.make:
                    continue
                lrs = [best[workload] * factor for factor in contender.factors]
                if seed != FIRST_SEED:
                    found = self._best(workload, contender.name, lrs, records)
                    lrs = [] if found is None else [found]
                yield from (self.job(workload, contender.name, lr, seed) for lr in lrs)

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
