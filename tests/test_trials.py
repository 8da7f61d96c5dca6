"""Trials: signs that only sampling can prove, state that must stay exact, and optimizers drawn from both kinds."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.runtime import decide_storage

SHAPE = (64, 96)


class Drawn(torch.optim.Optimizer):
    """Adam in variants: what `options` name changes a rule so that interval arithmetic or recordings can't follow it.

    yogi: v' = v - c sign(v - g^2) g^2, which is >= 0 for every v >= 0; intervals can't tell.
    centered: the root of E[g^2] - E[g]^2, which is a number only if both moments are exact.
    trust: the update is scaled by the norm of the weights over its own, as LAMB does.
    cautious: entries whose sign is not the gradient's are left out, the rest is scaled up by their share.
    slow: weights that follow the weights, as Lookahead has, from which these are set anew every third step.
    twice: these weights are kept times two.
    rows: one more second moment for each row, which is no slot.
    branches: a branch on values.
    bounded: the update is bounded by a slow average of 1 / v, as AdaMod bounds it by one of 1 / sqrt(v).
    """

    def __init__(self, parameters: Any, options: frozenset[str] = frozenset(), lr: float = 0.01):
        super().__init__(parameters, {"lr": lr})
        self.options = options

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, self.state[p], group["lr"])

    def _update(self, p: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> None:
        has = self.options.__contains__
        if "t" not in state:
            state["t"], state["m"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
            if has("slow"):
                state["slow"] = 2 * p if has("twice") else p.clone()
            if has("rows"):
                state["r"] = torch.zeros(p.shape[0], 1)
        state["t"] += 1
        m, v = state["m"], state["v"]
        if has("branches") and g.abs().max() > 1e8:
            m.zero_()
        m.lerp_(g, 0.1)
        if has("yogi"):
            v.addcmul_(torch.sign(v - g * g), g * g, value=-0.1)
        else:
            v.mul_(0.9).addcmul_(g, g, value=0.1)
        variance = v - m * m * (1.0 - 1e-6) if has("centered") else v
        update = m / (variance.sqrt() + 1e-8)
        if has("bounded"):
            rate = state.setdefault("rate", torch.zeros_like(p)).lerp_(1.0 / (v + 1e-8), 1e-3)
            update = m * torch.minimum(rate, 1.0 / (v + 1e-8))
        if has("rows"):
            state["r"].lerp_((g * g).mean(1, keepdim=True), 0.1)
            update = update * 0.5 + 0.5 * m / (state["r"].sqrt() + 1e-8)
        if has("cautious"):
            mask = (update * g > 0).to(g.dtype)
            update = update * mask / mask.mean().clamp_min(1e-3)
        if has("trust"):
            update = update * (p.norm() / update.norm().clamp_min(1e-8))
        p.add_(update, alpha=-lr)
        if has("slow") and state["t"] % 3 == 0:
            factor = 2.0 if has("twice") else 1.0
            state["slow"].lerp_(factor * p, 0.5)
            p.copy_(state["slow"] / factor)


def trained(options: frozenset[str], steps: int, **request: Any) -> tuple[Any, Tensor, list[str]]:
    """An optimizer after some steps, the update of all of them, and the warnings."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(SHAPE, generator=generator)) for _ in range(2)]
    start = [p.detach().clone() for p in parameters]
    means = [torch.randn(SHAPE, generator=generator) for _ in parameters]
    optimizer = Drawn(parameters, options)
    baoc_compile.core.errors._TOLD.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if request:
            baoc_compile.prepare(optimizer, **request)
        for _ in range(steps):
            for p, mean in zip(parameters, means, strict=True):
                p.grad = mean + torch.randn(SHAPE, generator=generator)
            optimizer.step()
    update = torch.cat([(p.detach() - s).flatten() for p, s in zip(parameters, start, strict=True)]).double()
    return optimizer, update, [str(w.message) for w in caught if issubclass(w.category, baoc_compile.BaocWarning)]


def codecs(optimizer: Any) -> dict[str, str]:
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    return {
        k: v.codec.name if isinstance(v, StateTensor) else "exact" for k, v in state.items() if k in ("m", "v", "slow")
    }


