"""Trainings that are divided among processes, beside the same ones in one process, for the cases in `dtensor_*.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from optimizers import Lion
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

import baoc_compile
from baoc_compile.core.shard import local_of
from baoc_compile.core.torch_private import distributed_like, shard_in_whole
from baoc_compile.runtime.session import session_of

STEPS = 20


def model(seed: int = 0) -> nn.Sequential:
    """Rows that no number of processes divides, columns that are no multiple of a group, and a layer of one row."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(100, 77), nn.GELU(), nn.Linear(77, 65, bias=False), nn.Linear(65, 1))


def sharded(net: nn.Module, mesh: Any, **options: Any) -> nn.Module:
    for layer in net:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True)


def lion(parameters: Any) -> torch.optim.Optimizer:
    return Lion(parameters, lr=1e-3, weight_decay=0.1)


def whole(value: Tensor) -> Tensor:
    """A tensor as one process would hold it, decoded."""
    local = local_of(value)
    local = local.decode() if isinstance(local, baoc_compile.StateTensor) else local
    if not isinstance(value, DTensor):
        return local.detach()
    return DTensor.from_local(
        local.detach(), value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    ).full_tensor()


def give_gradients(theirs: Any, ours: Any, step: int) -> None:
    """Give both the same gradients: what was drawn, in the placements of the parameter."""
    draw = torch.Generator().manual_seed(step)
    for alone, divided in zip(theirs, ours, strict=True):
        grad = 0.1 * torch.randn(alone.shape, generator=draw)
        alone.grad = grad
        divided.grad = placed(grad, divided)


def train(alone: Any, divided: Any, steps: Any) -> None:
    for step in steps:
        give_gradients(
            [p for g in alone.param_groups for p in g["params"]],
            [p for g in divided.param_groups for p in g["params"]],
            step,
        )
        alone.step()
        divided.step()


def assert_same(alone: Any, divided: Any, *, within: float = 0.0) -> None:
    """Parameters and decoded state are those of one process, to the bit or `within` a share of their norm."""
    pairs = [
        (p, q)
        for a, d in zip(alone.param_groups, divided.param_groups, strict=True)
        for p, q in zip(a["params"], d["params"], strict=True)
    ]
    for p, q in pairs:
        for what, a, b in [("parameter", p, q), *((k, alone.state[p][k], divided.state[q][k]) for k in alone.state[p])]:
            a, b = whole(a), whole(b)
            if not within:
                assert torch.equal(a, b), (what, tuple(a.shape), float((a - b).abs().max()))
            else:
                assert float((a - b).norm()) <= within * float(a.norm()), (what, tuple(a.shape))


def is_read(optimizer: Any) -> bool:
    """Whether the step runs as baoc's own."""
    own = session_of(optimizer).own
    return not own.refused and own.bound is not None


def compare(
    divide: Callable[[nn.Module], nn.Module],
    plan: Any,
    make: Callable[[Any], Any] = adamw,
    steps: int = STEPS,
    *,
    within: float = 0.0,
) -> tuple[Any, Any]:
    """Train a model and its divided copy under a plan, on the same gradients; both optimizers."""
    net, other = model(), divide(model())
    alone, divided = make(net.parameters()), make(other.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan=plan)
    train(alone, divided, range(steps))
    assert is_read(divided) and is_read(alone)
    assert_same(alone, divided, within=within)
    return alone, divided


def row(world: int) -> Any:
    return init_device_mesh("cpu", (world,))


def placed(value: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor that this process holds of a DTensor of its shape, as such a DTensor."""
    shape, offset = shard_in_whole(like)
    cut = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
    return distributed_like(like, value[cut].contiguous())


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 100), nn.GELU(), nn.Linear(100, 66), nn.Linear(66, 3))


def replicated(net: nn.Module) -> list[Tensor]:
    """The parameters of a network, each of which is a DTensor."""
    for name, p in list(net.named_parameters()):
        if not isinstance(p, DTensor):
            *path, last = name.split(".")
            module = net.get_submodule(".".join(path))
            module.register_parameter(last, nn.Parameter(distribute_tensor(p.detach(), row(2), [Replicate()])))
    return list(net.parameters())
