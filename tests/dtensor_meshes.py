"""Three and four processes, meshes of two dimensions, tensor parallelism. Each case runs in all of them (`distributed.py`)."""

from __future__ import annotations

import torch
from dtensor_training import (
    STEPS,
    adamw,
    assert_same,
    compare,
    is_read,
    placed,
    replicated,
    row,
    sharded,
    train,
    whole,
    wide,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import baoc_compile
from baoc_compile.core.shard import local_of
from baoc_compile.core.torch_private import shard_in_whole


def on_2_tensor_parallel() -> None:
    """Columns are whole rows of the weight, so they have its bits; rows cut its groups, and stay within the format."""

    def parallel(net: nn.Module) -> nn.Module:
        return parallelize_module(net, row(2), {"0": ColwiseParallel(), "2": RowwiseParallel()})

    for plan in ("8bit", "4bit"):
        net, other, exact = wide(), parallel(wide()), wide()
        assert other[2].weight.placements == (Shard(1),)
        alone, divided, stock = adamw(net.parameters()), adamw(replicated(other)), adamw(exact.parameters())
        for optimizer in (alone, divided):
            baoc_compile.prepare(optimizer, plan=plan)
        for step in range(STEPS):
            train(alone, divided, [step])
            for p, r in zip(net.parameters(), exact.parameters(), strict=True):
                r.grad = p.grad
            stock.step()
        assert is_read(divided)
        for (name, p), q, r in zip(net.named_parameters(), other.parameters(), exact.parameters(), strict=True):
            if name == "2.weight":
                errors = [float((w - r).detach().norm()) for w in (p, whole(q))]
                assert 0 < errors[1] <= 1.1 * errors[0], errors
            else:
                assert torch.equal(p, whole(q)), name
                assert torch.equal(whole(alone.state[p]["exp_avg"]), whole(divided.state[q]["exp_avg"]))


def on_2_a_gradient_that_is_not_summed_up() -> None:
    """A gradient that is a part of a sum on each rank is summed up before the step."""
    net = wide()
    mesh = row(2)
    other = wide()
    ours = replicated(other)
    alone, divided = adamw(net.parameters()), adamw(ours)
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan="8bit")
    for step in range(5):
        draw = torch.Generator().manual_seed(step)
        for p, q in zip(net.parameters(), ours, strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            half = p.grad / 2
            q.grad = DTensor.from_local(half, mesh, [Partial()], run_check=False)
        alone.step()
        divided.step()
    assert is_read(divided)
    assert_same(alone, divided)


def on_3_uneven_shards() -> None:
    for plan in ("8bit", "4bit", "bf16"):
        compare(lambda net: sharded(net, row(3)), plan, steps=10)
    compare(lambda net: sharded(net, row(3)), {"exp_avg": "8bit", "exp_avg_sq": "factored"}, steps=10, within=1e-6)


def on_4_fully_sharded_and_hybrid() -> None:
    compare(lambda net: sharded(net, row(4)), "8bit")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for plan in ("8bit", "4bit"):
        _, divided = compare(lambda net: sharded(net, mesh), plan)
    assert divided.param_groups[0]["params"][0].placements == (Replicate(), Shard(0))
    compare(lambda net: sharded(net, mesh), {"exp_avg": "8bit", "exp_avg_sq": "factored"}, within=1e-6)


def on_4_sharded_and_parallel() -> None:
    """Two dimensions of a mesh cut one weight, along the same dimension or along two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def divide(net: nn.Module) -> nn.Module:
        parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel()})
        return fully_shard(net, mesh=mesh["data"])

    net, other = wide(), divide(wide())
    pairs = [(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True) if q.device_mesh.ndim == 2]
    assert pairs
    alone, divided = adamw([p for p, _ in pairs]), adamw([q for _, q in pairs])
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan="8bit")
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        for p, q in pairs:
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = placed(p.grad, q)
        alone.step()
        divided.step()
    assert is_read(divided)
    for p, q in pairs:
        shape, offset = shard_in_whole(q)
        cut = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
        assert torch.equal(p[cut], local_of(q))
        assert torch.equal(whole(alone.state[p]["exp_avg"])[cut], local_of(divided.state[q]["exp_avg"]).float())