def test_a_sign_that_intervals_leave_open():
    optimizer, _, told = trained(frozenset({"yogi"}), 3, memory_budget="30%")
    assert codecs(optimizer) == {"m": "e2m5", "v": "e3m5"} and not told
    (rule,) = set(optimizer._baoc_session.own.rules.values())
    assert rule.slot("v").nonnegative and not rule.slot("v").why_exact


@pytest.mark.parametrize("option", ["trust", "cautious", "rows", "branches"])
def test_signs_without_a_rule(option):
    optimizer, _, _ = trained(frozenset({option}), 3, memory_budget="30%")
    assert codecs(optimizer) == {"m": "e2m5", "v": "e3m5"}


def test_moments_whose_difference_is_under_a_root_stay_exact():
    """No budget in percent changes that; a warning says what is taken instead."""
    optimizer, ours, told = trained(frozenset({"centered"}), 10, memory_budget="30%")
    assert codecs(optimizer) == {"m": "exact", "v": "exact"}
    assert any("out of reach" in text and "100%" in text for text in told)
    _, eager, _ = trained(frozenset({"centered"}), 10)
    assert (ours - eager).norm() <= 1e-4 * eager.norm()


def test_a_slot_that_follows_the_weights_is_stored_as_its_difference_to_them():
    optimizer, ours, told = trained(frozenset({"slow"}), 10, memory_budget="30%")
    assert codecs(optimizer) == {"m": "e2m5", "v": "e3m5", "slow": "w+e2m5"} and not told
    _, eager, _ = trained(frozenset({"slow"}), 10)
    assert (ours - eager).norm() <= 0.03 * eager.norm()


def test_a_slot_that_8_bits_round_too_coarsely_gets_16_and_one_line_says_why():
    optimizer, ours, told = trained(frozenset({"slow", "twice"}), 10, memory_budget="35%")
    assert codecs(optimizer) == {"m": "e2m5", "v": "e3m5", "slow": "e2m13"}
    assert sum("keeps state 'slow'" in text and "16 bits" in text and "in a trial" in text for text in told) == 1
    _, eager, _ = trained(frozenset({"slow", "twice"}), 10)
    assert (ours - eager).norm() <= 0.03 * eager.norm()


def test_a_plan_that_was_asked_for_is_taken_with_a_warning():
    optimizer, _, told = trained(frozenset({"slow"}), 4, plan={"slow": "e2m5", "*": "8bit"})
    assert codecs(optimizer)["slow"] == "e2m5"
    assert any("'slow'" in text and "does not bear the plan" in text for text in told)


def test_a_slot_of_reciprocals_is_told():
    """Where a moment is small its reciprocal is the largest of a group, which leaves few levels to all others."""
    _, _, told = trained(frozenset({"bounded"}), 2, memory_budget="30%")
    assert any("off in a trial" in text for text in told)


def test_what_the_first_steps_do_not_bear_stays_fine(monkeypatch):
    """A step that can't be read makes its state itself. That state is decided on again; the first steps are not forgotten."""

    def only_first_steps_are_off(make, codecs, seed):
        is_off = not make().state and codecs["m"].name == "e2m5"
        return ({"m": "updates are 50% off in a trial with it as e2m5"}, 0.5) if is_off else ({}, 0.001)

    monkeypatch.setattr(decide_storage, "why_exact", only_first_steps_are_off)
    optimizer, _, told = trained(frozenset({"branches"}), 3, memory_budget="30%")
    assert codecs(optimizer) == {"m": "e2m13", "v": "e3m5"}
    assert sum("keeps state 'm'" in text and "16 bits" in text for text in told) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_momentum_does_not_follow_weights_that_are_drawn_as_gradients_may_be(seed):
    parameter = nn.Parameter(0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)))
    optimizer = Drawn([parameter])
    baoc_compile.prepare(optimizer, plan="8bit")
    parameter.grad = torch.randn(SHAPE)
    optimizer.step()
    assert codecs(optimizer) == {"m": "e2m5", "v": "e3m5"}


