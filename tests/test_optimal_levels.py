"""Levels learned from a histogram are the best there are: brute force on small cases, Lloyd on real momentum."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baoc_compile.kernels.codecs.optimal_levels import (
    nearest_error,
    nearest_levels,
    stochastic_error,
    stochastic_levels,
)

LEVELS = 255


@st.composite
def histograms(draw, real: bool = False):
    """Few points and weights, with many weights 0; integers, whose prefix sums are exact, or not."""
    gaps = st.floats(1e-3, 10.0) if real else st.integers(1, 9)
    masses = st.floats(1e-3, 10.0) if real else st.integers(1, 9)
    size = draw(st.integers(2, 8))
    points = draw(st.integers(-50, 50)) + np.cumsum(
        draw(st.lists(gaps, min_size=size, max_size=size)), dtype=np.float64
    )
    weights = draw(st.lists(st.one_of(st.just(0), masses), min_size=size, max_size=size))
    return points, np.asarray(weights, dtype=np.float64)


def stochastic_sum(points, weights, levels) -> float:
    total = 0.0
    for x, w in zip(points, weights, strict=True):
        if x not in levels:
            total += w * (x - max(v for v in levels if v < x)) * (min(v for v in levels if v > x) - x)
    return total


def best_stochastic(points, weights, count, fixed) -> float:
    free = [x for x in points[1:-1] if x not in fixed]
    kept = [points[0], *fixed, points[-1]]
    return min(stochastic_sum(points, weights, [*kept, *some]) for some in combinations(free, count - len(kept)))


def best_nearest(points, weights, count) -> float:
    def spread(low, high):
        x, w = points[low:high], weights[low:high]
        return float(w @ (x - w @ x / w.sum()) ** 2) if w.any() else 0.0

    totals = []
    for inner in combinations(range(1, len(points)), count - 1):
        edges = [0, *inner, len(points)]
        totals.append(sum(spread(low, high) for low, high in pairwise(edges)))
    return min(totals)


def is_best(error, weights, best, points=None) -> bool:
    slack = 0.0 if points is None else 1e-14 * weights.sum() * (points[-1] - points[0]) ** 2
    return abs(error * weights.sum() - best) <= 1e-12 * best + slack


@pytest.mark.parametrize("real", [False, True])
@settings(max_examples=60)
@given(data=st.data())
def test_stochastic_levels_are_the_best_subset(real, data):
    points, weights = data.draw(histograms(real))
    fixed = data.draw(st.lists(st.sampled_from(points[1:-1]), unique=True)) if len(points) > 2 else []
    count = data.draw(st.integers(2 + len(fixed), len(points)))
    levels = stochastic_levels(points, weights, count, fixed)
    assert levels.dtype == np.float64 and len(levels) == count and (np.diff(levels) > 0).all()
    assert np.isin(levels, points).all() and np.isin([points[0], *fixed, points[-1]], levels).all()
    best = best_stochastic(points, weights, count, fixed)
    assert is_best(stochastic_error(points, weights, levels), weights, best, points if real else None)


@pytest.mark.parametrize("real", [False, True])
@settings(max_examples=60)
@given(data=st.data())
def test_nearest_levels_are_the_best_clusters(real, data):
    points, weights = data.draw(histograms(real))
    count = data.draw(st.integers(1, len(points)))
    levels = nearest_levels(points, weights, count)
    assert levels.dtype == np.float64 and len(levels) == count and (np.diff(levels) > 0).all()
    error = nearest_error(points, weights, levels)
    # rounding of the means leaves about 1e-32 where the best is 0
    best = best_nearest(points, weights, count)
    assert is_best(error, weights, best, points if real else None) or error < 1e-28


@pytest.mark.parametrize("learn", [stochastic_levels, nearest_levels])
def test_weights_that_say_little(learn):
    points = np.linspace(-1.0, 3.0, 40)
    one = np.zeros(40)
    one[17] = 5.0
    for weights in (np.zeros(40), one):
        for count in (3, 7, 39, 40):
            levels = learn(points, weights, count)
            assert len(levels) == count and (np.diff(levels) > 0).all()
            assert nearest_error(points, weights, levels) == stochastic_error(points, weights, levels) == 0.0


@pytest.mark.parametrize("learn", [stochastic_levels, nearest_levels])
def test_as_many_levels_as_points(learn):
    points = np.sort(np.random.default_rng(0).normal(size=100))
    assert np.array_equal(learn(points, np.ones(100), 100), points)
    assert np.array_equal(learn(points[:1], [1.0], 1), points[:1])


@pytest.mark.parametrize("learn", [stochastic_levels, nearest_levels])
def test_refused(learn):
    with pytest.raises(ValueError, match="count=4 levels from 3 points"):
        learn([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], 4)
    with pytest.raises(ValueError, match="ascend"):
        learn([0.0, 0.0, 2.0], [1.0, 1.0, 1.0], 2)
    with pytest.raises(ValueError, match="finite"):
        learn([0.0, np.nan, 2.0], [1.0, 1.0, 1.0], 2)


def test_fixed_levels_refused():
    with pytest.raises(ValueError, match=r"must be points: \[0.5\]"):
        stochastic_levels([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], 3, fixed=[0.5])
    with pytest.raises(ValueError, match="count=2 levels cannot hold"):
        stochastic_levels([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], 2, fixed=[1.0])


def test_errors_by_hand():
    points, weights, levels = [-1.0, 0.25, 1.0, 4.0], [2.0, 4.0, 1.0, 1.0], [0.0, 1.0, 2.0]
    assert stochastic_error(points, weights, levels) == (2 * 1.0 + 4 * 0.25 * 0.75 + 0.0 + 4.0) / 8
    assert nearest_error(points, weights, levels) == (2 * 1.0 + 4 * 0.25**2 + 0.0 + 4.0) / 8


@pytest.fixture(scope="module")
def momentum():
    """A histogram of a small network's momentum over the largest of its group of 32: (points, weights)."""
    generator = torch.Generator().manual_seed(0)
    sizes, parameters = [(64, 256), (256, 256), (256, 64)], []
    for size in sizes:
        parameters.append(torch.nn.Parameter(torch.randn(size, generator=generator) / size[0] ** 0.5))
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    inputs = torch.randn(512, 64, generator=generator)
    targets = torch.sin(2.0 * inputs).roll(1, dims=1)
    for step in range(30):
        batch = slice(step % 8 * 64, step % 8 * 64 + 64)
        hidden = torch.relu(torch.relu(inputs[batch] @ parameters[0]) @ parameters[1])
        loss = torch.nn.functional.mse_loss(hidden @ parameters[2], targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    groups = torch.cat([optimizer.state[p]["momentum_buffer"].reshape(-1, 32) for p in parameters])
    largest = groups.abs().amax(1, keepdim=True)
    values = (groups / torch.where(largest > 0.0, largest, 1.0)).flatten().double().numpy()
    points = np.linspace(-1.0, 1.0, 4096)
    return points, np.bincount(np.rint((values + 1.0) * 2047.5).astype(int), minlength=4096).astype(np.float64)


def lloyd(points, weights, levels, iterations=300):
    for _ in range(iterations):
        cluster = np.searchsorted(0.5 * (levels[1:] + levels[:-1]), points)
        mass = np.bincount(cluster, weights, len(levels))
        sums = np.bincount(cluster, weights * points, len(levels))
        levels = np.where(mass > 0.0, sums / np.where(mass > 0.0, mass, 1.0), levels)
    return levels


def softsign(count: int):
    """`softsign8`'s levels at 255: k / (254 - k)."""
    top = count // 2
    k = np.arange(-top, top + 1)
    return k / (2.0 * top - np.abs(k))


def test_nearest_is_never_worse_than_lloyd(momentum):
    points, weights = momentum
    ours = nearest_error(points, weights, nearest_levels(points, weights, LEVELS))
    quantiles = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(LEVELS) + 0.5) / LEVELS)
    rng = np.random.default_rng(0)
    starts = [np.linspace(-1.0, 1.0, LEVELS), softsign(LEVELS), np.unique(points[quantiles])]
    starts += [np.sort(rng.choice(points, LEVELS, replace=False)) for _ in range(3)]
    theirs = [nearest_error(points, weights, lloyd(points, weights, start)) for start in starts]
    assert ours <= min(theirs)
    assert min(theirs) < 2.0 * ours


def test_stochastic_is_never_worse_than_other_levels(momentum):
    points, weights = momentum
    ours = stochastic_error(points, weights, stochastic_levels(points, weights, LEVELS))
    others = [
        np.union1d([-1.0, 1.0], nearest_levels(points, weights, LEVELS - 2)),
        softsign(LEVELS),
        np.linspace(-1.0, 1.0, LEVELS),
        stochastic_levels(points, weights, LEVELS, fixed=[points[1500], points[2048]]),
    ]
    assert all(len(levels) <= LEVELS and ours <= stochastic_error(points, weights, levels) for levels in others)
