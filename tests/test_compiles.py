"""How often torch traces the step, beside a backend that does nothing; decisions and state survive every retrace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from optimizers import Lion, codec_names
from torch.optim import SGD, AdamW, lr_scheduler

import baoc_compile

STEPS = 8
SHAPE = (64, 64)  # just large enough to be compressed


@dataclass
class Scenario:
    """`make` builds the optimizer; `scheduler` is stepped after every step; `before` runs before step t.

    `graphs`: what torch traces when the state is there from the start. `joined`: how often state appears later that
    `prepare` has not seen, and takes one retrace to be compressed.
    """

    graphs: int
    make: Callable[..., Any]
    scheduler: Callable[[Any], Any] | None = None
    before: Callable[[int, Any], None] = lambda t, optimizer: None
    missing: Callable[[int, int], bool] = lambda t, index: False
    joined: int = 0


@dataclass
class Run:
    """`states[t]`: the codec of every state entry after step t."""

    graphs: int
    losses: list[float] = field(default_factory=list)
    states: list[list[dict[str, str]]] = field(default_factory=list)


def adamw(**options) -> Callable[..., Any]:
    return lambda parameters: AdamW(parameters, **{"lr": 0.02, **options})


def adamw_tensor_lr(parameters: Any) -> AdamW:
    return AdamW(parameters, lr=torch.tensor(0.02))


def join(t: int, optimizer: Any) -> None:
    """A parameter joins before step 3."""
    if t == 3:
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.full(SHAPE, 1.0))], "lr": 0.03})


def reload(t: int, optimizer: Any) -> None:
    """The optimizer loads its own checkpoint before step 3."""
    if t == 3:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def scheduled(make: Callable[..., Any], graphs: int, scheduler: Callable[[Any], Any]) -> Scenario:
    return Scenario(graphs, make, scheduler)


SCENARIOS = {
    "constant": Scenario(1, adamw(foreach=False)),
    "constant-foreach": Scenario(1, adamw(foreach=True)),
    "sgd": Scenario(1, lambda parameters: SGD(parameters, lr=0.02, momentum=0.9)),
    "lion": Scenario(1, Lion),
    "cosine": scheduled(adamw_tensor_lr, 1, lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    "plateau": scheduled(adamw_tensor_lr, 1, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0)),
    "lambda": scheduled(adamw_tensor_lr, 1, lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t)),
    "step": scheduled(adamw_tensor_lr, 1, lambda o: lr_scheduler.StepLR(o, 2, 0.7)),
    "warm-up": scheduled(adamw_tensor_lr, 1, lambda o: lr_scheduler.LinearLR(o, total_iters=4)),
    "one-cycle": scheduled(adamw_tensor_lr, 2, lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=20)),
    "float-lr": scheduled(adamw(), 2, lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    "float-lr-foreach": scheduled(adamw(foreach=True), 2, lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    "missing-gradients": Scenario(2, adamw(), missing=lambda t, index: bool(t % 2 and index)),
    "add_param_group": Scenario(2, adamw(), before=join, joined=1),
    "add_param_group-foreach": Scenario(2, adamw(foreach=True), before=join, joined=1),
    "load_state_dict": Scenario(2, adamw(), before=reload),
}


def run(scenario: Scenario, backend: Any, *, prepared: bool = False) -> Run:
    """Minimizes (p - 2)^2, with fresh gradients at every step."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    optimizer = scenario.make([torch.nn.Parameter(torch.full(SHAPE, start)) for start in (0.0, 1.0)])
    scheduler = scenario.scheduler(optimizer) if scenario.scheduler else None
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    step = torch.compile(optimizer.step, backend=backend, options={"plan": "8bit"} if backend == "baoc" else None)
    result = Run(0)
    for t in range(STEPS):
        scenario.before(t, optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        result.losses.append(max(((p.detach() - 2) ** 2).mean().item() for p in parameters))
        for index, p in enumerate(parameters):
            p.grad = None if scenario.missing(t, index) else 2 * (p.detach() - 2)
        step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()
        result.states.append([codec_names(optimizer.state[p]) for p in parameters])
    result.graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return result


@pytest.mark.parametrize("name", SCENARIOS)
def test_compiles_are_counted_and_state_survives_them(name):
    """Prepared: as often as the table says, and never more often than a backend that does nothing. Otherwise once
    more, to adopt the state that the first step made. The loss falls at every step."""
    scenario = SCENARIOS[name]
    nothing = run(scenario, lambda gm, inputs: gm.forward)
    prepared = run(scenario, "baoc", prepared=True)
    adopting = run(scenario, "baoc")
    assert scenario.graphs <= nothing.graphs
    assert prepared.graphs == scenario.graphs + scenario.joined
    assert adopting.graphs <= nothing.graphs + scenario.joined + 1
    for found in (prepared, adopting):
        assert all(after < before for before, after in zip(found.losses, found.losses[1:], strict=False))
    first = prepared.states[0][0]
    assert set(first.values()) - {"counter"} <= {"softsign8", "sqrt8"}
    assert "softsign8" in first.values()
    for states in (*prepared.states, adopting.states[-1]):
        assert all(state in ({}, first) for state in states)
    assert all(state == first for state in (*prepared.states[-1], *adopting.states[-1]))
    assert len(prepared.states[-1]) == (3 if "group" in name else 2)
