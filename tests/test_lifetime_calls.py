"""However a prepared optimizer's step is called, it is the same step: by schedulers, scalers, hooks, closures, compilers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from optimizers import Plain
from test_lifetime import SHAPES, assert_runs_programs, assert_same, bits, give_gradients, made, of, parameters, train
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.runtime.session import known_session

pytestmark = pytest.mark.filterwarnings("error::baoc_compile.BaocWarning")

CLASSES = [torch.optim.AdamW, torch.optim.RAdam, Plain]


# schedulers, hooks, bound methods


def schedulers() -> list[Callable[[Any], Any]]:
    rates = torch.optim.lr_scheduler
    return [
        lambda o: rates.StepLR(o, 2, 0.5),
        lambda o: rates.LambdaLR(o, lambda k: 1 / (k + 1)),
        lambda o: rates.LinearLR(o, 0.1, total_iters=4),
        lambda o: rates.OneCycleLR(o, max_lr=0.1, total_steps=20),
        lambda o: rates.CosineAnnealingLR(o, 5),
    ]


@pytest.mark.parametrize("schedule", schedulers(), ids=["step", "lambda", "linear", "one cycle", "cosine"])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_scheduler_made_before_or_after(schedule, foreach):
    """Both give eager's learning rates, and eager's results."""
    runs = []
    for when in ("eager", "before", "after"):
        optimizer = made(plan=None, foreach=foreach)
        if when == "after":
            baoc_compile.prepare(optimizer, plan="fp32")
        scheduler = schedule(optimizer)
        if when == "before":
            baoc_compile.prepare(optimizer, plan="fp32")
        rates = []
        for k in range(8):
            train(optimizer, [k])
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        if when != "eager":
            assert_runs_programs(optimizer)
        runs.append((rates, optimizer))
    (eager_rates, eager), (_, before), (_, after) = runs
    assert all(rates == eager_rates for rates, _ in runs)
    assert_same(before, after)
    torch.testing.assert_close(bits(before), bits(eager), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", CLASSES)
def test_a_step_that_was_bound_before(make):
    """`step = optimizer.step` above `prepare` runs programs too."""
    optimizer, other = make(parameters()), made(make)
    step = optimizer.step
    baoc_compile.prepare(optimizer, plan="8bit")
    train(optimizer, range(4), step)
    train(other, range(4))
    if make is not Plain:  # a class of its own has nothing between the bound method and its code
        assert_runs_programs(optimizer)
        assert_same(optimizer, other)


def test_hooks_run_once():
    """Those of the optimizer and of all optimizers, registered before or after; one that changes the arguments counts."""
    calls: list[str] = []
    optimizer = made(plan=None)

    def noted(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    handles = [
        optimizer.register_step_pre_hook(noted("pre")),
        optimizer.register_step_post_hook(noted("post")),
        register_optimizer_step_pre_hook(noted("all pre")),
        register_optimizer_step_post_hook(noted("all post")),
    ]
    try:
        baoc_compile.prepare(optimizer, plan="8bit")
        handles.append(optimizer.register_step_post_hook(noted("late")))
        for k in range(3):
            calls.clear()
            train(optimizer, [k])
            assert sorted(calls) == ["all post", "all pre", "late", "post", "pre"]
    finally:
        for handle in handles:
            handle.remove()
    assert_runs_programs(optimizer)


def test_the_step_of_a_subclass_calls_that_of_its_base():
    """A step that does more than its base's, with the base's through `super`."""

    class Louder(torch.optim.AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] *= 0.9
            return super().step(closure)

    ours, eager = made(Louder, "fp32"), made(Louder, None)
    train(ours, range(5))
    train(eager, range(5))
    assert ours.param_groups[0]["lr"] == eager.param_groups[0]["lr"]
    torch.testing.assert_close(bits(ours), bits(eager), rtol=1e-5, atol=1e-6)


# closures


@pytest.mark.parametrize("foreach", [False, True])
def test_closures_are_called_first_and_with_gradients_enabled(foreach):
    """Once a step, before anything changes; the step returns what they return."""
    ours, eager = made(plan="fp32", foreach=foreach), made(plan=None, foreach=foreach)
    seen: list[Any] = []

    def loss_of(optimizer: Any) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            seen.append((torch.is_grad_enabled(), of(optimizer)[0].detach().clone()))
            optimizer.zero_grad()
            loss = sum((p - 1).square().sum() for p in of(optimizer))
            loss.backward()
            return loss

        return closure

    for _ in range(5):
        for optimizer in (ours, eager):
            before = of(optimizer)[0].detach().clone()
            seen.clear()
            with torch.no_grad():
                loss = optimizer.step(loss_of(optimizer))
            assert len(seen) == 1 and seen[0][0] and torch.equal(seen[0][1], before)
            assert isinstance(loss, Tensor) and loss.requires_grad
    assert_runs_programs(ours)
    torch.testing.assert_close(bits(ours), bits(eager), rtol=1e-5, atol=1e-6)


def test_steps_with_and_without_a_closure_alternate():
    ours, plain = made(plan="fp32"), made(plan="fp32")
    for k in range(6):
        train(plain, [k])
        loss = torch.tensor(float(k))

        def closure(k: int = k, loss: Tensor = loss) -> Tensor:
            give_gradients(ours, k)
            return loss

        if k % 2:
            assert ours.step(closure=closure) is loss
        else:
            train(ours, [k])
    assert_runs_programs(ours)
    assert_same(ours, plain)


def test_a_closure_that_is_evaluated_again_and_again():
    """LBFGS calls it many times within a step: every one is the user's, from the first step on."""
    counts, results = [], []
    for plan in (None, "fp32"):
        optimizer, calls = made(torch.optim.LBFGS, plan, lr=0.1), []

        def closure(optimizer: Any = optimizer, calls: list[int] = calls) -> Tensor:
            calls.append(0)
            optimizer.zero_grad()
            weights = [torch.arange(1.0, p.numel() + 1).view(p.shape) / p.numel() for p in of(optimizer)]
            loss = sum((p.square() * w).sum() for p, w in zip(of(optimizer), weights, strict=True))
            loss.backward()
            return loss

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", baoc_compile.BaocWarning)
            for _ in range(2):
                optimizer.step(closure)
        counts.append(len(calls))
        results.append(of(optimizer))
    assert counts[0] == counts[1]
    for theirs, mine in zip(*results, strict=True):
        assert torch.equal(theirs, mine)


