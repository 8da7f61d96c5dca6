"""Schedules that begin at a rate of 0, or change other options: full precision follows eager, whatever numbers do."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

import baoc_compile

CLASSES = {
    "SGD": {"momentum": 0.9},
    "Adam": {},
    "AdamW": {"weight_decay": 0.1},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adagrad": {},
    "RMSprop": {},
    "Adadelta": {},
    "ASGD": {},
    "Rprop": {},
}
SCHEDULES = {
    "warm-up from 0": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(t, 5) / 5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "steps to large rates": lambda o: lr_scheduler.LambdaLR(o, lambda t: 40.0 if t > 6 else 1.0),
}
SHAPES = [(3,), (), (4, 1), (80, 64)]


def train(name: str, schedule: str, *, prepared: bool) -> list[torch.Tensor]:
    """Two groups with different options, and a scheduler made before `prepare`."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:]}]
    if name not in ("Rprop",):
        groups[0]["weight_decay"] = 0.0
    optimizer = getattr(torch.optim, name)(groups, lr=0.01, **CLASSES[name])
    scheduler = SCHEDULES[schedule](optimizer)
    if prepared:
        baoc_compile.prepare(optimizer, plan="fp32")
    for _ in range(12):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        scheduler.step()
    if prepared:
        own = baoc_compile.runtime.session.known_session(optimizer).own
        assert not own.refused and own.count == 12, own.refused
    return [p.detach() for p in parameters]


@pytest.mark.filterwarnings("error::baoc_compile.BaocWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", CLASSES)
def test_a_schedule_trains_as_eager_does(name, schedule):
    for ours, theirs in zip(train(name, schedule, prepared=True), train(name, schedule, prepared=False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
