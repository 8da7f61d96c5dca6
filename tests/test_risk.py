"""Risk, against formulas in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baoc_compile.passes.risk.assess_risk import (
    CAUTION,
    HORIZON,
    SHARE,
    Assessment,
    Reference,
    Risk,
    assess,
    curvature,
)
from baoc_compile.passes.risk.estimate_rates import SPREAD, estimate_rates


def reference(steps: int, count: int, seed: int) -> Reference:
    r = np.random.default_rng(seed)
    grads, params = r.normal(size=(steps + 1, count)), r.normal(size=(steps, count))
    updates = -0.01 * r.normal(size=(steps, count))
    weights = r.uniform(0.5, 4.0, count)
    return Reference(*(torch.from_numpy(a) for a in (weights, grads, params, updates)))


@given(
    steps=st.integers(2, 12),
    count=st.integers(1, 40),
    seed=st.integers(0, 999),
    factor=st.floats(0, 300),
    shares=st.booleans(),
)
def test_risk_is_its_formula(steps, count, seed, factor, shares):
    ref = reference(steps, count, seed)
    noise = 0.003 * torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(2, steps, count)))
    unrounded = ref.updates + noise[0] if shares else None
    c = (unrounded if shares else ref.updates) + noise[1]
    assessment = assess(ref, c.float(), factor, unrounded)
    found = assessment.risk
    w, g, u, c = ref.weights.numpy(), ref.grads.numpy(), ref.updates.numpy(), c.float().double().numpy()
    h = np.sqrt((g**2).mean(0))
    e = c - u
    b = unrounded.numpy() - u if shares else 0 * u

    def curved(several):
        return factor / 2 * sum(w[i] * h[i] * row[i] ** 2 for row in several for i in range(count))

    def beside(several):
        x, y = several.sum(0), u.sum(0)
        return several - (w * h * x * y).sum() / (w * h * y * y).sum() * u

    def of(by_step):
        return sum(by_step), np.std(by_step, ddof=1) * math.sqrt(steps)

    def lasting(several):
        shares = beside(several) / np.minimum(np.arange(steps, 0, -1), HORIZON)[:, None]
        by_step = [(w * g[s] * shares[max(s - HORIZON, 0) : s].sum(0)).sum() for s in range(1, steps + 1)]
        later = [g[t + 1 : t + 1 + HORIZON].mean(0) for t in range(steps)]
        assert math.isclose(
            sum(by_step), sum((w * later[t] * beside(several)[t]).sum() for t in range(steps)), abs_tol=1e-12
        )
        return by_step

    coherent, error = of([(w * g[t + 1] * e[t]).sum() for t in range(steps)])
    noise, noise_error = of(lasting(e - b))
    risk = max(noise, 0) + CAUTION * noise_error + SHARE * curved(beside(e - b))
    assert math.isclose(found.predicted, coherent + SHARE * curved(e), rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(found.error, error, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(found.risk, risk + (10.0 if found.gate else 0.0), rel_tol=1e-9, abs_tol=1e-12)
    np.testing.assert_allclose(assessment.lasting, lasting(b), rtol=1e-9, atol=1e-12)
    assert math.isclose(found.interaction, curved([beside(b).sum(0)]), rel_tol=1e-9, abs_tol=1e-12)
    assert not found.excluded


def assessments(rates_by_step: np.ndarray, interactions: np.ndarray) -> list[Assessment]:
    """`rates_by_step` `[K, T]`, which sum to G / I."""
    return [
        Assessment(Risk(0.0, 0.0, 0.0, interaction=i), torch.from_numpy(r * i))
        for r, i in zip(rates_by_step, interactions, strict=True)
    ]


@given(count=st.integers(1, 4), steps=st.integers(8, 30), seed=st.integers(0, 999), noise=st.floats(0.01, 10.0))
def test_rates_are_what_a_gaussian_model_expects(count, steps, seed, noise):
    """Of least squares with a common rate and one of each block, both of which cost their square."""
    r = np.random.default_rng(seed)
    seen = r.normal(-0.5, noise, size=(count, steps)) / steps + r.normal(0.0, 0.5, size=(count, 1)) / steps
    root = np.linalg.cholesky(np.linalg.inv(steps * np.cov(seen).reshape(count, count)))
    design = np.concatenate([np.ones((count, 1)), np.eye(count)], axis=1)
    rows = np.concatenate([root.T @ design, np.eye(count + 1) / SPREAD])
    targets = np.concatenate([root.T @ seen.sum(1), np.zeros(count + 1)])
    expected = design @ np.linalg.lstsq(rows, targets, rcond=None)[0]
    expected = np.maximum(expected, 0.0)  # gains do not count
    found = estimate_rates(assessments(seen, r.uniform(0.001, 10.0, count)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_rates_are_believed_as_far_as_they_stand_out():
    r = np.random.default_rng(0)
    even = np.repeat([[1.0], [1.0], [3.0]], 20, axis=1) / 20
    interactions = np.ones(3)
    np.testing.assert_allclose(estimate_rates(assessments(even, interactions)), [1.0, 1.0, 3.0], rtol=1e-6)
    loud = even + 100.0 * r.normal(size=(3, 20))
    assert np.abs(estimate_rates(assessments(loud, interactions))).max() < 0.05
    one_loud = even[:2] + np.array([[0.0], [10.0]]) * r.normal(size=(1, 20))
    half_of_the_other = estimate_rates(assessments(one_loud, interactions[:2]))[1]
    assert half_of_the_other == pytest.approx(0.5, abs=0.05)
    assert estimate_rates(assessments(-100.0 * even, interactions)) == [0.0] * 3
    assert estimate_rates(assessments(even[:, :1], interactions)) == [0.0] * 3
    for useless in (0.0, 1e-300, math.inf, math.nan):
        found = estimate_rates(assessments(even, np.array([1.0, useless, 1.0])))
        np.testing.assert_allclose(found, [1.0, 0.0, 3.0], rtol=1e-6)


@given(scale=st.floats(0.2, 6.0), seed=st.integers(0, 99))
def test_other_lengths_are_no_gain_and_no_loss(scale, seed):
    """Of a configuration whose updates point where those of full precision do."""
    ref = reference(6, 50, seed)
    found = assess(ref, ref.updates * scale, 100.0, ref.updates * scale).risk
    assert (found.risk, found.interaction) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_full_precision_has_no_risk():
    ref = reference(5, 30, 0)
    found = assess(ref, ref.updates, 100.0, ref.updates).risk
    assert (found.predicted, found.error, found.risk, found.interaction, found.relative_error) == (0.0,) * 5


def test_the_curvature_of_a_quadratic_is_found():
    """g = H p + noise with H = kappa h: two steps on, the gradient has changed by H u."""
    generator = torch.Generator().manual_seed(0)
    count, steps, kappa = 4000, 60, 40.0
    h = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
    p = torch.randn(count, generator=generator, dtype=torch.float64) * 1e-3
    momentum = torch.zeros(count, dtype=torch.float64)
    grads, params, updates = [], [], []
    for _ in range(steps + 1):
        g = kappa * h * p + h * torch.randn(count, generator=generator, dtype=torch.float64)
        momentum = 0.9 * momentum + 0.1 * g
        grads.append(g)
        params.append(p.clone())
        updates.append(-1e-3 * momentum)
        p = p + updates[-1]
    made = Reference(torch.ones(count), torch.stack(grads), torch.stack(params[:-1]), torch.stack(updates[:-1]))
    halves = [
        Reference(made.weights[s], made.grads[:, s], made.params[:, s], made.updates[:, s])
        for s in (slice(None, 2000), slice(2000, None))
    ]
    assert curvature([made]) == pytest.approx(kappa, rel=0.3)
    assert curvature(halves) == pytest.approx(curvature([made]), rel=1e-6)
    assert curvature([]) == 0.0


def test_gates():
    ref = reference(10, 50, 3)
    assert "finite" in assess(ref, ref.updates * math.nan, 1.0, ref.updates).risk.excluded
    assert "stall" in assess(ref, ref.updates * 0.0, 1.0).risk.gate
    assert "blow up" in assess(ref, ref.updates * 1e3, 1.0).risk.gate
    shrinking = ref.updates - 0.02 * ref.params
    found = assess(ref, shrinking, 1.0).risk
    assert "length of the weights" in found.gate
    assert found.risk > 10.0
    assert "length of the weights" not in assess(ref, shrinking, 1.0, shrinking).risk.gate  # not by rounding
    assert not assess(ref, ref.updates * 1.1, 1.0).risk.gate
