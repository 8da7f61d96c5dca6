"""State with one number for each row or column is part of a rule, in every form that it may have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_exchanged_numbers import Base, assert_as_good_as_eager, flat, parameters, runs_by_programs, step
from torch import nn

import baoc_compile

#: Square ones, in which rows and columns have equal shapes, and ones of more dimensions and of one.
SHAPES = ((40, 64), (33,), (48, 48), (7, 5, 3), (300, 41))
#: Those that have as many rows, or columns, as elements. Their lines may look like state of the parameter's own size.
NARROW = ((5, 1), (1, 6), (1, 1))


class Lines(Base):
    """Second moments of rows and of columns; `made` makes them, `moments` says what they become."""

    def made(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"row": p.new_zeros(p.shape[0]), "column": p.new_zeros(p.shape[1:])}

    def moments(self, state: dict[str, Any], square: torch.Tensor) -> torch.Tensor:
        state["row"].lerp_(square.mean(dim=tuple(range(1, square.ndim))), 0.1)
        state["column"].mul_(0.9).add_(square.mean(0), alpha=0.1)
        row = state["row"].view(-1, *(1 for _ in square.shape[1:]))
        return row * state["column"] / state["row"].mean()

    def update(self, momenta, lr):
        for p, m in momenta:
            if p.ndim < 2:
                p.sub_(m, alpha=lr)
                continue
            state = self.state[p]
            if len(state) == 1:
                state.update(self.made(p))
            p.sub_(m / (self.moments(state, p.grad.square()) + 0.1).sqrt(), alpha=lr)


class KeepsDimensions(Lines):
    """With the other dimensions as 1."""

    def made(self, p):
        return {"row": p.new_zeros(p.shape[0], *(1 for _ in p.shape[1:])), "column": p.new_zeros(1, *p.shape[1:])}

    def moments(self, state, square):
        state["row"].lerp_(square.mean(dim=tuple(range(1, square.ndim)), keepdim=True), 0.1)
        state["column"].lerp_(square.amax(0, keepdim=True), 0.1)
        return torch.maximum(state["row"], state["column"]) + state["row"].amax()


class Products(Lines):
    """Of matrices, as a product of matrices; names tell nothing."""

    def made(self, p):
        return {"b": p.new_zeros(p.shape[0]), "a": p.new_zeros(p.shape[1:])}

    def moments(self, state, square):
        if square.ndim != 2:
            return square
        state["a"].mul_(0.9).add_(square.sum(0) / len(square), alpha=0.1)
        state["b"].mul_(0.9).add_(square.mean(-1), alpha=0.1)
        return state["b"].sqrt().unsqueeze(-1) @ state["a"].sqrt().unsqueeze(0)


class OneOfAnother(Lines):
    """Lines that depend on other lines that the step changes have no program."""

    def moments(self, state, square):
        state["row"].lerp_(square.mean(dim=tuple(range(1, square.ndim))), 0.1)
        if "other" not in state:
            state["other"] = torch.zeros_like(state["row"])
        state["other"].lerp_(state["row"], 0.5)
        return state["other"].view(-1, *(1 for _ in square.shape[1:]))


class Across(Lines):
    """The numbers of rows along the columns, where a matrix is square: that is no row's own number."""

    def moments(self, state, square):
        if square.shape != (48, 48):
            return super().moments(state, square)
        state["row"].lerp_(square.mean(dim=1), 0.1)
        return state["row"] + square


PROGRAMS = [Lines, KeepsDimensions, Products]
REPLAYED = [OneOfAnother, Across]
every = pytest.mark.parametrize("kind", [*PROGRAMS, *REPLAYED])


def made(kind: type[Base], dtype: torch.dtype = torch.float32, shapes: Any = SHAPES, **plan: Any) -> Base:
    generator = torch.Generator().manual_seed(0)
    values = [0.3 * torch.randn(shape, generator=generator) for shape in shapes]
    optimizer = kind([nn.Parameter(v.to(dtype)) for v in values])
    if plan:
        baoc_compile.prepare(optimizer, **plan)
    return optimizer


@pytest.mark.parametrize("shapes", [SHAPES, NARROW])
@every
def test_full_precision_is_as_good_as_eager(kind, shapes):
    ours = made(kind, shapes=shapes, plan="fp32")
    eager, exact = made(kind, shapes=shapes), made(kind, torch.float64, shapes)
    start = flat(exact)
    for t in range(8):
        for optimizer in (ours, eager, exact):
            step(optimizer, t, absent=(-1, -1, 2, 3)[t % 4])
        assert_as_good_as_eager(ours, eager, exact)
    assert (flat(exact) - start).norm() > 0.003 * start.norm()
    if shapes is SHAPES:
        assert runs_by_programs(ours) == (kind in PROGRAMS)
    for a, b in zip(parameters(ours), parameters(eager), strict=True):
        for key, value in eager.state[b].items():
            torch.testing.assert_close(ours.state[a][key], value, rtol=1e-5, atol=1e-7)


@every
def test_8_bits_leave_lines_as_they_are(kind):
    ours, eager = made(kind, plan="8bit"), made(kind)
    start = flat(eager)
    for t in range(8):
        step(ours, t)
        step(eager, t)
    assert (flat(ours) - flat(eager)).norm() < 0.05 * (flat(eager) - start).norm()
    first = ours.state[parameters(ours)[4]]
    assert first["m"].codec.name == "e2m5"
    assert all(type(value) is torch.Tensor for key, value in first.items() if key != "m")


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_checkpoint_goes_on_with_the_same_bits(kind):
    optimizer, again = made(kind, plan="8bit"), made(kind, plan="8bit")
    for t in range(4):
        step(optimizer, t)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(parameters(again), parameters(optimizer), strict=True):
            p.copy_(q)
    for t in range(4, 7):
        step(optimizer, t)
        step(again, t)
    assert torch.equal(flat(optimizer), flat(again))


def test_gradients_are_sampled_and_a_plan_is_solved():
    model = nn.Sequential(nn.Linear(96, 128), nn.Linear(128, 64, bias=False))
    optimizer = Lines(model.parameters())
    baoc_compile.prepare(optimizer, model=model, memory_budget="20%", warmup_steps=12, sample_steps=8)
    for t in range(14):
        step(optimizer, t)
    configurator = optimizer._baoc_session.configurator
    assert configurator.profile is not None and any("risk" in line for line in configurator.history)
    assert runs_by_programs(optimizer)


def test_state_that_a_step_replaces_is_not_bound_anew(monkeypatch):
    from baoc_compile.runtime.step_reader import StepReader

    class Replaces(Base):
        """A number, and sorted values, which are replayed."""

        def update(self, momenta, lr):
            for p, m in momenta:
                state = self.state[p]
                state["size"] = m.square().mean()
                if p.shape == (48, 48):
                    state["order"] = m.flatten().sort().values
                    m = m * (1 + state["order"][0])
                p.sub_(m / (1 + state["size"]), alpha=lr)

    ours, eager = made(Replaces, plan="fp32"), made(Replaces)
    for t in range(3):
        step(ours, t)
        step(eager, t)
    count = []
    bind = StepReader.bind
    monkeypatch.setattr(StepReader, "bind", lambda *args: count.append(args) or bind(*args))
    for t in range(3, 9):
        step(ours, t)
        step(eager, t)
    assert not count
    torch.testing.assert_close(flat(ours), flat(eager), rtol=1e-5, atol=1e-6)
