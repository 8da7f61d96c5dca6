"""Slots that follow the weights are stored as their difference to them: whoever changes weights, the slot stays what it is."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import baoc_compile
from baoc_compile import StateError, StateTensor

SHAPES = ((64, 96), (33,), (32, 3, 40))


class Averaging(torch.optim.Optimizer):
    """Schedule-Free SGD: gradients at y = (1 - b) z + b x; `z` is a slot, and x the average that `eval()` shows.

    spares: z is not read in every third step.
    """

    spares = False

    def __init__(self, parameters: Any, lr: float = 0.05, b: float = 0.9, spares: bool = False):
        super().__init__(parameters, {"lr": lr, "b": b, "t": 0, "shows_average": False})
        self.spares = spares

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["t"] += 1
            for p in group["params"]:
                state = self.state[p]
                if "z" not in state:
                    state["z"] = p.clone()
                if self.spares and group["t"] % 3 == 0:
                    p.sub_(p.grad, alpha=group["lr"])
                    continue
                z, c = state["z"], 1 / group["t"]
                p.lerp_(z, c).add_(p.grad, alpha=group["lr"] * (group["b"] * (1 - c) - 1))
                z.sub_(p.grad, alpha=group["lr"])

    @torch.no_grad()
    def show(self, average: bool) -> None:
        """As in the paper's code: y = (1 - b) z + b x, and back."""
        for group in self.param_groups:
            if group["shows_average"] is average:
                continue
            group["shows_average"] = average
            for p in group["params"]:
                if "z" in self.state[p]:
                    weight = 1 - 1 / group["b"] if average else 1 - group["b"]
                    p.lerp_(self.state[p]["z"].clone(), weight)


class Replayed(Averaging):
    """The same, with a product that no program has."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - 1e-9 * (p.grad.flatten() @ p.grad.flatten()).sigmoid())


class Branching(Averaging):
    """The same, as it is written: it looks at values."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert all(bool(p.grad.isfinite().all()) for p in group["params"])
        super().step(closure)


EVERY = pytest.mark.parametrize("kind", [Averaging, Replayed, Branching])
PLAN: dict[str, Any] = {"plan": {"z": "8bit", "*": "8bit"}}


def made(kind: type[Averaging] = Averaging, prepared: bool = True, **options: Any) -> Averaging:
    generator = torch.Generator().manual_seed(0)
    optimizer = kind([nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES], **options)
    if prepared:
        baoc_compile.prepare(optimizer, **PLAN)
    return optimizer


def parameters(optimizer: Averaging) -> list[Any]:
    return optimizer.param_groups[0]["params"]


def step(optimizer: Averaging, t: int) -> None:
    generator = torch.Generator().manual_seed(t)
    for p in parameters(optimizer):
        p.grad = 0.2 * p.detach() + torch.randn(p.shape, generator=generator)
    optimizer.step()


def flat(optimizer: Averaging, key: str = "") -> torch.Tensor:
    found = [optimizer.state[p][key] if key else p.detach() for p in parameters(optimizer)]
    return torch.cat([(v.decode() if isinstance(v, StateTensor) else v).flatten() for v in found]).double()


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@EVERY
@pytest.mark.parametrize("spares", [False, True])
def test_the_slot_stays_what_it_is_in_every_way_to_step(kind, spares):
    """Also if a step changes weights without a look at the slot."""
    ours, eager = made(kind, spares=spares), made(kind, prepared=False, spares=spares)
    start = flat(eager)
    for t in range(20):
        step(ours, t)
        step(eager, t)
    assert ours.state[parameters(ours)[0]]["z"].codec.name == "w+e2m5"
    assert error(flat(ours) - start, flat(eager) - start) < 0.02
    assert error(flat(ours, "z") - start, flat(eager, "z") - start) < 0.02
    refused = ours._baoc_session.own.refused  # type: ignore[attr-defined]
    assert bool(refused) == (kind is Branching), refused


@EVERY
def test_methods_of_the_optimizer_may_change_weights(kind):
    ours, eager = made(kind), made(kind, prepared=False)
    start = flat(eager)
    for t in range(12):
        for optimizer in (ours, eager):
            step(optimizer, t)
            optimizer.show(True)
        assert error(flat(ours) - start, flat(eager) - start) < 0.05
        for optimizer in (ours, eager):
            optimizer.show(False)
    assert error(flat(ours, "z") - start, flat(eager, "z") - start) < 0.03


def one_element(p: Any) -> None:
    p.data.view(-1)[3] += 1e-3


