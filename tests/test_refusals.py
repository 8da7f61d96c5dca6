"""Never silently wrong: what baoc cannot compress works as torch has it, raises, or warns once and says why."""

from __future__ import annotations

import warnings

import pytest
import torch

import baoc_compile
from baoc_compile import BaocWarning, OptionError, StateTensor, UnsupportedStep


def parameters(count=2, shape=(80, 64), dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for _ in range(count)]


def take_steps(step, params, count=3):
    for t in range(count):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i)).to(p.dtype)
        step()
    return [p.detach().clone() for p in params]


def compiled(optimizer, **options):
    return torch.compile(optimizer.step, backend="baoc", options=options or None)


def baoc_warnings(function) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(w.message) for w in caught if issubclass(w.category, BaocWarning)]


def test_fused_warns_once_and_steps_correctly(monkeypatch):
    monkeypatch.setattr("baoc_compile.runtime.notices._FUSED_NOTICED", [])
    params = parameters()
    step = compiled(torch.optim.AdamW(params, fused=True))
    messages = baoc_warnings(lambda: take_steps(step, params))
    assert len(messages) == 1 and "fused=False" in messages[0]
    expected = parameters()
    take_steps(torch.optim.AdamW(expected, fused=True).step, expected)
    assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))


def test_fused_outside_of_baoc_says_nothing(monkeypatch):
    monkeypatch.setattr("baoc_compile.runtime.notices._FUSED_NOTICED", [])
    params = parameters()
    assert not baoc_warnings(lambda: take_steps(torch.optim.AdamW(params, fused=True).step, params))


@pytest.mark.parametrize("option", ["fused", "differentiable"])
def test_prepare_refuses_by_name(option):
    optimizer = torch.optim.AdamW(parameters(), **{option: True})
    with pytest.raises(OptionError, match=rf"param_groups\[0\].*{option}=True.*{option}=False"):
        baoc_compile.prepare(optimizer)
    assert not optimizer.state


def test_differentiable_is_refused_when_compiled():
    leaves = parameters()
    params = [p * 1 for p in leaves]  # differentiable steps need parameters that are not leaves
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, differentiable=True)
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(Exception, match="differentiable=False"):
        compiled(optimizer)()


def test_a_closure_works():
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=1e-2)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    step = compiled(optimizer)
    losses = [step(closure).item() for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert isinstance(optimizer.state[params[0]]["exp_avg"], StateTensor)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.SparseAdam(list(p))]
)
def test_sparse_gradients_step_as_torch_does(make):
    results = []
    for use_baoc in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(100, 64, sparse=True)
        optimizer = make(table.parameters())
        step = compiled(optimizer) if use_baoc else optimizer.step
        for t in range(3):
            optimizer.zero_grad()
            table(torch.tensor([t, 7])).square().sum().backward()
            step()
        results.append(table.weight.detach())
    assert torch.equal(*results)


def test_complex_parameters_step_as_torch_does():
    results = []
    for use_baoc in (False, True):
        params = parameters(1, dtype=torch.complex64) + parameters(1)
        optimizer = torch.optim.AdamW(params, foreach=False)
        results.append(take_steps(compiled(optimizer) if use_baoc else optimizer.step, params))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert isinstance(optimizer.state[params[1]]["exp_avg"], StateTensor)  # the real one is compressed all the same
    assert not isinstance(optimizer.state[params[0]]["exp_avg"], StateTensor)


def test_lbfgs_works_uncompressed_and_prepare_says_why():
    params = parameters()
    optimizer = torch.optim.LBFGS(params)
    with pytest.raises(UnsupportedStep, match="closure"):
        baoc_compile.prepare(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    step = torch.compile(lambda: optimizer.step(closure), backend="baoc")
    first, second = step().item(), step().item()
    assert second < 1e-6 * first


def test_adafactor_works_uncompressed_and_prepare_warns():
    params, expected = parameters(), parameters()
    optimizer = torch.optim.Adafactor(params)
    messages = baoc_warnings(lambda: baoc_compile.prepare(optimizer))
    assert len(messages) == 1 and "row_var" in messages[0]
    take_steps(compiled(optimizer), params)
    take_steps(torch.optim.Adafactor(expected).step, expected)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(params, expected, strict=True))


