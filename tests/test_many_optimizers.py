"""Many optimizers, many patterns of absent gradients, many values of an option: nothing is read anew, no bit differs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from optimizers import decoded
from torch import Tensor, nn
from torch._dynamo.utils import counters

import baoc_compile
from baoc_compile.runtime import step_reader
from baoc_compile.runtime.session import session_of

#: Readings that an optimizer may need whatever its gradients and options do.
A_FEW = 5


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """No step may run as written."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", baoc_compile.BaocWarning)
        yield


@pytest.fixture
def readings(monkeypatch) -> list[Any]:
    """Filled with the parameters of every reading of a step."""
    made, read_step = [], step_reader.read_step

    def counted(table: Any, step: Any, present: frozenset[int], **options: Any) -> Any:
        made.append(present)
        return read_step(table, step, present, **options)

    monkeypatch.setattr(step_reader, "read_step", counted)
    return made


def parameters(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradient(parameter: Tensor, step: int, which: int = 0) -> Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * which + step))


def prepared(make: Callable[..., Any], over: Sequence[Tensor], plan: str = "fp32", **options: Any) -> Any:
    optimizer = make(over, **options)
    baoc_compile.prepare(optimizer, plan=plan)
    return optimizer


def bits(optimizer: Any) -> list[Tensor]:
    """The parameters and all their state."""
    found = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        found.append(parameter.detach().clone())
        entries = optimizer.state.get(parameter, {})
        found += [torch.as_tensor(decoded(entries[key])).clone() for key in sorted(entries)]
    return found


def assert_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a, b)


# optimizers


@pytest.mark.parametrize("plan", ["fp32", "8bit"])
@pytest.mark.parametrize(
    ("make", "options"),
    [(torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.RAdam, {"foreach": False})],
    ids=["AdamW", "SGD", "RAdam"],
)
def test_forty_optimizers_of_a_class(make, options, plan):
    """Each gives the bits of one that is alone, whether they are stepped in turn or one after the other."""
    shapes = [(64, 65), (7,)]

    def train(optimizer: Any, steps: Sequence[int]) -> None:
        for step in steps:
            for which, parameter in enumerate(optimizer.param_groups[0]["params"]):
                parameter.grad = gradient(parameter, step, which)
            optimizer.step()

    alone = prepared(make, parameters(shapes), plan, **options)
    train(alone, range(8))
    many = [prepared(make, parameters(shapes), plan, **options) for _ in range(40)]
    for step in range(4):
        for optimizer in many:
            train(optimizer, [step])
    for optimizer in many:
        train(optimizer, range(4, 8))
        assert_equal(bits(optimizer), bits(alone))


@pytest.mark.parametrize("backend", ["baoc", "eager"])
def test_many_optimizers_that_are_compiled(backend, caplog):
    """torch stops to compile a function, and logs it, after some recompilations; Dynamo has nothing to compile here."""
    torch._dynamo.reset()
    optimizers = [torch.optim.AdamW(parameters([(64, 65)])) for _ in range(40)]
    if backend == "baoc":
        steps = [torch.compile(o.step, backend="baoc", options={"plan": "8bit"}) for o in optimizers]
    else:
        for optimizer in optimizers:
            baoc_compile.prepare(optimizer, plan="8bit")
        steps = [torch.compile(o.step, backend="eager") for o in optimizers]
    counters.clear()
    for count, (optimizer, step) in itertools.product(range(2), list(zip(optimizers, steps, strict=True))):
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = gradient(parameter, count)
        step()
    for optimizer in optimizers:
        assert session_of(optimizer).own.count == 2
        assert_equal(bits(optimizer), bits(optimizers[0]))
        (state,) = optimizer.state.values()
        assert isinstance(state["exp_avg"], baoc_compile.StateTensor)
    assert not counters["frames"] and not counters["stats"] and not caplog.records


