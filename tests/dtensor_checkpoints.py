"""Distributed checkpoints: saved on four processes, loaded on fewer. Each case runs in all of them (`distributed.py`)."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dtensor_plans import SOON, network, planned
from dtensor_training import adamw, assert_same, is_read, model, placed, row, sharded, train, whole
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

import baoc_compile
from baoc_compile.core.shard import local_of
from baoc_compile.runtime.session import session_of


@contextmanager
def folder() -> Iterator[str]:
    """A folder that all processes know."""
    with tempfile.TemporaryDirectory() as own:
        known = [own]
        distributed.broadcast_object_list(known)
        yield known[0]
        distributed.barrier()


def save(net: nn.Module, optimizer: Any, at: str, **options: Any) -> None:
    states = get_state_dict(net, optimizer, options=StateDictOptions(**options))
    checkpoint.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=at)


def load(net: nn.Module, optimizer: Any, at: str, mesh: Any = None, **options: Any) -> None:
    chosen = StateDictOptions(**options)
    states = get_state_dict(net, optimizer, options=chosen)
    group = None if mesh is None else mesh.get_group()
    checkpoint.load({"model": states[0], "optimizer": states[1]}, checkpoint_id=at, process_group=group)
    set_state_dict(net, optimizer, model_state_dict=states[0], optim_state_dict=states[1], options=chosen)


def in_the_first(counts: tuple[int, ...], run: Callable[[DeviceMesh], None]) -> None:
    """Run in the first 1, 2, ... of all processes, one after the other."""
    for count in counts:
        mesh = DeviceMesh("cpu", list(range(count)))
        if distributed.get_rank() < count:
            run(mesh)
        distributed.barrier()


def on_4_saved_by_four_and_loaded_by_fewer() -> None:
    saved_and_loaded("8bit")
    saved_and_loaded("4bit", flatten_optimizer_state_dict=True)
    saved_and_loaded({"exp_avg": "8bit", "exp_avg_sq": "factored"}, within=1e-5)


def saved_and_loaded(plan: Any, within: float = 0.0, **options: Any) -> None:
    net, other = model(), sharded(model(), row(4))
    alone, divided = adamw(net.parameters()), adamw(other.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan=plan)
    train(alone, divided, range(4))
    with folder() as at:
        save(other, divided, at, **options)

        def goes_on(mesh: DeviceMesh) -> None:
            _, known = copy.deepcopy((net, alone))
            loaded = sharded(model(1), mesh)
            optimizer = adamw(loaded.parameters())
            baoc_compile.prepare(optimizer, plan=plan)
            load(loaded, optimizer, at, mesh, **options)
            assert_same(known, optimizer, within=within)
            train(known, optimizer, range(4, 14))
            assert is_read(optimizer)
            assert_same(known, optimizer, within=within)

        in_the_first((1, 2, 3), goes_on)


def on_4_a_plan_that_was_solved_goes_with_the_state() -> None:
    """The plan, its mixture of formats and the count of steps are loaded into an optimizer that has not planned yet."""
    divided = planned("20%", steps=8)
    names = {s.codec.name for of in session_of(divided).storage.parameters.values() for s in of.slots.values()}
    assert "fp32" in names and len(names) > 1
    parameters = divided.param_groups[0]["params"]
    net = session_of(divided).model()
    with folder() as at:
        save(net, divided, at)
        go_on(divided, range(8, 12))
        expected = [whole(v) for p in parameters for v in (p, *divided.state[p].values())]

        def goes_on(mesh: DeviceMesh) -> None:
            loaded = network()
            sharded(loaded, mesh)
            optimizer = adamw(loaded.parameters())
            baoc_compile.prepare(optimizer, model=loaded, memory_budget="20%", **SOON)
            load(loaded, optimizer, at, mesh)
            assert session_of(optimizer).configurator.steps == 8
            go_on(optimizer, range(8, 12))
            found = [whole(v) for p in loaded.parameters() for v in (p, *optimizer.state[p].values())]
            assert session_of(optimizer).plan().to_json() == session_of(divided).plan().to_json()
            for a, b in zip(expected, found, strict=True):
                # the groups of a row end where the shards do, so rows that are cut elsewhere are stored in other groups
                assert torch.equal(a, b) if a.ndim != 1 else float((a - b).norm()) <= 0.01 * float(a.norm())

        in_the_first((2, 3), goes_on)


def go_on(optimizer: Any, steps: Any) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for p in optimizer.param_groups[0]["params"]:
            p.grad = placed(torch.randn(p.shape, generator=draw), p)
        optimizer.step()


def on_4_from_and_to_the_stock_optimizer() -> None:
    """Values from an optimizer that knows no plan are stored as the plan says; ours are decoded for it."""
    net = sharded(model(), row(4))
    stock = adamw(net.parameters())
    go_on(stock, range(3))
    with folder() as at:
        save(net, stock, at)
        other = sharded(model(1), row(4))
        ours = adamw(other.parameters())
        baoc_compile.prepare(ours, memory_budget="50%", warmup_steps=0)
        load(other, ours, at)
        state = ours.state[other[0].weight]["exp_avg"]
        assert isinstance(local_of(state), baoc_compile.StateTensor)
        exact = whole(stock.state[net[0].weight]["exp_avg"])
        assert 0 < float((whole(state) - exact).norm()) < 0.05 * float(exact.norm())
        go_on(ours, range(3, 5))
        assert is_read(ours)
    with folder() as at:
        save(other, ours, at)
        again = sharded(model(2), row(4))
        stock = adamw(again.parameters())
        load(again, stock, at)
        for p, q in zip(other.parameters(), again.parameters(), strict=True):
            for key, value in stock.state[q].items():
                assert type(local_of(value)) is torch.Tensor
                assert torch.equal(whole(ours.state[p][key]), whole(value)), key
        go_on(stock, range(5, 6))
        exported = baoc_compile.export_state_dict(ours)["state"][0]["exp_avg"]
        assert type(exported) is DTensor and type(exported.to_local()) is torch.Tensor


def on_2_saved_in_the_background() -> None:
    """`async_save` copies the state before it goes on; what is gathered on one rank is decoded."""
    net = sharded(model(), row(2))
    divided = adamw(net.parameters())
    baoc_compile.prepare(divided, plan="8bit")
    go_on(divided, range(3))
    with folder() as at:
        states = get_state_dict(net, divided)
        expected = [whole(v).clone() for p in net.parameters() for v in divided.state[p].values()]
        saving = checkpoint.async_save({"model": states[0], "optimizer": states[1]}, checkpoint_id=at)
        go_on(divided, range(3, 5))
        saving.result()
        other = sharded(model(1), row(2))
        loaded = adamw(other.parameters())
        baoc_compile.prepare(loaded, plan="8bit")
        load(other, loaded, at)
    found = [whole(v) for p in other.parameters() for v in loaded.state[p].values()]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    chosen = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_state_dict(other, loaded, options=chosen)[1]
    if distributed.get_rank() == 0:
        assert torch.equal(gathered["state"]["0.weight"]["exp_avg"], expected[1])


def on_2_what_is_kept_beside_weights() -> None:
    """bf16 weights with 8 bits beside them: the bits of one process, also from a checkpoint."""
    plan = {"*": "8bit", "param": "24bit"}
    net, other = model().bfloat16(), sharded(model().bfloat16(), row(2))
    alone, divided = adamw(net.parameters()), adamw(other.parameters())
    for optimizer in (alone, divided):
        baoc_compile.prepare(optimizer, plan=plan)

    def take(steps: Any, divided: Any) -> None:
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            for p, q in zip(net.parameters(), divided.param_groups[0]["params"], strict=True):
                p.grad = torch.randn(p.shape, generator=draw).bfloat16()
                q.grad = placed(p.grad, q)
            alone.step()
            divided.step()
        ours, theirs = baoc_compile.master_weights(alone), baoc_compile.master_weights(divided)
        assert len(ours) == len(theirs) > 0
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, whole(q)) and torch.equal(ours[p], whole(theirs[q]))

    take(range(4), divided)
    with folder() as at:
        save(other, divided, at)
        again = sharded(model(1).bfloat16(), row(2))
        loaded = adamw(again.parameters())
        baoc_compile.prepare(loaded, plan=plan)
        load(again, loaded, at)
    take(range(4, 8), loaded)


def on_4_a_file_of_each_rank() -> None:
    """`torch.save` of the `state_dict` on every rank, loaded by the same ranks."""
    divided = adamw(sharded(model(), row(4)).parameters())
    baoc_compile.prepare(divided, plan="8bit")
    go_on(divided, range(3))
    file = io.BytesIO()
    torch.save(divided.state_dict(), file)
    file.seek(0)
    weights = [p.full_tensor() for p in divided.param_groups[0]["params"]]
    go_on(divided, range(3, 6))
    other = sharded(model(), row(4))
    for p, value in zip(other.parameters(), weights, strict=True):
        local_of(p).copy_(local_of(placed(value, p)))
    loaded = adamw(other.parameters())
    baoc_compile.prepare(loaded, plan="8bit")
    loaded.load_state_dict(torch.load(file, weights_only=True))
    go_on(loaded, range(3, 6))
    assert is_read(loaded)
    for p, q in zip(divided.param_groups[0]["params"], other.parameters(), strict=True):
        for a, b in zip((p, *divided.state[p].values()), (q, *loaded.state[q].values()), strict=True):
            assert torch.equal(whole(a), whole(b))
