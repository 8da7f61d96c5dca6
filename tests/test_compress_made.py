"""State that a step makes that can't be read is compressed as it goes: it is never in full precision as a whole."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from test_opened_state import Branching
from torch import Tensor, nn

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.passes.migrate.compress_made import CompressMade

COUNT, SHAPE = 8, (64, 96)
SLOTS_BYTES = 2 * 4 * 64 * 96  # of one parameter


def plain_bytes(optimizer: Any) -> int:
    every = (v for entries in optimizer.state.values() for v in dict.values(entries))
    return sum(v.nbytes for v in every if type(v) is Tensor)


class Counting(Branching):
    """Counts the bytes of its plain state after each parameter."""

    def step(self, closure: Any = None) -> Any:
        groups, self.peak = self.param_groups, 0
        try:
            for p in groups[0]["params"]:
                self.param_groups = [{**groups[0], "params": [p]}]
                super().step()
                self.peak = max(self.peak, plain_bytes(self))
        finally:
            self.param_groups = groups


class Late(torch.optim.Optimizer):
    """Makes its state in the first step, and changes parameters from the second on: the first has to run as written."""

    peak = 0

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                    state["m"].add_(p.grad)
                    continue
                state["m"].lerp_(p.grad, 0.1)
                p.sub_(state["m"], alpha=group["lr"])


def steps(make: Any, count: int = 4, **options: Any) -> tuple[Any, list[int]]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(SHAPE, generator=generator)) for _ in range(COUNT)]
    optimizer, peaks = make(parameters), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options:
            baoc_compile.prepare(optimizer, **options)
        for _ in range(count):
            for p in parameters:
                p.grad = torch.randn(SHAPE, generator=generator)
            optimizer.step()
            peaks.append(optimizer.peak)
    return optimizer, peaks


@pytest.mark.parametrize("options", [{"memory_budget": "30%"}, {"plan": "8bit"}])
def test_no_step_has_more_than_two_parameters_in_full_precision(options):
    optimizer, peaks = steps(Counting, **options)
    assert optimizer._baoc_session.own.refused
    assert max(peaks) <= 2 * SLOTS_BYTES and peaks[0] > 0
    theirs, _ = steps(Counting)
    for p, q in zip(optimizer.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert {k: v.codec.name for k, v in optimizer.state[p].items()} == {"m": "e2m5", "v": "e3m5"}
        assert type(optimizer.state[p]) is dict
        assert (p - q).norm() <= 0.01 * q.norm()
    assert optimizer.state.default_factory is dict


def test_without_compression_all_state_would_be():
    """What the tests above count can be more."""
    assert max(steps(Counting)[1]) == COUNT * SLOTS_BYTES


def test_a_first_step_that_runs_as_written_by_a_known_storage(monkeypatch):
    """Its later steps have rules, by which the storage is decided before the first."""
    seen, compress = [], CompressMade.__call__

    def counted(self: CompressMade, *args: Any) -> Any:
        seen.append(plain_bytes(self.table.optimizer))
        return compress(self, *args)

    monkeypatch.setattr(CompressMade, "__call__", counted)
    optimizer, _ = steps(Late, count=1, plan="8bit")
    entries = [optimizer.state[p]["m"] for p in optimizer.param_groups[0]["params"]]
    assert len(seen) == COUNT and max(seen) <= SLOTS_BYTES, "one slot of two parameters"
    assert all(isinstance(entry, StateTensor) for entry in entries)
    generator = torch.Generator().manual_seed(1)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.randn(SHAPE, generator=generator)
    optimizer.step()
    own = optimizer._baoc_session.own
    assert not own.refused and own.bound is not None, "it is read from the second step on"
    assert all(optimizer.state[p]["m"] is e for p, e in zip(optimizer.param_groups[0]["params"], entries, strict=True))


def test_what_the_step_holds_stays_as_it_is():
    class Holding(Counting):
        def step(self, closure: Any = None) -> Any:
            super().step()
            self.held = self.state[self.param_groups[0]["params"][3]]["m"]

    optimizer, _ = steps(Holding, memory_budget="60%", count=1)
    entries = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
    assert entries[3]["m"] is optimizer.held
    optimizer.held.fill_(7.0)
    assert bool((entries[3]["m"] == 7.0).all())


def test_what_begins_as_something_else_is_exact_for_its_first_step():
    """A copy of the gradient cancels with it."""

    class Differences(Branching):
        largest = 0.0

        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                if "last" not in self.state[p]:
                    self.state[p]["last"] = p.grad.clone()
            for p in self.param_groups[0]["params"]:
                difference = float((p.grad - self.state[p]["last"]).abs().max())  # this can't be read
                type(self).largest = max(self.largest, difference)
                self.state[p]["last"].copy_(p.grad)

        peak = 0

    optimizer, _ = steps(Differences, memory_budget="30%", count=1)
    assert Differences.largest == 0.0
    assert all(isinstance(optimizer.state[p]["last"], StateTensor) for p in optimizer.param_groups[0]["params"])
