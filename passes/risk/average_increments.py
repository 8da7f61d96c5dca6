"""Increments: exact row and column means of what a step adds to a slot that may be shared, without running the step.

With s' = decay s + f(g, p), a shared slot needs only the means of f (see `kernels/codecs/sharing.py`). `reduce_state`
extracts f from the rule. Torch evaluates it, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from baoc_compile.core.rule import RuleOutput, UpdateRule
from baoc_compile.passes.rules.find_recurrence import NoRecurrence
from baoc_compile.passes.rules.reduce_state import reduce_state

#: Elements for which f is evaluated at a time.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Means:
    """Float32 means of the increments of one slot, and the slot's decay.

    rows: `[R]`, the mean of every row.
    columns: `[C]`, the mean of every column.
    mean: a scalar, the mean of all elements.
    decay: the factor on the slot's old value.
    """

    rows: Tensor
    columns: Tensor
    mean: Tensor
    decay: float


class IncrementMeans:
    """The means of f for the slot `key` of a rule."""

    def __init__(self, rule: UpdateRule, key: str):
        self.rule, self.key = rule, key

    @cached_property
    def averages(self) -> UpdateRule | str:
        """The rule that computes f and the decay, or why there is none."""
        try:
            averages = reduce_state(self.rule, (), (self.key,)).averages[0]
        except NoRecurrence as why:
            return f"{self.key!r} {why}"
        if averages.inputs_of("slot") or averages.inputs_of("lines"):
            return f"what a step adds to {self.key!r} depends on other state"
        return averages

    @property
    def reason(self) -> str:
        """Why f cannot be computed ahead of the step; empty if it can."""
        return self.averages if isinstance(self.averages, str) else ""

    @torch.no_grad()
    def of(self, param: Tensor, grad: Tensor, counters: Mapping[str, float], numbers: Mapping[str, float]) -> Means:
        """Return the means of f for one gradient.

        The first dimension of `param` makes the rows and all others the columns, as in the codecs. `counters` and
        `numbers` hold the rule's counters and scalars by input name.
        """
        assert isinstance(self.averages, UpdateRule)
        rows = param.shape[0] if param.ndim else 1
        p, g = (t.detach().reshape(rows, -1) for t in (param, grad))
        known = {i.name: counters[i.name] for i in self.averages.inputs_of("counter")}
        known |= {i.name: numbers[i.name] for i in self.averages.inputs_of("scalar")}
        scalars = {k: torch.tensor(v, dtype=torch.float64, device=p.device) for k, v in known.items()}
        of_rows, decay = [], 1.0
        of_columns = torch.zeros(p.shape[1], dtype=torch.float64, device=p.device)
        height = max(1, CHUNK_ELEMENTS // max(p.shape[1], 1))
        for start in range(0, rows, height):
            chunk = {"param": p[start : start + height].float(), "grad": g[start : start + height].float()}
            values = [scalars[i.name] if i.name in scalars else chunk[i.kind] for i in self.averages.inputs]
            returned = dict(zip(self.averages.outputs, self.averages.gm(*values), strict=True))
            increment = returned[RuleOutput("increment", key=self.key)].expand_as(chunk["param"])
            of_rows.append(increment.mean(1, dtype=torch.float64))
            of_columns += increment.sum(0, dtype=torch.float64)
            decay = float(returned[RuleOutput("decay", key=self.key)])
        by_row = torch.cat(of_rows)
        return Means(by_row.float(), (of_columns / rows).float(), by_row.mean().float(), decay)
