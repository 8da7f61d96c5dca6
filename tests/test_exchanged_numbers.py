"""Numbers that a step computes of elements: of one tensor, for that tensor, or of all, for all.

Every case is compared with the same class in float64: at most twice the error that eager float32 has, and some ulps.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import baoc_compile

SHAPES = ((40, 64), (33,), (7, 5, 3), (300, 41))
ULPS = 16


class Base(torch.optim.Optimizer):
    """Momentum; `update` says what is made of it."""

    def __init__(self, parameters: Any, lr: float = 0.05):
        super().__init__(parameters, {"lr": lr, "size": 1.0})

    def momenta(self) -> list[tuple[Tensor, Tensor]]:
        found = []
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                found.append((p, state["m"].mul_(0.9).add_(p.grad, alpha=0.1)))
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.update(self.momenta(), self.param_groups[0]["lr"])

    def update(self, momenta: list[tuple[Tensor, Tensor]], lr: float) -> None:
        raise NotImplementedError


class ByAllNorms(Base):
    """Updates are scaled by the norm of all, as global clipping inside of a step does."""

    def update(self, momenta, lr):
        total = torch.stack([m.norm() for _, m in momenta]).norm()
        for p, m in momenta:
            p.sub_(m * (1 / (total + 1e-6)).clamp(max=1.0), alpha=lr)


class ByASum(Base):
    """A sum over all parameters, added up in place."""

    def update(self, momenta, lr):
        total = 0.0
        for p, m in momenta:
            total += (m * p.grad).sum() / p.numel()
        total.abs_().add_(0.5)
        for p, m in momenta:
            p.sub_(m / total, alpha=lr)


class ByTheFirst(Base):
    """All are scaled by the first one's largest element."""

    def update(self, momenta, lr):
        largest = momenta[0][1].abs().max()
        for p, m in momenta:
            p.sub_(m / (1 + largest), alpha=lr)


class KeepsANumber(Base):
    """The next step is scaled by what this one has found."""

    def update(self, momenta, lr):
        group = self.param_groups[0]
        size = sum(m.square().mean() for _, m in momenta).sqrt().item()
        for p, m in momenta:
            p.sub_(m / (1 + group["size"] * size), alpha=lr)
        group["size"] = 0.5 * group["size"] + size


class Estimates(Base):
    """As D-Adaptation does: an average of numbers in a tensor of the group, and nothing to do where they are 0."""

    def __init__(self, parameters, lr=0.05):
        super().__init__(parameters, lr)
        for group in self.param_groups:
            group["average"] = torch.zeros(1, dtype=group["params"][0].dtype)

    def update(self, momenta, lr):
        group, total = self.param_groups[0], 0.0
        group["average"].mul_(0.9)
        for _, m in momenta:
            group["average"].add_(m.abs().sum(), alpha=0.1)
            total += m.square().sum()
        if total == 0:
            return
        group["size"] = max(group["size"], min((group["average"] / total).item(), 1.5 * group["size"]))
        for p, m in momenta:
            p.sub_(m / (1 + group["size"]), alpha=lr)


class BeginsByNorm(Base):
    """As NvNovoGrad does: a number for each tensor, of which the first is taken as it is."""

    def update(self, momenta, lr):
        for p, m in momenta:
            state = self.state[p]
            if "size" not in state:
                state["size"] = torch.zeros((), dtype=p.dtype)
            if state["size"] == 0:
                state["size"].copy_(p.grad.norm())
            else:
                state["size"].mul_(0.9).add_(p.grad.norm(), alpha=0.1)
            p.sub_(m / (state["size"] + 1e-3), alpha=lr)


class Twice(Base):
    """The norm of all, and then the norm of all that are scaled by it."""

    def update(self, momenta, lr):
        total = torch.stack([m.norm() for _, m in momenta]).norm()
        scaled = [(p, m / (1 + total)) for p, m in momenta]
        again = torch.stack([m.abs().max() for _, m in scaled]).max()
        for p, m in scaled:
            p.sub_(m / (0.1 + again), alpha=lr)


