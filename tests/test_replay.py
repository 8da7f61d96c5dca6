"""Pieces that are replayed: the values of the step, whenever its state is encoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.passes.rewrite.run_calls import last_uses, run_calls
from baoc_compile.runtime.session import session_of


class Turned(torch.optim.Optimizer):
    """Momentum times a matrix. The momentum is written once it is named no more, if `how` says so."""

    def __init__(self, parameters: Any, how: str = ""):
        super().__init__(parameters, {"lr": 0.01})
        self.how = how

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                m = state["m"]
                seen = {"view": m.view(-1), "transposed": m.t(), "part": m[3:]}.get(self.how, m)
                m.mul_(0.9)
                if self.how == "new":
                    state["m"] = m + p.grad
                    m = state["m"]
                else:
                    grad = {"view": p.grad.view(-1), "transposed": p.grad.t(), "part": p.grad[3:]}.get(self.how, p.grad)
                    seen.add_(grad)
                    seen.sub_(0.1 * seen.norm() / (1.0 + seen.norm()))
                p.sub_(group["lr"] * (p @ (p.t() @ p.grad) + (seen if self.how else m).mean()))


@pytest.mark.parametrize("how", ["", "view", "transposed", "part", "new"])
def test_writes_through_views_after_the_last_use_count(how):
    results = []
    for prepared in (False, True):
        torch.manual_seed(0)
        parameters = [nn.Parameter(0.1 * torch.randn(64, 96)) for _ in range(2)]
        optimizer = Turned(parameters, how)
        if prepared:
            baoc_compile.prepare(optimizer, plan="8bit")
        for _ in range(4):
            for p in parameters:
                p.grad = torch.randn(64, 96)
            optimizer.step()
        results.append(torch.cat([torch.cat([optimizer.state[p]["m"] + 0.0, p.detach()]) for p in parameters]))
    assert session_of(optimizer).own.bound.bound.replays, "this is about replays"
    assert all(isinstance(optimizer.state[p]["m"], StateTensor) for p in parameters)
    assert (results[1] - results[0]).norm() <= 0.05 * results[0].norm()


def test_every_value_is_used_last_once():
    parameters = [nn.Parameter(torch.randn(8, 8))]
    parameters[0].grad = torch.randn(8, 8)
    optimizer = Turned(parameters)
    baoc_compile.prepare(optimizer, plan="fp32")
    optimizer.step()
    (replay,) = session_of(optimizer).own.bound.bound.replays
    calls = replay.piece.calls
    done = [value for values in last_uses(calls, ()) for value in values]
    results = {value for call in calls for value in call.results}
    assert len(done) == len(set(done)) and results <= set(done)
    kept = calls[0].results[0]
    assert kept not in {value for values in last_uses(calls, {kept}) for value in values}
    assert run_calls([], {}) is None
