"""What must hold where several processes hold an optimizer's parameters. Each case runs in all of them; see `distributed.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from optimizers import Lion
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import baoc_compile
from baoc_compile.core.shard import local_of
from baoc_compile.core.torch_private import distributed_like, shard_in_whole
from baoc_compile.runtime.session import known_session, session_of

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


def assert_same(alone: Any, divided: Any, *, exactly: bool = True) -> None:
    """Parameters and decoded state are those of one process, to the bit or within what formats of 4 bits differ by."""
    pairs = [
        (p, q)
        for a, d in zip(alone.param_groups, divided.param_groups, strict=True)
        for p, q in zip(a["params"], d["params"], strict=True)
    ]
    for p, q in pairs:
        for what, a, b in [("parameter", p, q), *((k, alone.state[p][k], divided.state[q][k]) for k in alone.state[p])]:
            a, b = whole(a), whole(b)
            if exactly:
                assert torch.equal(a, b), (what, tuple(a.shape), float((a - b).abs().max()))
            else:
                assert float((a - b).norm()) <= 0.05 * float(a.norm()), (what, tuple(a.shape))


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
    exactly: bool = True,
) -> tuple[Any, Any]:
    """Train a model and its divided copy under a plan, on the same gradients; both optimizers."""
    net, other = model(), divide(model())
    alone, divided = make(net.parameters()), make(other.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan=plan)
    train(alone, divided, range(steps))
    assert is_read(divided) and is_read(alone)
    assert_same(alone, divided, exactly=exactly)
    return alone, divided


def row(world: int) -> Any:
    return init_device_mesh("cpu", (world,))


# two processes


def on_2_fully_sharded_under_every_plan() -> None:
    for plan in ("fp32", "8bit", "4bit", "bf16", {"exp_avg": "4bit", "exp_avg_sq": "bf16"}):
        _, divided = compare(lambda net: sharded(net, row(2)), plan)
        state = divided.state[divided.param_groups[0]["params"][0]]["exp_avg"]
        assert type(state) is DTensor and state.shape == (77, 100), state
        assert isinstance(local_of(state), baoc_compile.StateTensor) is (plan != "fp32")


def on_2_other_optimizers() -> None:
    for make in (sgd, lion):
        for plan in ("8bit", "4bit"):
            compare(lambda net: sharded(net, row(2)), plan, make)


def on_2_mixed_precision_and_clipping() -> None:
    """Real backward passes in bf16, clipped by the norm of all shards: as long as the gradients agree, so does all else."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    net, other = model(), sharded(model(), row(2), mp_policy=policy)
    alone, divided = adamw(net.parameters()), adamw(other.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan="8bit")
    for step in range(STEPS):
        other.zero_grad()
        data = torch.randn(8, 100, generator=torch.Generator().manual_seed(step))
        other(data).square().mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.grad = q.grad.full_tensor()
        alone.step()
        divided.step()
    assert is_read(divided)
    assert_same(alone, divided)


def on_2_from_meta() -> None:
    """The optimizer is made while the parameters have no memory yet."""
    with torch.device("meta"):
        other = model()
    sharded(other, row(2))
    net, divided = model(), adamw(other.parameters())
    other.to_empty(device="cpu")
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        q.data.copy_(distribute_tensor(p.detach(), q.device_mesh, q.placements))
    alone = adamw(net.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan="8bit")
    train(alone, divided, range(5))
    assert is_read(divided)
    assert_same(alone, divided)


def on_2_local_tensors_that_are_replaced() -> None:
    """A parameter keeps its identity, and gets other memory: the step is bound anew."""
    alone, divided = compare(lambda net: sharded(net, row(2)), "8bit", steps=3)
    for p in divided.param_groups[0]["params"]:
        p._local_tensor = p._local_tensor.clone()
    train(alone, divided, range(3, 6))
    assert is_read(divided)
    assert_same(alone, divided)