class ByItsOwn(Base):
    """Trust ratio, RMS clipping and a cautious mask, each of one tensor alone."""

    def update(self, momenta, lr):
        for p, m in momenta:
            update = m * (p.norm() / (m.norm() + 1e-3)).clamp_(max=10.0)
            update.div_(update.square().mean().sqrt().clamp_(min=1.0))
            mask = (update * p.grad > 0).to(p.dtype)
            p.sub_(update * mask.div_(mask.mean().clamp_(min=1e-3)), alpha=lr)


class ByRows(Base):
    """Rows of the gradient are centered, and rows of the update are scaled by their norm and their largest element."""

    def update(self, momenta, lr):
        for p, m in momenta:
            if m.ndim < 2:
                p.sub_(m, alpha=lr)
                continue
            rows = tuple(range(1, m.ndim))
            update = m - m.mean(dim=rows, keepdim=True)
            size = update.norm(dim=rows, keepdim=True) + update.abs().amax(rows, keepdim=True)
            update = update / (0.1 + size + update.amin(rows, keepdim=True).abs())
            p.sub_(update * (1 + update.sum(rows, keepdim=True).tanh() + size.mean()), alpha=lr)


class ByColumns(Base):
    """Columns are brought to one length, and scaled by a smooth maximum of their own."""

    def update(self, momenta, lr):
        for p, m in momenta:
            update = nn.functional.normalize(m, p=2.0, dim=0) * nn.functional.softplus(m, beta=lr * 100)
            p.sub_(update / (1 + update.amax(0, keepdim=True) + update.sum(0, keepdim=True).tanh()), alpha=lr)


class ByEveryReduction(Base):
    """What torch calls reductions, in their spellings."""

    def update(self, momenta, lr):
        for p, m in momenta:
            flat = m.flatten()
            least, most = m.min(), torch.amax(m)
            spread = m.var(correction=0) + m.std() + torch.linalg.vector_norm(m, 1) / m.numel()
            size = m.norm(p=3) + m.norm(p=float("inf")) + torch.dot(flat, p.grad.flatten()).abs() / m.numel()
            p.sub_((m - m.mean()) / (1 + (most - least) + spread + size), alpha=lr)
            p.add_(torch.where((m != 0).any() & m.isfinite().all(), 1e-3, 0.0))


EVERY = [
    ByAllNorms,
    ByASum,
    ByTheFirst,
    KeepsANumber,
    Estimates,
    BeginsByNorm,
    Twice,
    ByItsOwn,
    ByRows,
    ByColumns,
    ByEveryReduction,
]
every = pytest.mark.parametrize("kind", EVERY)


def made(kind: type[Base], dtype: torch.dtype = torch.float32, **plan: Any) -> Base:
    generator = torch.Generator().manual_seed(0)
    values = [0.3 * torch.randn(shape, generator=generator) for shape in SHAPES]
    optimizer = kind([nn.Parameter(v.to(dtype)) for v in values])
    if plan:
        baoc_compile.prepare(optimizer, **plan)
    return optimizer


def parameters(optimizer: Base) -> list[Any]:
    return optimizer.param_groups[0]["params"]


def step(optimizer: Base, t: int, absent: int = -1) -> None:
    generator = torch.Generator().manual_seed(t)
    for i, p in enumerate(parameters(optimizer)):
        grad = torch.randn(p.shape, generator=generator)
        p.grad = None if i == absent else grad.to(p.dtype)
    optimizer.step()


def flat(optimizer: Base) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in parameters(optimizer)])


def assert_as_good_as_eager(ours: Base, eager: Base, exact: Base) -> None:
    errors = [(flat(o) - flat(exact)).abs().max() for o in (ours, eager)]
    assert errors[0] <= 2 * errors[1] + ULPS * 2.0**-24 * flat(exact).abs().max()


def runs_by_programs(optimizer: Base) -> bool:
    own = optimizer._baoc_session.own  # type: ignore[attr-defined]
    return not own.refused and not any(reading.reasons for reading in own.readings)