def test_a_budget_in_bytes_names_one_that_works():
    whole = 2 * 2 * 4 * 64 * 96
    with pytest.raises(baoc_compile.BudgetError, match=r"raise it to \d+") as refused:
        trained(frozenset({"centered"}), 0, memory_budget=whole // 2)
    amount = int(str(refused.value).rsplit(" ", 1)[1])
    optimizer, _, _ = trained(frozenset({"centered"}), 3, memory_budget=amount)
    assert baoc_compile.state_bytes(optimizer) <= amount


def test_what_a_step_does_not_write_proves_nothing():
    """A slot of zeros that later steps fill with signed values."""

    class Late(Drawn):
        def _update(self, p: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> None:
            state.setdefault("late", torch.zeros_like(p))
            if state.get("t", 0) >= 6:
                state["late"].lerp_(g, 0.1)
            super()._update(p, g, state, lr)

    parameters = [nn.Parameter(torch.randn(SHAPE))]
    optimizer = Late(parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baoc_compile.prepare(optimizer, memory_budget="30%")
        for _ in range(12):
            parameters[0].grad = torch.randn(SHAPE)
            optimizer.step()
    late = optimizer.state[parameters[0]]["late"]
    values = late.decode() if isinstance(late, StateTensor) else late
    assert (values < 0).float().mean() > 0.3 and (values > 0).float().mean() > 0.3


def test_trials_leave_no_trace():
    """Neither in the parameters, nor in random generators, nor in the optimizer's numbers."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(SHAPE))]
    parameters[0].grad = torch.randn(SHAPE)
    kept = parameters[0].grad
    before = (
        parameters[0].detach().clone(),
        kept.clone(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].copy(),
    )
    optimizer = Drawn(parameters, frozenset({"trust"}))
    baoc_compile.prepare(optimizer, memory_budget="30%")
    assert torch.equal(parameters[0], before[0]) and torch.equal(kept, before[1]) and parameters[0].grad is kept
    assert torch.equal(torch.get_rng_state(), before[2])
    assert random.getstate() == before[3] and np.array_equal(np.random.get_state()[1], before[4])
    assert all(type(value) is int and value == 0 for value in [optimizer.state[parameters[0]].get("t", 0)])


OPTIONS = st.frozensets(
    st.sampled_from(["yogi", "centered", "trust", "cautious", "slow", "rows", "branches"]), max_size=4
)


@settings(max_examples=6)  # each compiles programs of its own
@given(options=OPTIONS)
def test_any_of_them_is_right_or_stays_exact(options):
    """The update under a budget is eager's to 0.1 and a cosine of .995; in full precision it is eager's to rounding."""
    steps = 8
    _, eager, _ = trained(options, steps)
    for request, allowed in (({"plan": "fp32"}, 1e-3), ({"memory_budget": "30%"}, 0.1)):
        optimizer, ours, told = trained(options, steps, **request)
        if not eager.isfinite().all():
            continue
        assert (ours - eager).norm() <= allowed * eager.norm(), (request, codecs(optimizer))
        assert ours @ eager >= 0.995 * ours.norm() * eager.norm()
        if request.get("memory_budget") and "exact" in codecs(optimizer).values():
            assert told, "what stays exact is told"


class Twins(torch.optim.Optimizer):
    """Two averages of one gradient, signed and equal; the root of what they differ by, which only exact state keeps >= 0."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["n"] = torch.zeros_like(p), torch.zeros_like(p)
                state["m"].lerp_(p.grad, 0.1)
                state["n"].lerp_(p.grad, 0.1)
                p.addcdiv_(state["m"], (state["m"] - state["n"] + 1e-12).sqrt() + 1.0, value=-group["lr"])


def test_signed_state_under_a_root_stays_exact():
    """No slot is a candidate for >= 0, and yet random values of any sign have to be tried before exactness is given up."""
    parameter = nn.Parameter(torch.randn(SHAPE))
    optimizer = Twins([parameter])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baoc_compile.prepare(optimizer, memory_budget="30%")
    parameter.grad = torch.randn(SHAPE)
    optimizer.step()
    (rule,) = set(optimizer._baoc_session.own.rules.values())
    assert all("root" in slot.why_exact for slot in rule.slots)
    assert all(type(optimizer.state[parameter][key]) is Tensor for key in ("m", "n"))
