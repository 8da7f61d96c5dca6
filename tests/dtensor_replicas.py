"""DistributedDataParallel in two processes: each steps all parameters, on gradients that are averages over the processes."""

from __future__ import annotations

from typing import Any

import torch
from dtensor_training import STEPS, adamw, assert_same, is_read, model, sgd
from torch.distributed import all_gather, get_rank
from torch.nn.parallel import DistributedDataParallel

import baoc_compile

OPTIONS = [{"plan": p} for p in ("fp32", "8bit", "4bit", "bf16", {"exp_avg": "4bit", "exp_avg_sq": "factored"})]


def on_2_replicas_step_alike() -> None:
    """Both processes have the bits of one process that is given the averaged gradients."""
    for make, options in [(adamw, o) for o in OPTIONS] + [
        (sgd, {"plan": "8bit"}),
        (adamw, {"memory_budget": "20%", "warmup_steps": 0}),
    ]:
        _check(make, options)


def _check(make: Any, options: dict[str, Any]) -> None:
    net, replica = model(), DistributedDataParallel(model())
    alone, divided = make(net.parameters()), make(replica.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, **options)
    draw = torch.Generator().manual_seed(get_rank())
    for _ in range(STEPS):
        divided.zero_grad()
        replica(torch.randn(8, 100, generator=draw)).square().mean().backward()
        for p, q in zip(net.parameters(), replica.parameters(), strict=True):
            p.grad = q.grad.clone()
        alone.step()
        divided.step()
    assert is_read(divided)
    assert_same(alone, divided)
    for p in replica.parameters():
        both = [torch.empty_like(p.data) for _ in range(2)]
        all_gather(both, p.data)
        assert torch.equal(*both)
