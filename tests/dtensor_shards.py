"""FSDP2 in two processes: what each steps is a part of each parameter. Each case runs in all processes; see `distributed.py`."""

from __future__ import annotations

import warnings
from random import Random
from typing import Any

import torch
from dtensor_training import (
    STEPS,
    adamw,
    assert_same,
    compare,
    is_read,
    lion,
    model,
    placed,
    row,
    sgd,
    sharded,
    train,
    whole,
)
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import baoc_compile
from baoc_compile.core.shard import local_of
from baoc_compile.runtime.session import known_session, session_of


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


def on_2_other_ways_to_step_and_to_look() -> None:
    """A compiled step, a report, and a step of the user's own after `restore`."""
    net, other = model(), sharded(model(), row(2))
    alone, divided = adamw(net.parameters()), adamw(other.parameters())
    for optimizer in (alone, divided):
        optimizer.step = torch.compile(optimizer.step, backend="baoc", options={"plan": "8bit"})
    train(alone, divided, range(4))
    assert is_read(divided)
    assert_same(alone, divided)
    assert "rule" in str(baoc_compile.inspect(divided))
    baoc_compile.restore(divided)
    assert not any(
        isinstance(local_of(v), baoc_compile.StateTensor) for s in divided.state.values() for v in s.values()
    )


def on_2_drawn_shapes() -> None:
    """Tensors of one to three dimensions, cut wherever two processes cut them."""
    draw, mesh = Random(0), row(2)
    shapes = [(draw.randint(1, 20), draw.randint(300, 900)) for _ in range(8)]
    shapes += [(draw.randint(1, 9), draw.randint(1, 20), draw.randint(30, 90)) for _ in range(6)]
    shapes += [(64 * draw.randint(64, 99),) for _ in range(2)]
    values = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    for plan in ("8bit", "4bit"):
        alone = adamw([nn.Parameter(v.clone()) for v in values])
        divided = adamw([nn.Parameter(distribute_tensor(v, mesh, [Shard(0)])) for v in values])
        for optimizer in (alone, divided):
            baoc_compile.prepare(optimizer, plan=plan)
        train(alone, divided, range(4))
        assert is_read(divided)
        assert_same(alone, divided)


def on_2_one_row_cut_inside_a_group() -> None:
    """Elements keep their random words. Groups begin anew on each rank, so grouped formats differ by their own error."""

    def compare_row(plan: str) -> list[Tensor]:
        net, other, exact = (Scales() for _ in range(3))
        fully_shard(other, mesh=row(2))
        alone, divided, stock = (adamw(n.parameters()) for n in (net, other, exact))
        for optimizer in (alone, divided):
            baoc_compile.prepare(optimizer, plan=plan)
        for step in range(STEPS):
            train(alone, divided, [step])
            exact.scales.grad = net.scales.grad
            stock.step()
        assert is_read(divided)
        assert isinstance(local_of(divided.state[other.scales]["exp_avg"]), baoc_compile.StateTensor)
        return [p.detach() for p in (net.scales, whole(other.scales), exact.scales)]

    ours, theirs, _ = compare_row("bf16")
    assert torch.equal(ours, theirs)
    ours, theirs, exact = compare_row("8bit")
    assert 0 < float((theirs - exact).norm()) <= 1.1 * float((ours - exact).norm())


class Scales(nn.Module):
    """4,100 elements in one row: half of them are 64 groups and 2 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.linspace(-1, 1, 4100))


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
    assert_same(alone, divided, within=0.05)


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


def on_2_means_over_all_rows() -> None:
    """Means over columns are those of all ranks, up to their rounding to fp32."""
    for form in ("factored", "column", "row", "tensor"):
        _, divided = compare(lambda net: sharded(net, row(2)), {"exp_avg": "8bit", "exp_avg_sq": form}, within=1e-6)
        slots = session_of(divided).storage.of(0).slots
        assert slots["exp_avg_sq"].codec.name == form, slots


def on_2_means_without_a_gradient_on_one_rank() -> None:
    """Nobody waits for a rank on which a parameter has no gradient, and all ranks have the same means."""
    _, divided = compare(lambda net: sharded(net, row(2)), {"*": "factored", "exp_avg": "8bit"}, steps=3, within=1e-6)
    first = divided.param_groups[0]["params"][0]
    for p in divided.param_groups[0]["params"]:
        p.grad = placed(torch.ones(p.shape), p)
    if torch.distributed.get_rank() == 1:
        first.grad = None
    divided.step()
    columns = local_of(divided.state[first]["exp_avg_sq"]).parts["columns"]
    found = [torch.zeros_like(columns) for _ in range(2)]
    torch.distributed.all_gather(found, columns)
    assert torch.equal(*found)


def on_2_what_is_learned_from_all_elements_is_refused() -> None:
    """A plan that asks for it gets something else, with the reason."""
    net = sharded(model(), row(2))
    divided = adamw(net.parameters())
    baoc_compile.prepare(divided, plan="8bit-learned")
    slots = session_of(divided).storage.of(0).slots
    assert "learned" not in slots["exp_avg"].codec.name and "processes" in slots["exp_avg"].reason, slots


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