def on_2_a_rank_without_a_gradient() -> None:
    """What has no gradient on a rank is not stepped there, and nobody waits for it."""
    _, divided = compare(lambda net: sharded(net, row(2)), "8bit", steps=3)
    parameters = divided.param_groups[0]["params"]
    before = [local_of(p).clone() for p in parameters]
    rank = torch.distributed.get_rank()
    for i, p in enumerate(parameters):
        p.grad = None if rank == 1 and i == 0 else placed(torch.ones(p.shape), p)
    divided.step()
    changed = [not torch.equal(a, local_of(p)) for a, p in zip(before, parameters, strict=True)]
    assert changed == [bool(local_of(p).numel()) and not (rank == 1 and i == 0) for i, p in enumerate(parameters)]
    assert is_read(divided)
    assert all(local_of(p).grad is None for p in parameters)


def on_2_what_reduces_runs_as_written() -> None:
    """A norm of a parameter is one of all its shards. One notice says that the step runs as its user wrote it."""
    net, other = model(), sharded(model(), row(2))
    alone, divided = Lamb(net.parameters()), Lamb(other.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        baoc_compile.prepare(divided, plan="8bit")
        train(alone, divided, range(6))
    assert not is_read(divided)
    said = [str(w.message) for w in caught if "several processes" in str(w.message)]
    assert len(said) == 1, [str(w.message) for w in caught]
    state = divided.state[divided.param_groups[0]["params"][0]]["exp_avg"]
    assert isinstance(local_of(state), baoc_compile.StateTensor)
    assert_same(alone, divided, exactly=False)


class Lamb(torch.optim.Optimizer):
    """Each parameter's update has the parameter's norm."""

    def __init__(self, parameters: Any, lr: float = 1e-2):
        super().__init__(parameters, dict(lr=lr))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 0.1)
                p.sub_(group["lr"] * state["exp_avg"] * (p.norm() / (state["exp_avg"].norm() + 1e-6)))


def on_2_means_are_not_shared_over_shards() -> None:
    """A plan that asks for what all shards would have to share gets what it can have, and says so."""
    _, divided = compare_plans({"exp_avg": "8bit", "exp_avg_sq": "factored"})
    names = {s.codec.name for s in (session_of(divided).storage.of(0).slots.values())}
    assert not names & {"factored", "row", "8bit-learned"}, names
    reasons = [s.reason for s in session_of(divided).storage.of(0).slots.values()]
    assert any("processes" in r for r in reasons), reasons


def compare_plans(plan: Any) -> tuple[Any, Any]:
    net, other = model(), sharded(model(), row(2))
    alone, divided = adamw(net.parameters()), adamw(other.parameters())
    baoc_compile.prepare(divided, plan=plan)
    train(alone, divided, range(3))
    assert is_read(divided)
    return alone, divided


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


def on_2_ranks_that_ask_for_different_things() -> None:
    """All ranks get one error that says what differs, and nothing has changed."""
    for named, options in (
        ("seed", [dict(plan="8bit", seed=0), dict(plan="8bit", seed=1)]),
        ("plan", [dict(plan="8bit"), dict(plan="4bit")]),
        ("memory_budget", [dict(memory_budget="50%"), dict(memory_budget="25%")]),
    ):
        divided = adamw(sharded(model(), row(2)).parameters())
        try:
            baoc_compile.prepare(divided, **options[torch.distributed.get_rank()])
        except baoc_compile.OptionError as error:
            assert str(error).startswith(named + ":") and "rank 1" in str(error), error
        else:
            raise AssertionError(f"no error for different {named}")
        assert not divided.state and known_session(divided) is None


# three and four processes


def on_3_uneven_shards() -> None:
    for plan in ("8bit", "4bit", "bf16"):
        compare(lambda net: sharded(net, row(3)), plan, steps=10)


def on_4_fully_sharded_and_hybrid() -> None:
    compare(lambda net: sharded(net, row(4)), "8bit")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for plan in ("8bit", "4bit"):
        _, divided = compare(lambda net: sharded(net, mesh), plan)
    assert divided.param_groups[0]["params"][0].placements == (Replicate(), Shard(0))


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


def placed(value: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor that this process holds of a DTensor of its shape, as such a DTensor."""
    shape, offset = shard_in_whole(like)
    cut = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
    return distributed_like(like, value[cut].contiguous())
