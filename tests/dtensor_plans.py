"""Processes that hold parts of a model come to one plan. Each case runs in all of them; see `distributed.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from dtensor_training import adamw, is_read, placed, row
from torch import nn
from torch.distributed.fsdp import fully_shard

import baoc_compile
from baoc_compile.core.shard import local_of
from baoc_compile.runtime import device_memory
from baoc_compile.runtime.distributed.ranks import Ranks
from baoc_compile.runtime.session import session_of

SOON = {"warmup_steps": 6, "sample_steps": 4}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.Linear(128, 96), nn.Linear(96, 60))


def gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def planned(budget: Any, steps: int = 10, skipped: int | None = None, **options: Any) -> Any:
    """An optimizer of a sharded network that has planned; on the last rank, parameter `skipped` never has a gradient."""
    net = network()
    fully_shard(net, mesh=row(torch.distributed.get_world_size()))
    optimizer = adamw(net.parameters())
    baoc_compile.prepare(optimizer, model=net, memory_budget=budget, **SOON, **options)
    is_last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        for i, p in enumerate(net.parameters()):
            grad = torch.randn(p.shape, generator=draw) * (1 + torch.arange(p.shape[0])).view(-1, *[1] * (p.ndim - 1))
            p.grad = None if is_last and i == skipped else placed(grad, p)
        optimizer.step()
    assert is_read(optimizer)
    assert steps < SOON["warmup_steps"] or session_of(optimizer).configurator.solution is not None
    return optimizer


def on_2_one_plan_by_a_budget() -> None:
    for budget, options in (("15%", {}), ("0.8 B/param", {}), ("40%", {"time_budget": "400%"})):
        optimizer = planned(budget, **options)
        plans = gathered(session_of(optimizer).plan().to_json())
        assert plans[0] == plans[1]
        whole = sum(p.numel() for p in optimizer.param_groups[0]["params"])
        if budget == "15%":
            again = sum(
                4 * (p.shape[1] + 1) for p in network().parameters() if p.ndim == 2
            )  # means that both ranks hold
            assert sum(gathered(baoc_compile.state_bytes(optimizer))) <= 0.15 * 8 * whole + again + 64 * 6
        assert "bytes" in str(baoc_compile.report(optimizer))
        profile = session_of(optimizer).configurator.profile
        assert profile.sampled_elements >= 6 * 32  # on both ranks, and of every parameter


def on_2_bytes_are_those_of_one_device() -> None:
    """Each device keeps its own limit; the smaller one counts."""
    rank = torch.distributed.get_rank()
    whole = sum(p.numel() for p in network().parameters())
    device_memory.bytes_left = lambda device, state: [whole, 10 * whole][rank]
    optimizer = planned("fit")
    assert gathered(session_of(optimizer).plan().to_json())[0] == session_of(optimizer).plan().to_json()
    assert whole * 0.5 < baoc_compile.state_bytes(optimizer) <= whole + 64 * 6
    optimizer = planned(whole, steps=2)
    assert whole * 0.5 < baoc_compile.state_bytes(optimizer) <= whole + 64 * 6


def on_2_a_gradient_that_one_rank_lacks_while_planning() -> None:
    optimizer = planned("15%", skipped=2)
    plans = gathered(session_of(optimizer).plan().to_json())
    assert plans[0] == plans[1]


def on_2_an_error_of_the_first_rank_reaches_all() -> None:
    try:
        planned("0.001 B/param", steps=1)
    except baoc_compile.BudgetError as error:
        assert "smallest" in str(error), error
    else:
        raise AssertionError("the budget can't be met")
    ranks = Ranks((torch.distributed.group.WORLD,), torch.distributed.get_rank())

    def fails() -> float:
        if ranks.number == 1:
            raise ValueError("nothing is left")
        return 1.0

    try:
        ranks.least(fails)
    except (ValueError, baoc_compile.StateError) as error:
        assert "nothing is left" in str(error)
    else:
        raise AssertionError("rank 1 has failed")


def on_2_ranks_that_have_drifted_apart() -> None:
    """A rank that has another plan, by whatever accident, is found at the next decision, on all ranks."""
    optimizer = planned("15%", steps=5)
    session = session_of(optimizer)
    if torch.distributed.get_rank() == 1:
        other = replace(session.storage.of(0), block="another")
        session.store(session.storage.with_parameters({0: other}))
    try:
        for _ in range(3):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = placed(torch.ones(p.shape), p)
            optimizer.step()
    except baoc_compile.OptionError as error:
        assert str(error).startswith("the plan in force:") and "rank 1" in str(error), error
    else:
        raise AssertionError("the plans differ")
    assert all(local_of(p).grad is None for p in optimizer.param_groups[0]["params"])