# scalers


@pytest.mark.parametrize("when", [0, 3], ids=["first", "later"])
def test_a_step_that_found_inf_is_skipped(when):
    """Parameters, state and counters stay as they are."""
    optimizer, other = made(), made()
    for k in range(6):
        give_gradients(optimizer, k)
        if k == when:
            before = bits(optimizer)
            optimizer.found_inf = torch.tensor(1.0)
            optimizer.step()
            assert all(map(torch.equal, before, bits(optimizer)))
            optimizer.found_inf = torch.tensor(0.0)
        else:
            optimizer.step()
            train(other, [k])
    assert_runs_programs(optimizer)
    assert_same(optimizer, other)


@pytest.mark.parametrize("fused", [None, True])
def test_gradients_are_unscaled(fused):
    """`grad_scale` is what a scaler leaves to optimizers that unscale themselves; a power of two costs no bit."""
    optimizer, other = made(fused=fused), made(fused=fused)
    for k in range(5):
        give_gradients(optimizer, k)
        for parameter in of(optimizer):
            parameter.grad *= 1024
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        train(other, [k])
    assert_runs_programs(optimizer)
    assert_same(optimizer, other)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": False}], ids=["default", "fused", "single"])
def test_the_gradient_scaler_of_torch(options):
    """A step with an infinite gradient is skipped, and the scale goes down; all others are as without a scaler."""
    optimizer, other = made(**options), made(**options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for k in range(5):
        give_gradients(optimizer, k)
        for parameter in of(optimizer):
            parameter.grad *= scaler.get_scale()
        scaler.scale(torch.ones(()))
        if k == 2:
            of(optimizer)[0].grad[0, 0] = float("inf")
        else:
            train(other, [k])
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512.0
    assert_runs_programs(optimizer)
    assert_same(optimizer, other)


# compilers


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize(
    ("backend", "fullgraph"),
    [*itertools.product(("baoc", "eager"), (False, True)), ("inductor", False), ("inductor", True)],
)
def test_a_compiled_step_is_the_prepared_one(make, backend, fullgraph):
    optimizer, other = made(make), made(make)
    step = torch.compile(optimizer.step, backend=backend, fullgraph=fullgraph)
    train(optimizer, range(4), step)
    train(other, range(4))
    assert_runs_programs(optimizer)
    assert_same(optimizer, other)


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_and_not_prepared(make, fullgraph):
    """The backend alone makes it the same step."""
    optimizer, other = make(parameters()), made(make)
    step = torch.compile(optimizer.step, backend="baoc", fullgraph=fullgraph, options={"plan": "8bit"})
    train(optimizer, range(4), step)
    train(other, range(4))
    assert_runs_programs(optimizer)
    assert_same(optimizer, other)


@pytest.mark.parametrize("backend", ["baoc", "eager"])
def test_a_step_inside_a_compiled_training_step(backend):
    """A compiled function that does more than step."""
    optimizer, other = made(), made()

    def whole() -> Tensor:
        optimizer.step()
        return of(optimizer)[0].sum() * 2

    compiled = torch.compile(whole, backend=backend)
    for k in range(4):
        give_gradients(optimizer, k)
        assert torch.equal(compiled(), of(optimizer)[0].sum() * 2)
        train(other, [k])
    assert_same(optimizer, other)


# options and wrappers


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_implementations_are_accepted(make, options):
    """`fused` and `foreach` are ways to run the same step."""
    optimizer, other = made(make, lr=0.01, **options), made(make, lr=0.01)
    train(optimizer, range(4))
    train(other, range(4))
    assert_runs_programs(optimizer)
    assert [g["fused"] for g in optimizer.param_groups] == [options.get("fused")]
    torch.testing.assert_close(of(optimizer), of(other), rtol=1e-6, atol=1e-7)
    baoc_compile.restore(optimizer)
    train(optimizer, [4])


class Wrapper:
    """What trainers put around an optimizer."""

    def __init__(self, optimizer: Any, name: str = "optimizer"):
        setattr(self, name, optimizer)
        self._inner = optimizer

    @property
    def param_groups(self) -> Sequence[Any]:
        return self._inner.param_groups

    def step(self) -> None:
        self._inner.step()


@pytest.mark.parametrize("name", ["optimizer", "base_optimizer", "optim"])
@pytest.mark.parametrize("depth", [1, 3])
def test_wrappers_are_followed(name, depth):
    inner, other = torch.optim.AdamW(parameters(SHAPES)), made()
    wrapper: Any = inner
    for _ in range(depth):
        wrapper = Wrapper(wrapper, name)
    baoc_compile.prepare(wrapper, plan="8bit")
    train(inner, range(3), wrapper.step)
    train(other, range(3))
    assert_runs_programs(inner)
    assert_same(inner, other)
    baoc_compile.restore(wrapper)
    assert known_session(inner) is None
    assert not any(isinstance(v, StateTensor) for entries in inner.state.values() for v in entries.values())