def test_options_of_one_optimizer_are_not_those_of_another():
    """Optimizers that share programs differ in their numbers."""
    rates = [0.001 * (k + 1) for k in range(12)]
    many = [prepared(torch.optim.AdamW, parameters([(33,)]), lr=rate, weight_decay=10 * rate) for rate in rates]
    plain = [torch.optim.AdamW(parameters([(33,)]), lr=rate, weight_decay=10 * rate) for rate in rates]
    for step, optimizer in itertools.product(range(5), [*many, *plain]):
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = gradient(parameter, step)
        optimizer.step()
    for ours, eager in zip(many, plain, strict=True):
        torch.testing.assert_close(bits(ours), bits(eager), rtol=1e-5, atol=1e-6)


# absent gradients


SHAPES = [(5,), (3, 4), (), (33,), (2, 3, 2), (17,), (1,), (8, 8)]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.AdamW, {"foreach": False}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    ],
    ids=["AdamW", "AdamW-foreach", "SGD"],
)
def test_every_pattern_of_absent_gradients(readings, make, options):
    """All 256 over 8 parameters: each one's bits are those of an optimizer that has no other parameter."""
    together = prepared(make, parameters(SHAPES), **options)
    apart = [prepared(make, [parameter], **options) for parameter in parameters(SHAPES)]
    readings.clear()
    order = torch.randperm(2 ** len(SHAPES), generator=torch.Generator().manual_seed(0)).tolist()
    for step, pattern in enumerate(order):
        for which, parameter in enumerate(together.param_groups[0]["params"]):
            parameter.grad = gradient(parameter, step, which) if pattern >> which & 1 else None
        together.step()
    count = len(readings)
    for which, optimizer in enumerate(apart):
        (parameter,) = optimizer.param_groups[0]["params"]
        for step, pattern in enumerate(order):
            if pattern >> which & 1:
                parameter.grad = gradient(parameter, step, which)
                optimizer.step()
    assert_equal(bits(together), [b for optimizer in apart for b in bits(optimizer)])
    # a buffer that begins as the first gradient makes a parameter's first step another one
    assert count <= A_FEW + (len(SHAPES) if "dampening" in options else 0), f"{count} readings"


@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_parameters_join_one_by_one(readings, plan):
    """Gradients that come late: the counters of parameters differ from then on. In "8bit", launches do too."""
    shapes = [(64, 65), *SHAPES[:3], (70, 64), *SHAPES[3:]]
    together = prepared(torch.optim.AdamW, parameters(shapes), plan)
    apart = [prepared(torch.optim.AdamW, [parameter], plan) for parameter in parameters(shapes)]
    readings.clear()
    for step in range(12):
        for which, parameter in enumerate(together.param_groups[0]["params"]):
            parameter.grad = gradient(parameter, step, which) if which <= step else None
        together.step()
    assert len(readings) <= A_FEW
    for which, optimizer in enumerate(apart):
        (parameter,) = optimizer.param_groups[0]["params"]
        for step in range(which, 12):
            parameter.grad = gradient(parameter, step, which)
            optimizer.step()
    # stochastic rounding depends on a parameter's place; counters and full precision do not
    for ours, optimizer in zip(together.param_groups[0]["params"], apart, strict=True):
        (theirs,) = optimizer.param_groups[0]["params"]
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0 if plan == "fp32" else 1e-4)
        assert together.state[ours]["step"] == optimizer.state[theirs]["step"]


def test_a_small_parameter_between_large_ones_is_stepped_alone():
    """Large and small ones have different launches and the same numbers; each number goes to its own parameter."""
    shapes = [(64, 65), (9,), (70, 64), (7,)]
    ours, eager = prepared(torch.optim.AdamW, parameters(shapes), "8bit"), torch.optim.AdamW(parameters(shapes))
    for step, optimizer in itertools.product(range(6), (ours, eager)):
        for which, parameter in enumerate(optimizer.param_groups[0]["params"]):
            parameter.grad = gradient(parameter, step, which) if step < 3 or which == 1 else None
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
    small = (optimizer.param_groups[0]["params"][1] for optimizer in (ours, eager))
    torch.testing.assert_close(*small, rtol=1e-5, atol=1e-6)


# options


