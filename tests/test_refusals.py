"""Never silently wrong: what baoc cannot compress works as torch has it, raises, or warns once and says why."""

from __future__ import annotations

import warnings

import pytest
import torch

import baoc_compile
from baoc_compile import BaocWarning, OptionError, StateTensor


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


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad"])
def test_fused_is_what_it_is_without(name, prepared):
    """torch's own fused kernels compute the same: baoc reads the step as it is without them."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    results = []
    for fused in (True, False):
        params = parameters()
        optimizer = getattr(torch.optim, name)(params, lr=1e-2, fused=fused, **options)
        if prepared:
            baoc_compile.prepare(optimizer, plan="8bit")
        step = optimizer.step if prepared else compiled(optimizer, plan="8bit")
        assert not baoc_warnings(lambda step=step, params=params: take_steps(step, params))
        assert any(isinstance(value, StateTensor) for value in optimizer.state[params[0]].values())
        assert all(group["fused"] is fused for group in optimizer.param_groups)
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_fused_in_full_precision_is_torchs_fused_step():
    params, expected = parameters(), parameters()
    take_steps(compiled(torch.optim.AdamW(params, fused=True), plan="fp32"), params)
    take_steps(torch.optim.AdamW(expected, fused=True).step, expected)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(params, expected, strict=True))


def test_fused_outside_of_baoc_is_left_alone():
    params, expected = parameters(), parameters()
    optimizer = torch.optim.AdamW(params, fused=True)
    assert not baoc_warnings(lambda: take_steps(optimizer.step, params))
    assert not any(isinstance(value, StateTensor) for value in optimizer.state[params[0]].values())
    take_steps(torch.compile(torch.optim.AdamW(expected, fused=True).step, backend="eager"), expected)
    assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))


def test_prepare_refuses_differentiable_by_name():
    optimizer = torch.optim.AdamW(parameters(), differentiable=True)
    with pytest.raises(OptionError, match=r"param_groups\[0\].*differentiable=True.*differentiable=False"):
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


def test_lbfgs_steps_as_written_and_one_warning_says_why():
    """`prepare` can't know how the step is called: that it can't be read shows when it is called with its closure."""

    def losses(optimizer):
        def closure():
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in optimizer.param_groups[0]["params"])
            loss.backward()
            return loss

        return [optimizer.step(closure).item() for _ in range(3)]

    ours, found = torch.optim.LBFGS(parameters()), []
    assert not baoc_warnings(lambda: baoc_compile.prepare(ours))
    messages = baoc_warnings(lambda: found.extend(losses(ours)))
    assert len(messages) == 1 and "LBFGS" in messages[0] and "values of a tensor" in messages[0]
    assert found == losses(torch.optim.LBFGS(parameters())) and found[1] < 1e-6 * found[0]


class Clipped(torch.optim.Optimizer):
    """Steps by gradients that are clipped only where they are long."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            if p.grad.norm() > 1.0:
                p.grad.div_(p.grad.norm())
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


def test_a_step_that_branches_on_values_runs_as_written_and_one_warning_says_why():
    params, expected = parameters(), parameters()
    optimizer = Clipped(params)
    assert not baoc_warnings(lambda: baoc_compile.prepare(optimizer))
    messages = baoc_warnings(lambda: take_steps(compiled(optimizer), params, 4))
    assert len(messages) == 1 and "Clipped" in messages[0] and "values of a tensor" in messages[0]
    take_steps(Clipped(expected).step, expected, 4)
    assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))
    with pytest.raises(baoc_compile.StateError, match="runs as written, since it branches"):
        baoc_compile.inspect(optimizer)


def test_adafactor_has_programs():
    """Its norms become Python numbers, of which it takes the larger; its moments are numbers of rows and columns."""
    params, expected = parameters(), parameters()
    optimizer = torch.optim.Adafactor(params)
    assert not baoc_warnings(lambda: baoc_compile.prepare(optimizer, plan="fp32"))
    assert not baoc_warnings(lambda: take_steps(compiled(optimizer, plan="fp32"), params, 4))
    take_steps(torch.optim.Adafactor(expected).step, expected, 4)
    for ours, theirs in zip(params, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert not baoc_compile.inspect(optimizer).fallbacks


@pytest.mark.parametrize("prepared", [True, False])
def test_muon_stores_its_momentum_in_8_bits(prepared):
    params, expected = parameters(), parameters()
    optimizer = torch.optim.Muon(params, lr=1e-2)
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    take_steps(compiled(optimizer, plan="8bit"), params)
    take_steps(torch.optim.Muon(expected, lr=1e-2).step, expected)
    assert optimizer.state[params[0]]["momentum_buffer"].codec.name == "e2m5"
    assert len(baoc_compile.inspect(optimizer).fallbacks) == len(params)
    for ours, theirs, start in zip(params, expected, parameters(), strict=True):
        moved = (theirs - start).norm()
        assert moved > 0 and (ours - theirs).norm() < 0.02 * moved


def test_a_step_that_breaks_graphs_is_fused_all_the_same():
    """Dynamo would trace it in two parts; a recording doesn't notice."""

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
    optimizer = Broken(params)
    assert not baoc_warnings(lambda: take_steps(compiled(optimizer, plan="8bit"), params))
    take_steps(Broken(expected).step, expected)
    inspection = baoc_compile.inspect(optimizer)
    assert not inspection.fallbacks and len(inspection.programs) == 1
    for ours, theirs, start in zip(params, expected, parameters(), strict=True):
        assert optimizer.state[ours]["m"].codec.name == "e2m5"
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
    assert state["momentum_buffer"].codec.name == "e2m5"
    assert torch.isfinite(params[0]).all()
    (rule,) = baoc_compile.inspect(optimizer).rules
    assert "square root" in rule.slot("square_avg").why_exact
    with pytest.raises(baoc_compile.PlanError, match="square root"):
        forced = baoc_compile.Plan.from_json(
            baoc_compile.inspect(optimizer).plan.to_json().replace('"square_avg": "fp32"', '"square_avg": "e3m5"')
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
    assert state["m"].codec.name == "e2m5"
    assert optimizer.count == 0
