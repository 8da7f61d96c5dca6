"""How often a step is read, and that torch compiles no graph of it; decisions and state survive every reading."""

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
from baoc_compile.passes.rules import read_step as reader
from baoc_compile.runtime import step_reader
from baoc_compile.runtime.session import session_of

STEPS = 8
SHAPE = (64, 64)  # just large enough to be compressed


@dataclass
class Scenario:
    """`make` builds the optimizer; `scheduler` is stepped after every step; `before` runs before step t.

    `readings`: how often the step is read, `prepare` included.
    """

    readings: int
    make: Callable[..., Any]
    scheduler: Callable[[Any], Any] | None = None
    before: Callable[[int, Any], None] = lambda t, optimizer: None
    missing: Callable[[int, int], bool] = lambda t, index: False


@dataclass
class Run:
    """`states[t]`: the codec of every state entry after step t. `graphs`: what torch compiled."""

    readings: int = 0
    graphs: int = 0
    losses: list[float] = field(default_factory=list)
    states: list[list[dict[str, str]]] = field(default_factory=list)


def adamw(**options) -> Callable[..., Any]:
    return lambda parameters: AdamW(parameters, **{"lr": 0.02, **options})


def sgd(**options) -> Callable[..., Any]:
    return lambda parameters: SGD(parameters, lr=0.02, momentum=0.9, **options)


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


def decay_from_the_third_step(t: int, optimizer: Any) -> None:
    """`if weight_decay != 0` is another step from then on."""
    optimizer.param_groups[0]["weight_decay"] = 0.1 if t >= 3 else 0.0


def back_and_forth(t: int, optimizer: Any) -> None:
    """Both are known after two steps."""
    optimizer.param_groups[0]["weight_decay"] = 0.1 if t % 2 else 0.0


SCENARIOS = {
    "constant": Scenario(1, adamw(foreach=False)),
    "constant-foreach": Scenario(1, adamw(foreach=True)),
    "fused": Scenario(1, adamw(fused=True)),
    "sgd": Scenario(1, sgd()),
    "lion": Scenario(1, Lion),
    "cosine": Scenario(1, adamw_tensor_lr, lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    "plateau": Scenario(1, adamw_tensor_lr, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0)),
    "lambda": Scenario(1, adamw_tensor_lr, lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t)),
    "step": Scenario(1, adamw_tensor_lr, lambda o: lr_scheduler.StepLR(o, 2, 0.7)),
    "warm-up": Scenario(1, adamw_tensor_lr, lambda o: lr_scheduler.LinearLR(o, total_iters=4)),
    "one-cycle": Scenario(1, adamw_tensor_lr, lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=20)),
    "float-lr": Scenario(1, adamw(), lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    "float-lr-foreach": Scenario(1, adamw(foreach=True), lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    "another-branch": Scenario(2, sgd(weight_decay=0.0), before=decay_from_the_third_step),
    "two-branches": Scenario(2, sgd(weight_decay=0.0), before=back_and_forth),
    "missing-gradients": Scenario(2, adamw(), missing=lambda t, index: bool(t % 2 and index)),  # are they independent?
    "add_param_group": Scenario(2, adamw(), before=join),
    "add_param_group-foreach": Scenario(2, adamw(foreach=True), before=join),
    "load_state_dict": Scenario(1, adamw(), before=reload),
}


def run(scenario: Scenario, monkeypatch: Any, *, prepared: bool, is_compiled: bool) -> Run:
    """Minimizes (p - 2)^2, with fresh gradients at every step."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    result = Run()

    def counted(*args: Any, **kwargs: Any) -> Any:
        result.readings += 1
        return reader.read_step(*args, **kwargs)

    monkeypatch.setattr(step_reader, "read_step", counted)
    optimizer = scenario.make([torch.nn.Parameter(torch.full(SHAPE, start)) for start in (0.0, 1.0)])
    scheduler = scenario.scheduler(optimizer) if scenario.scheduler else None
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    step = optimizer.step
    if is_compiled:
        step = torch.compile(step, backend="baoc", options={"plan": "8bit"})
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
    own = session_of(optimizer).own
    assert not own.refused and own.count == STEPS
    assert len(own.readings) <= result.readings
    return result


@pytest.mark.parametrize("name", SCENARIOS)
def test_readings_are_counted_and_state_survives_them(name, monkeypatch):
    """As often as the table says, whether the step is prepared, compiled or both; with the same losses to the bit, which
    fall at every step. All state is compressed from the first step on."""
    scenario = SCENARIOS[name]
    runs = [
        run(scenario, monkeypatch, prepared=prepared, is_compiled=is_compiled)
        for prepared, is_compiled in ((True, False), (True, True), (False, True))
    ]
    for found in runs:
        assert found.graphs == 0
        assert found.readings == scenario.readings
        assert all(after < before for before, after in zip(found.losses, found.losses[1:], strict=False))
        assert found.losses == runs[0].losses
        first = found.states[0][0]
        assert set(first.values()) - {"counter"} <= {"e2m5", "e3m5"} and "e2m5" in first.values()
        for states in found.states:
            assert all(state in ({}, first) for state in states)
        assert found.states[-1] == [first] * (3 if "group" in name else 2)
