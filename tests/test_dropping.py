"""Dropped slots: the step is that of the optimizer without the slot, with the same effective step size; and gains.

The measure is eager fp32 torch: baoc's error against the float64 optimizer may be twice eager's, plus half an ulp for
each step.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optimizers import Lion, ulps
from torch import Tensor

import baoc_compile
from baoc_compile import Plan, PlanError, StateError, StateTensor
from baoc_compile.runtime.lead_steps import own_function
from baoc_compile.runtime.session import session_of
from baoc_compile.state.plan import ParameterPlan

STEPS = 50
SHAPES = [(96, 64), (4500,), (10, 10)]
foreach_or_not = pytest.mark.parametrize("foreach", [False, True], ids=["", "foreach"])


def starts(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def run(optimizer, step: Callable, steps: int = STEPS) -> list[Tensor]:
    parameters, generator = optimizer.param_groups[0]["params"], torch.Generator().manual_seed(2)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        step()
    return [p.detach() for p in parameters]


def compiled(optimizer, plan) -> Callable:
    torch._dynamo.reset()
    baoc_compile.prepare(optimizer, plan=plan)
    return torch.compile(optimizer.step, backend="baoc", options={"plan": plan})


def assert_as_exact_as_eager(found: list[Tensor], eager: list[Tensor], exact: list[Tensor], steps: int = STEPS) -> None:
    for p, by_eager, wanted in zip(found, eager, exact, strict=True):
        scale = wanted.abs().max()
        allowed = 2 * ulps(by_eager, wanted, scale, torch.float32).max() + steps / 2
        assert ulps(p, wanted, scale, torch.float32).max() <= allowed


def check(plan, make: Callable, make_reduced: Callable, dropped: str) -> None:
    """`make` under `plan` is as near to `make_reduced` in float64 as eager `make_reduced` is; 10 x 10 stays as it is."""
    ours = make(starts())
    found = run(ours, compiled(ours, plan))
    eager, exact = (make_reduced(starts(dtype)) for dtype in (torch.float32, torch.float64))
    eager, exact = run(eager, eager.step), run(exact, exact.step)
    assert_as_exact_as_eager(found[:2], eager[:2], exact[:2])
    small, small_exact = make(starts()), make(starts(torch.float64))
    assert_as_exact_as_eager(found[2:], run(small, small.step)[2:], run(small_exact, small_exact.step)[2:])
    entries = [ours.state[p][dropped] for p in ours.param_groups[0]["params"]]
    assert [e.storage_bytes if isinstance(e, StateTensor) else "plain" for e in entries] == [0, 0, "plain"]
    assert torch.equal(entries[0].decode(), torch.zeros(SHAPES[0]))


@foreach_or_not
def test_adamw_without_momentum_is_beta_0(foreach):
    check(
        {"exp_avg": "dropped", "exp_avg_sq": "fp32"},
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, foreach=foreach),
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.0, 0.99), weight_decay=0.1),
        "exp_avg",
    )


@foreach_or_not
@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_without_momentum_keeps_its_effective_learning_rate(foreach, nesterov, weight_decay):
    """The buffer's limit is g / (1 - mu). Nesterov's g + mu g / (1 - mu) is the same number. It counts no steps."""
    options = {"weight_decay": weight_decay, "foreach": foreach}
    check(
        {"momentum_buffer": "dropped"},
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=nesterov, **options),
        lambda p: torch.optim.SGD(p, lr=1e-2 / (1 - 0.9), **options),
        "momentum_buffer",
    )


def test_the_first_step_of_sgd_is_at_the_limit():
    ours = torch.optim.SGD(starts(), lr=1e-2, momentum=0.75)
    exact = torch.optim.SGD(starts(torch.float64), lr=4e-2)
    found = run(ours, compiled(ours, {"momentum_buffer": "dropped"}), 1)
    for p, wanted in zip(found[:2], run(exact, exact.step, 1)[:2], strict=True):
        assert ulps(p, wanted, wanted.abs().max(), torch.float32).max() <= 1


class SignLike(torch.optim.Optimizer):
    """Adagrad with its sum in the steady state: t g^2."""

    def __init__(self, params, lr, eps):
        super().__init__(params, {"lr": lr, "eps": eps})
        self.t = 0

    @torch.no_grad()
    def step(self):
        self.t += 1
        for p in self.param_groups[0]["params"]:
            group = self.param_groups[0]
            p.addcdiv_(p.grad, (self.t * p.grad * p.grad).sqrt_().add_(group["eps"]), value=-group["lr"])


@foreach_or_not
def test_adagrads_sum_is_t_times_the_last_square(foreach):
    check(
        {"sum": "dropped"},
        lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=1e-3, foreach=foreach),
        lambda p: SignLike(p, lr=1e-2, eps=1e-3),
        "sum",
    )


REFUSING = {
    "exp_inf": lambda p: torch.optim.Adamax(p),
    "acc_delta": lambda p: torch.optim.Adadelta(p),
    "max_exp_avg_sq": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "exp_avg": lambda p: Lion(p),
    "square_avg": lambda p: torch.optim.RMSprop(p, centered=True),
    "grad_avg": lambda p: torch.optim.RMSprop(p, centered=True),
}


@pytest.mark.parametrize("codec", ["dropped", "row", "tensor"])
@pytest.mark.parametrize("key", REFUSING)
def test_slots_that_are_no_recurrence_refuse_by_name(key, codec):
    """An explicit plan raises; a uniform one keeps them in full precision and says why. Either way the rest works."""
    ours = REFUSING[key](starts())
    explicit = Plan(parameters={0: ParameterPlan("first", SHAPES[0], {key: codec})})
    with pytest.raises(PlanError, match=f"'{key}' of first as {codec}, but .*{key}"):
        baoc_compile.prepare(ours, plan=explicit)
    assert not ours.state
    baoc_compile.prepare(ours, plan={key: codec})
    decision = session_of(ours).storage.of(0).slots[key]
    assert decision.codec.name == "fp32" and f"'{key}'" in decision.reason
    if codec == "dropped":
        run(ours, torch.compile(ours.step, backend="baoc"), 1)


@foreach_or_not
def test_an_uncompiled_step_on_dropped_state_is_the_same_step(foreach):
    plan = {"exp_avg": "dropped", "*": "fp32"}
    ours, compiled = (torch.optim.AdamW(starts(), foreach=foreach) for _ in range(2))
    for optimizer in (ours, compiled):
        baoc_compile.prepare(optimizer, plan=plan)
    run(ours, ours.step, 3)
    run(compiled, torch.compile(compiled.step, backend="baoc"), 3)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (ours, compiled)), strict=True):
        assert torch.equal(p, q)
    dropped = ours.param_groups[0]["params"][0]
    assert ours.state[dropped]["exp_avg"].codec.name == "dropped"


@foreach_or_not
def test_what_reads_dropped_state_without_baoc_raises(foreach):
    """Such as a copy of the step that was made before baoc took its place."""
    ours = torch.optim.AdamW(starts(), foreach=foreach)
    as_written = own_function(ours)
    baoc_compile.prepare(ours, plan={"exp_avg": "dropped", "*": "fp32"})
    with pytest.raises(StateError, match="own step"):
        run(ours, torch.no_grad()(lambda: as_written(ours)), 1)