@pytest.mark.parametrize("prepared", [True, False])
def test_muon_stores_its_momentum_in_8_bits(prepared):
    params, expected = parameters(), parameters()
    optimizer = torch.optim.Muon(params, lr=1e-2)
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    take_steps(compiled(optimizer, plan="8bit"), params)
    take_steps(torch.optim.Muon(expected, lr=1e-2).step, expected)
    assert optimizer.state[params[0]]["momentum_buffer"].codec.name == "softsign8"
    assert len(baoc_compile.inspect(optimizer).fallbacks) == len(params)
    for ours, theirs, start in zip(params, expected, parameters(), strict=True):
        moved = (theirs - start).norm()
        assert moved > 0 and (ours - theirs).norm() < 0.02 * moved


def test_a_step_traced_in_parts_warns():
    class Broken(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 1e-2})

        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("m", torch.zeros_like(p))
                self.state[p]["m"].mul_(0.9).add_(p.grad)
            torch._dynamo.graph_break()
            for p in self.param_groups[0]["params"]:
                p.sub_(self.state[p]["m"], alpha=1e-2)

    params, expected = parameters(), parameters()
    messages = baoc_warnings(lambda: take_steps(compiled(Broken(params)), params))
    take_steps(Broken(expected).step, expected)
    assert len(messages) == 1 and "in parts" in messages[0]
    for ours, theirs, start in zip(params, expected, parameters(), strict=True):
        assert (ours - theirs).norm() < 0.05 * (theirs - start).norm()


def test_centered_rmsprop_keeps_what_must_agree_exact():
    """E[g^2] - E[g]^2 of a constant gradient is tiny: rounding either term makes the root NaN."""
    params = parameters(1)
    optimizer = torch.optim.RMSprop(params, centered=True, momentum=0.9)
    baoc_compile.prepare(optimizer, plan="8bit")
    step = compiled(optimizer)
    for _ in range(50):
        params[0].grad = torch.ones_like(params[0])
        step()
    state = optimizer.state[params[0]]
    assert type(state["square_avg"]) is type(state["grad_avg"]) is torch.Tensor
    assert state["momentum_buffer"].codec.name == "softsign8"
    assert torch.isfinite(params[0]).all()
    (rule,) = baoc_compile.inspect(optimizer).rules
    assert "square root" in rule.slot("square_avg").why_exact
    with pytest.raises(baoc_compile.PlanError, match="square root"):
        forced = baoc_compile.Plan.from_json(
            baoc_compile.inspect(optimizer).plan.to_json().replace('"square_avg": "fp32"', '"square_avg": "sqrt8"')
        )
        baoc_compile.prepare(torch.optim.RMSprop(parameters(1), centered=True, momentum=0.9), plan=forced)


def test_other_compiled_code_is_left_alone():
    """A whole training step: forward, backward and clipping go to the inner backend, the optimizer step to baoc."""
    results = {}
    for backend in ("eager", "baoc"):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Tanh(), torch.nn.Linear(80, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def train_step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            return loss

        options = {"options": {"plan": "fp32", "inner_backend": "eager"}} if backend == "baoc" else {}
        step = torch.compile(train_step, backend=backend, **options)
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
        y = torch.arange(32) % 10
        results[backend] = [step(x, y).item() for _ in range(5)]
    assert results["baoc"] == pytest.approx(results["eager"], rel=1e-5)
    assert baoc_compile.inspect(optimizer).programs


def test_prepare_keeps_an_optimizers_own_attributes():
    """torch's optimizers pickle, and copy, without them."""

    class Scaled(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})
            self.scale, self.count = 2.0, torch.zeros(())

        @torch.no_grad()
        def step(self):
            self.count += 1
            for p in self.param_groups[0]["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].mul_(0.9).add_(p.grad * self.scale)
                p.sub_(state["m"], alpha=0.01)

    optimizer = Scaled([torch.nn.Parameter(torch.zeros(80, 64))])
    baoc_compile.prepare(optimizer, plan="8bit")
    (state,) = optimizer.state.values()
    assert state["m"].codec.name == "softsign8"
    assert optimizer.count == 0