@pytest.mark.parametrize("option", ["lr", "weight_decay", "eps"])
def test_a_thousand_values_of_an_option(readings, option):
    """Schedules need no reading, and give eager's results."""
    ours, eager = prepared(torch.optim.AdamW, parameters([(33,)])), torch.optim.AdamW(parameters([(33,)]))
    for step in range(1000):
        for optimizer in (ours, eager):
            (parameter,) = optimizer.param_groups[0]["params"]
            parameter.grad = gradient(parameter, step)
            optimizer.param_groups[0][option] = 1e-3 * (1 + (37 * step % 1000) / 1000)
            optimizer.step()
    torch.testing.assert_close(bits(ours), bits(eager), rtol=1e-4, atol=1e-5)
    assert len(readings) <= A_FEW, f"{len(readings)} readings"


def test_a_weight_decay_that_comes_and_goes(readings):
    """Zero is another branch of the step; it is read once."""
    ours, eager = (
        make(torch.optim.SGD) for make in (lambda c: prepared(c, parameters([(33,)])), lambda c: c(parameters([(33,)])))
    )
    for step in range(100):
        for optimizer in (ours, eager):
            (parameter,) = optimizer.param_groups[0]["params"]
            parameter.grad = gradient(parameter, step)
            optimizer.param_groups[0]["weight_decay"] = 0.01 * (step % 3)
            optimizer.step()
    torch.testing.assert_close(bits(ours), bits(eager), rtol=1e-5, atol=1e-6)
    assert len(readings) <= A_FEW, f"{len(readings)} readings"


# optimizers that share a backward pass


@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_an_optimizer_for_every_parameter_stepped_in_backward(plan):
    """The gradient of each parameter is used and dropped while the backward pass goes on."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(70, 64), nn.Tanh(), nn.Linear(64, 70), nn.Tanh(), nn.Linear(70, 1))

    hooked, plain = network(), network()
    inside = {p: prepared(torch.optim.AdamW, [p], plan) for p in hooked.parameters()}
    after = {p: prepared(torch.optim.AdamW, [p], plan) for p in plain.parameters()}

    def step(parameter: Tensor) -> None:
        inside[parameter].step()
        parameter.grad = None

    for parameter in inside:
        parameter.register_post_accumulate_grad_hook(step)
    for k in range(6):
        data = torch.randn(16, 70, generator=torch.Generator().manual_seed(k))
        hooked(data).square().mean().backward()
        plain(data).square().mean().backward()
        for optimizer in after.values():
            optimizer.step()
            optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in inside)
    for a, b in zip(inside.values(), after.values(), strict=True):
        assert_equal(bits(a), bits(b))


@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_two_halves_stepped_in_turn(plan):
    """A generator and a discriminator: the backward pass of either leaves gradients in the other."""

    def halves() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        return nn.Linear(70, 64), nn.Linear(64, 70)

    def train(step: Callable[[Any], None], make: Callable[[nn.Module], Any]) -> list[Tensor]:
        generator, discriminator = halves()
        first, second = make(generator), make(discriminator)
        for k in range(8):
            data = torch.randn(16, 70, generator=torch.Generator().manual_seed(k))
            discriminator(torch.tanh(generator(data))).square().mean().backward()
            step((first, second)[k % 2])
            (first, second)[k % 2].zero_grad()
        return [*bits(first), *bits(second)]

    def make(half: nn.Module) -> Any:
        return prepared(torch.optim.AdamW, list(half.parameters()), plan)

    ours = train(lambda optimizer: optimizer.step(), make)
    again = train(lambda optimizer: optimizer.step(), make)
    assert_equal(ours, again)
    if plan == "fp32":
        eager = train(lambda optimizer: optimizer.step(), lambda half: torch.optim.AdamW(half.parameters()))
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)


def test_a_parameter_of_two_optimizers():
    """Each has state of its own, and both change the parameter."""
    (shared,), (expected,) = parameters([(33,)]), parameters([(33,)])
    ours = [prepared(torch.optim.AdamW, [shared]), prepared(torch.optim.SGD, [shared], momentum=0.9)]
    eager = [torch.optim.AdamW([expected]), torch.optim.SGD([expected], momentum=0.9)]
    for step in range(8):
        shared.grad, expected.grad = gradient(shared, step), gradient(shared, step)
        ours[step % 2].step()
        eager[step % 2].step()
    torch.testing.assert_close(shared, expected, rtol=1e-5, atol=1e-6)
    assert session_of(ours[0]) is not session_of(ours[1])
