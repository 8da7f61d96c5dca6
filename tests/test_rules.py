"""Reading rules out of graphs: slots, signs, classes, the prelude, reordered in-place arithmetic."""

from __future__ import annotations

import pytest
import torch
from optimizers import decoded, reading_of, rule_of

import baoc_compile
from baoc_compile import StateTensor

NONNEGATIVE = {
    "AdamW": {"exp_avg_sq"},
    "Adam": {"exp_avg_sq", "max_exp_avg_sq"},
    "NAdam": {"exp_avg_sq"},
    "RAdam": {"exp_avg_sq"},
    "Adamax": {"exp_inf"},
    "Adagrad": {"sum"},
    "RMSprop": {"square_avg"},
    "Adadelta": {"square_avg", "acc_delta"},
    "Rprop": {"step_size"},
    "ASGD": set(),
    "SGD": set(),
}
OPTIONS = {"Adam": {"amsgrad": True}, "SGD": {"momentum": 0.9}}


def optimizer(name, params=None):
    params = params or [torch.nn.Parameter(torch.randn(6, 5))]
    return getattr(torch.optim, name)(params, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", NONNEGATIVE)
@pytest.mark.parametrize("foreach", [False, True])
def test_signs_are_proven_from_the_traced_step(name, foreach):
    params = [torch.nn.Parameter(torch.randn(6, 5))]
    ours = getattr(torch.optim, name)(params, **OPTIONS.get(name, {}), foreach=foreach)
    step = torch.compile(ours.step, backend="baoc")
    for _ in range(2):
        params[0].grad = torch.randn(6, 5)
        step()
    (rule,) = baoc_compile.inspect(ours).rules
    assert {s.key for s in rule.slots if s.nonnegative} == NONNEGATIVE[name]
    assert not any(s.why_exact for s in rule.slots)


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_a_reading_finds_the_same_slots_and_first_values(name):
    ours = optimizer(name)
    reading = reading_of(ours)
    stock = optimizer(name, [torch.nn.Parameter(torch.randn(6, 5))])
    (p,) = stock.param_groups[0]["params"]
    before = set(stock.state[p])
    p.grad = torch.zeros(6, 5)
    stock.step()
    beginnings = reading.beginnings.get(0, {})
    assert set(beginnings) | before == set(stock.state[p])
    assert {s.key for s in reading.rules[0].slots if s.nonnegative} == NONNEGATIVE[name]
    baoc_compile.prepare(ours, plan="fp32")
    (q,) = ours.param_groups[0]["params"]
    expected = {"step_size": 1e-2, "eta": 1e-2, "mu": 1.0, "mu_product": 1.0}  # the first two: the learning rate
    assert set(ours.state[q]) == set(stock.state[p])
    for key, value in ours.state[q].items():
        assert value.shape == stock.state[p][key].shape
        assert torch.all(value == torch.tensor(expected.get(key, 0.0)))


def test_what_cannot_be_filled_in_is_made_by_the_first_step():
    dampened = torch.optim.SGD([torch.nn.Parameter(torch.randn(80, 64))], momentum=0.9, dampening=0.5)
    baoc_compile.prepare(dampened, plan="8bit")
    assert not dampened.state  # its first step copies the gradient, undampened
    (p,) = dampened.param_groups[0]["params"]
    p.grad = torch.randn(80, 64)
    dampened.step()
    assert dampened.state[p]["momentum_buffer"].codec.name == "e2m5"


class MadeBefore(torch.optim.Optimizer):
    """Makes its state in the constructor, as Adagrad did until torch 2.11."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"step": torch.tensor(0.0), "sum": torch.full_like(p, 0.1)}

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["step"] += 1
            state["sum"].addcmul_(p.grad, p.grad)
            p.sub_(1e-2 / (1 + 0.1 * state["step"]) * p.grad / state["sum"].sqrt().add_(1e-8))


@pytest.mark.parametrize("shape", [(80, 64), ()])
def test_state_that_the_constructor_makes_is_prepared(shape):
    """Twice: by then the state is stored by a codec."""
    ours, theirs = (MadeBefore([torch.nn.Parameter(torch.ones(shape))]) for _ in range(2))
    for _ in range(2):
        baoc_compile.prepare(ours, plan="8bit")
        (slot,) = rule_of(ours).slots
        assert slot.key == "sum" and slot.nonnegative
    step = torch.compile(ours.step, backend="baoc", options={"plan": "8bit"})
    (p,), (q,) = (o.param_groups[0]["params"] for o in (ours, theirs))
    for t in range(3):
        p.grad = q.grad = torch.full(shape, 0.5 + t)
        step()
        theirs.step()
    assert baoc_compile.inspect(ours).programs
    assert float(ours.state[p]["step"]) == 3
    stored = ours.state[p]["sum"]
    assert isinstance(stored, StateTensor) == bool(shape)  # one number is not worth a scale
    relative = stored.codec.relative_error if shape else 1e-6
    torch.testing.assert_close(decoded(stored), theirs.state[q]["sum"], rtol=3 * relative, atol=0)
    torch.testing.assert_close(1 - p, 1 - q, rtol=3 * relative, atol=0)


class SharedClock(torch.optim.Optimizer):
    """One step counter for all parameters, changed in place, and a global gradient norm."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})
        self.clock = torch.zeros(())

    @torch.no_grad()
    def step(self):
        params = self.param_groups[0]["params"]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in params]))
        self.clock.add_(1)
        scale = 1 / (norm + 1e-6) / self.clock.sqrt()
        for p in params:
            state = self.state[p]
            if not state:
                state["m"] = torch.zeros_like(p)
            state["m"].mul_(0.9).add_(p.grad * scale)
            p.sub_(state["m"], alpha=self.param_groups[0]["lr"])


