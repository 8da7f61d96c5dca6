"""DistributedDataParallel in two processes: each steps all parameters, on gradients that are averages over the processes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from dtensor_plans import gathered
from dtensor_training import STEPS, adamw, assert_same, is_read, model, sgd
from torch import nn
from torch.distributed import get_rank
from torch.nn.parallel import DistributedDataParallel

import baoc_compile
from baoc_compile.runtime.session import session_of

PLANS = ("fp32", "8bit", "4bit", "bf16", {"exp_avg": "4bit", "exp_avg_sq": "factored"})


def on_2_replicas_step_alike() -> None:
    """Both processes have the bits of one process that is given the averaged gradients."""
    for make, plan in [(adamw, plan) for plan in PLANS] + [(sgd, "8bit")]:
        net, replica = model(), DistributedDataParallel(model())
        alone, divided = make(net.parameters()), make(replica.parameters())
        for optimizer in (alone, divided):
            baoc_compile.prepare(optimizer, plan=plan)
        train_both(replica, divided, net, alone)
        assert_same(alone, divided)


def on_2_replicas_come_to_one_plan() -> None:
    """The first process measures and solves for both, given the model that says who they are."""
    replica = DistributedDataParallel(model())
    optimizer = adamw(replica.parameters())
    baoc_compile.prepare(
        optimizer, model=replica, memory_budget="16%", time_budget="900%", warmup_steps=6, sample_steps=4
    )
    train_both(replica, optimizer)
    session = session_of(optimizer)
    plans = gathered(session.plan().to_json())
    assert plans[0] == plans[1]
    assert gathered(session.configurator.history)[0] == session.configurator.history != []


def on_2_replicas_that_nobody_knows_are_told() -> None:
    baoc_compile.core.errors._TOLD.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        baoc_compile.prepare(adamw(model().parameters()), plan="8bit")
        baoc_compile.prepare(adamw(model().parameters()), memory_budget="20%", warmup_steps=0)
        assert not told
        baoc_compile.prepare(adamw(model().parameters()), memory_budget="20%")
    assert ["2 processes" in str(w.message) and "model=" in str(w.message) for w in told] == [True]


def on_2_replicas_that_ask_for_different_things() -> None:
    replica = DistributedDataParallel(model())
    optimizer = adamw(replica.parameters())
    try:
        baoc_compile.prepare(optimizer, model=replica, plan=("8bit", "4bit")[get_rank()])
        train_both(replica, optimizer, steps=1)
    except baoc_compile.OptionError as error:
        assert str(error).startswith("plan:") and "rank 1" in str(error), error
    else:
        raise AssertionError("the plans differ")


def train_both(
    replica: nn.Module, optimizer: Any, net: nn.Module | None = None, alone: Any = None, steps: int = STEPS
) -> None:
    """Train a replica, on data of its own in each process, and beside it a model alone, on the gradients of the replica."""
    draw = torch.Generator().manual_seed(get_rank())
    for _ in range(steps):
        optimizer.zero_grad()
        replica(torch.randn(8, 100, generator=draw)).square().mean().backward()
        if net is not None:
            for p, q in zip(net.parameters(), replica.parameters(), strict=True):
                p.grad = None if q.grad is None else q.grad.clone()
            alone.step()
        optimizer.step()
    assert is_read(optimizer)
    for p in replica.parameters():
        first, second = gathered(p.detach())
        assert torch.equal(first, second)