@every
def test_full_precision_is_as_good_as_eager(kind):
    ours, eager, exact = made(kind, plan="fp32"), made(kind), made(kind, torch.float64)
    start = flat(exact)
    for t in range(8):
        for optimizer in (ours, eager, exact):
            step(optimizer, t)
        assert_as_good_as_eager(ours, eager, exact)
    assert (flat(exact) - start).norm() > 0.003 * start.norm()
    assert runs_by_programs(ours) == (kind is not Twice)
    assert ours.param_groups[0]["size"] == pytest.approx(exact.param_groups[0]["size"], rel=1e-5)


@every
def test_some_parameters_have_no_gradient(kind):
    ours, eager, exact = made(kind, plan="fp32"), made(kind), made(kind, torch.float64)
    for t in range(9):
        for optimizer in (ours, eager, exact):
            step(optimizer, t, absent=(-1, -1, 1, 3)[t % 4])
        assert_as_good_as_eager(ours, eager, exact)


@every
def test_8_bits_are_close(kind):
    ours, eager = made(kind, plan="8bit"), made(kind)
    start = flat(eager)
    for t in range(8):
        step(ours, t)
        step(eager, t)
    assert (flat(ours) - flat(eager)).norm() < 0.05 * (flat(eager) - start).norm()
    assert ours.state[parameters(ours)[3]]["m"].codec.name == "e2m5"


@pytest.mark.parametrize("kind", [ByAllNorms, ByItsOwn, ByRows])
def test_gradients_are_sampled_and_a_plan_is_solved(kind):
    model = nn.Sequential(nn.Linear(96, 128), nn.Linear(128, 64, bias=False))
    optimizer = kind(model.parameters())
    baoc_compile.prepare(optimizer, model=model, memory_budget="20%", warmup_steps=12, sample_steps=8)
    for t in range(14):
        step(optimizer, t)
    configurator = optimizer._baoc_session.configurator
    assert configurator.profile is not None and any("risk" in line for line in configurator.history)
    assert baoc_compile.report(optimizer)
    assert runs_by_programs(optimizer)


@pytest.mark.parametrize("kind", [ByAllNorms, ByItsOwn])
@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_threads(kind, threads, monkeypatch):
    from baoc_compile.kernels.cpp import program

    monkeypatch.setattr(program, "ELEMENTS_PER_THREAD", 1)
    one, several, before = made(kind, plan="8bit"), made(kind, plan="8bit"), torch.get_num_threads()
    for t in range(4):
        for optimizer, count in ((one, 1), (several, threads)):
            torch.set_num_threads(count)
            step(optimizer, t)
    torch.set_num_threads(before)
    assert torch.equal(flat(one), flat(several))


def test_a_checkpoint_goes_on_with_the_same_bits():
    optimizer = made(KeepsANumber, plan="8bit")
    for t in range(4):
        step(optimizer, t)
    again = made(KeepsANumber, plan="8bit")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(parameters(again), parameters(optimizer), strict=True):
            p.copy_(q)
    for t in range(4, 7):
        step(optimizer, t)
        step(again, t)
    assert torch.equal(flat(optimizer), flat(again))


@pytest.mark.parametrize("kind", [Estimates, BeginsByNorm])
@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_where_two_numbers_are_equal_the_step_runs_as_written(kind, plan):
    """And changes what the step changes, once."""
    ours, eager = made(kind, plan=plan), made(kind)
    start = flat(eager)
    for t in range(8):
        for optimizer in (ours, eager):
            if t in (0, 1):
                for p in parameters(optimizer):
                    p.grad = torch.zeros_like(p)
                optimizer.step()
            else:
                step(optimizer, t)
        allowed = 1e-5 if plan == "fp32" else 0.05
        assert (flat(ours) - flat(eager)).norm() <= allowed * (flat(eager) - start).norm()
        if kind is Estimates:
            torch.testing.assert_close(
                ours.param_groups[0]["average"], eager.param_groups[0]["average"], rtol=0.05, atol=0
            )
    assert runs_by_programs(ours)


def test_an_exchange_is_read_as_such():
    optimizer = made(ByAllNorms, plan="8bit")
    for t in range(2):
        step(optimizer, t)
    kinds = {p.title.split("rule")[0].strip() for p in baoc_compile.inspect(optimizer).programs}
    assert kinds == {"reductions for", "exports of", ""}