@EVERY
@pytest.mark.parametrize("change", [lambda p: p.data.mul_(0.99), one_element, lambda p: p.data.copy_(-p.data)])
def test_weights_that_someone_else_changes_are_refused_before_anything_else_does(kind, change):
    optimizer = made(kind)
    for t in range(4):
        step(optimizer, t)
    kept = [p.detach().clone() for p in parameters(optimizer)]
    with torch.no_grad():
        change(parameters(optimizer)[0])
    before = flat(optimizer)
    with pytest.raises(StateError, match=r"changed since the last step.*'z'.*16bit"):
        step(optimizer, 4)
    assert torch.equal(before, flat(optimizer))
    with torch.no_grad():
        for p, value in zip(parameters(optimizer), kept, strict=True):
            p.copy_(value)  # as a swap with an average and back does
    step(optimizer, 4)
    change(parameters(optimizer)[0])
    optimizer.load_state_dict(optimizer.state_dict())  # the way out that the error names
    step(optimizer, 5)


@EVERY
def test_weights_that_move_in_memory_are_the_same(kind):
    optimizer, still = made(kind), made(kind)
    for t in range(5):
        for o in (optimizer, still):
            step(o, t)
        for p in parameters(optimizer):
            p.data = p.data.clone()
    assert torch.equal(flat(optimizer), flat(still))


def test_a_plan_that_stores_the_slot_apart_lets_weights_change():
    optimizer = made(prepared=False)
    baoc_compile.prepare(optimizer, plan={"z": "16bit", "*": "8bit"})
    for t in range(3):
        step(optimizer, t)
        parameters(optimizer)[0].data.mul_(0.9)
    assert optimizer.state[parameters(optimizer)[0]]["z"].codec.name == "e2m13"


@EVERY
@pytest.mark.parametrize("order", ["weights first", "state first"])
def test_a_checkpoint_goes_on(kind, order):
    optimizer = made(kind)
    for t in range(5):
        step(optimizer, t)
    file = io.BytesIO()
    torch.save({"state": optimizer.state_dict(), "weights": [p.detach() for p in parameters(optimizer)]}, file)
    assert (
        len(file.getvalue()) < 6.5 * sum(p.numel() for p in parameters(optimizer)) + 10_000
    )  # no weights in the state
    file.seek(0)
    saved, again = torch.load(file, weights_only=True), made(kind)

    def load_weights() -> None:
        with torch.no_grad():
            for p, value in zip(parameters(again), saved["weights"], strict=True):
                p.copy_(value)

    if order == "weights first":
        load_weights()
    again.load_state_dict(saved["state"])
    if order == "state first":
        load_weights()
    for t in range(5, 8):
        step(optimizer, t)
        step(again, t)
    if kind is Branching:  # whose first step is in full precision: other random words than those of one that went on
        assert error(flat(again), flat(optimizer)) < 1e-3
        return
    assert torch.equal(flat(optimizer), flat(again)) and torch.equal(flat(optimizer, "z"), flat(again, "z"))


def test_a_checkpoint_beside_other_weights_is_refused():
    optimizer, again = made(), made()
    for t in range(3):
        step(optimizer, t)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    with pytest.raises(StateError, match="changed since the last step"):
        step(again, 3)


def test_copies_exports_and_restore():
    optimizer = made()
    for t in range(5):
        step(optimizer, t)
    z = flat(optimizer, "z")
    copied = copy.deepcopy(optimizer)
    step(optimizer, 5)
    assert torch.equal(flat(copied, "z"), z)
    step(copied, 5)
    assert torch.equal(flat(copied), flat(optimizer)) and torch.equal(flat(copied, "z"), flat(optimizer, "z"))
    exported = baoc_compile.export_state_dict(optimizer)["state"]
    assert torch.equal(torch.cat([s["z"].flatten() for s in exported.values()]).double(), flat(optimizer, "z"))
    z = flat(optimizer, "z")
    baoc_compile.restore(optimizer)
    assert torch.equal(flat(optimizer, "z"), z)
    assert not any(isinstance(s["z"], StateTensor) for s in optimizer.state.values())


def test_a_state_without_its_parameter_says_what_to_do():
    optimizer = made()
    step(optimizer, 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["state"][0]["z"]
    with pytest.raises(StateError, match="prepare"):
        state.decode()


def test_a_plan_that_is_solved_keeps_differences():
    model = nn.Sequential(nn.Linear(96, 128), nn.Linear(128, 64, bias=False))
    optimizer = Averaging(model.parameters())
    baoc_compile.prepare(optimizer, model=model, memory_budget="20%", warmup_steps=12, sample_steps=8)
    for t in range(14):
        step(optimizer, t)
    history = optimizer._baoc_session.configurator.history  # type: ignore[attr-defined]
    assert any("optimal" in line or "within" in line for line in history), history
    stored = {s["z"].codec.name for s in optimizer.state.values() if isinstance(s["z"], StateTensor)}
    assert stored and stored <= {"w+e2m1", "w+e2m5"}