class WriteAfterRead(torch.optim.Optimizer):
    """Overwrites an intermediate in place after another value was computed from it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["m"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())
            state["step"] += 1
            scale = 1.0 / state["step"]
            doubled = scale * 2
            scale.mul_(0.5).add_(0.25)
            before = p.grad * 1.0
            after = before * doubled
            before.mul_(scale)
            state["m"].add_(before).mul_(0.9)
            p.sub_(after + state["m"], alpha=1e-2)


def eager_and_compiled(cls, shapes, **options):
    """Parameters after 4 steps of each, and the optimizer that was compiled."""
    results = []
    for use_baoc in (False, True):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
        ours = cls(params)
        step = torch.compile(ours.step, backend="baoc", options=options) if use_baoc else ours.step
        for t in range(4):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i))
            step()
        results.append([p.detach() for p in params])
    return *results, ours


@pytest.mark.parametrize("cls", [SharedClock, WriteAfterRead])
def test_unusual_but_elementwise_steps_equal_eager(cls):
    eager, compiled, ours = eager_and_compiled(cls, [(6, 5), (7,), ()], plan="fp32")
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    inspection = baoc_compile.inspect(ours)
    assert not inspection.fallbacks and len(inspection.rules) == 1
    if cls is SharedClock:
        assert ours.clock.item() == 4  # counted once a step, not once a parameter


class LayerwiseScaled(torch.optim.Optimizer):
    """LAMB-like: the norm of the update itself, for which a launch of its own precedes the update."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["m"] = torch.zeros_like(p)
            state["m"].mul_(0.9).add_(p.grad)
            p.sub_(state["m"] * (p.norm() / state["m"].norm()), alpha=1e-2)


def test_a_reduction_of_computed_values_is_a_launch_of_its_own():
    eager, compiled, ours = eager_and_compiled(LayerwiseScaled, [(80, 64)] * 2, plan="8bit", inner_backend="eager")
    inspection = baoc_compile.inspect(ours)
    assert not inspection.fallbacks
    assert [p.title.split(" for ")[0].split(" (")[0].split()[0] for p in inspection.programs] == ["reductions", "rule"]
    assert ours.state[ours.param_groups[0]["params"][0]]["m"].codec.name == "e2m5"
    for a, b in zip(eager, compiled, strict=True):
        assert (a - b).norm() < 1e-2 * a.norm()
