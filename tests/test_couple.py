"""Plans whose blocks interact, against brute force."""

import itertools
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baoc_compile.core.allocation import Allocation, Candidate
from baoc_compile.core.errors import BudgetError
from baoc_compile.passes.solve import close_gap
from baoc_compile.passes.solve.allocate import allocate
from baoc_compile.passes.solve.couple import allocate_coupled, coupled_frontier


def instance(blocks: int, candidates: int, seed: int) -> list[list[Candidate]]:
    """Candidates of less than full size interact; some of them gain."""
    r = np.random.default_rng(seed)
    items = []
    for _ in range(blocks):
        numel = int(r.integers(100, 10**5))
        found = [Candidate("full", 8 * numel, float(numel), 0.0)]
        for j in range(1, candidates):
            size, strength = int(8 * numel * r.uniform(0, 1)), r.lognormal(0, 1)
            risk, interaction = strength * r.normal(0.3, 1), strength * r.uniform()
            found.append(Candidate(f"c{j}", size, numel * r.uniform(), risk, interaction))
        items.append(found)
    return items


def risk_of(items, choice) -> float:
    chosen = [block[j] for block, j in zip(items, choice, strict=True)]
    joint = sum(max(c.interaction for c in block) for block in items)
    return sum(c.risk for c in chosen) + sum(c.interaction for c in chosen) ** 2 / joint


@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 999))
def test_few_blocks_equal_brute_force(blocks, candidates, budget, has_time, seed):
    items = instance(blocks, candidates, seed)
    budget_bytes = int(budget * sum(block[0].size_bytes for block in items))
    budget_ns = 0.7 * sum(block[0].time_ns for block in items) if has_time else None
    every = [Allocation.of(items, c, -math.inf) for c in itertools.product(*(range(len(b)) for b in items))]
    fitting = [a for a in every if a.fits(budget_bytes, budget_ns)]
    if not fitting:
        with pytest.raises(BudgetError):
            allocate_coupled(items, budget_bytes, budget_ns)
        return
    found = allocate_coupled(items, budget_bytes, budget_ns)
    best = min(a.risk for a in fitting)
    assert found.fits(budget_bytes, budget_ns)
    assert found.risk == pytest.approx(risk_of(items, found.choice), rel=1e-9, abs=1e-12)
    assert found.risk == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert found.is_exact or found.gap <= 1e-9


@given(st.integers(1, 20), st.floats(0.1, 1.0), st.integers(0, 999))
def test_without_interactions_it_is_the_knapsack(blocks, budget, seed):
    items = [[replace(c, interaction=0.0) for c in block] for block in instance(blocks, 6, seed)]
    smallest = sum(min(c.size_bytes for c in block) for block in items)
    budget_bytes = smallest + int(budget * sum(block[0].size_bytes for block in items))
    assert allocate_coupled(items, budget_bytes) == allocate(items, budget_bytes)


@given(st.integers(2, 4), st.floats(0.1, 0.9), st.integers(0, 999))
def test_what_the_search_leaves_out_bounds_the_answer(blocks, budget, seed):
    """With room for one or two partial plans."""
    items = instance(blocks, 5, seed)
    budget_bytes = sum(min(c.size_bytes for c in block) for block in items)
    budget_bytes += int(budget * (sum(block[0].size_bytes for block in items) - budget_bytes))
    best = allocate_coupled(items, budget_bytes)
    with patch.object(close_gap, "MOST", 1 + seed % 2):
        found = allocate_coupled(items, budget_bytes)
    assert found.fits(budget_bytes, None)
    assert found.lower_bound <= best.risk + 1e-9 and best.risk <= found.risk + 1e-9


@pytest.mark.parametrize("blocks", [10, 30, 150])
def test_many_blocks_leave_small_gaps(blocks):
    for seed in range(6):
        items = instance(blocks, 8, seed)
        full = sum(block[0].size_bytes for block in items)
        slowest = sum(block[0].time_ns for block in items)
        for budget_ns in (None, 0.8 * slowest, 0.4 * slowest):
            found = allocate_coupled(items, int(0.3 * full), budget_ns)
            assert found.fits(int(0.3 * full), budget_ns)
            assert found.relative_gap <= 1e-3


@given(st.integers(2, 5), st.floats(0.1, 1.0), st.integers(0, 999))
def test_ties_go_to_fewer_configurations(blocks, budget, seed):
    """Every candidate has a twin; blocks name them in different orders."""
    items = []
    for i, block in enumerate(instance(blocks, 4, seed)):
        twins = [[c, replace(c, configuration=f"{c.configuration}'")] for c in block]
        items.append([c for pair in twins for c in (pair if i % 2 else pair[::-1])])
    budget_bytes = sum(min(c.size_bytes for c in block) for block in items)
    budget_bytes += int(budget * (sum(block[0].size_bytes for block in items) - budget_bytes))
    found = allocate_coupled(items, budget_bytes)
    names = {block[j].configuration for block, j in zip(items, found.choice, strict=True)}
    assert not any(f"{name}'" in names for name in names)


def test_displacements_are_shared_out():
    """One block of four is worth it, two are not: interactions grow with their square."""
    items = [[Candidate("full", 8, 0.0, 0.0), Candidate("none", 0, 0.0, -0.4, 1.0)] for _ in range(4)]
    found = allocate_coupled(items, 32)
    assert sorted(found.choice) == [0, 0, 0, 1]
    assert found.risk == pytest.approx(-0.4 + 1 / 4) and found.lower_bound <= found.risk
    assert allocate_coupled(items, 0).risk == pytest.approx(-1.6 + 16 / 4)


@given(st.integers(1, 5), st.integers(0, 99))
def test_the_frontier_falls_and_starts_at_the_smallest_plan(blocks, seed):
    items = instance(blocks, 4, seed)
    points = coupled_frontier(items)
    assert all(a.size_bytes < b.size_bytes and a.risk > b.risk for a, b in itertools.pairwise(points))
    assert points[0].size_bytes == sum(min(c.size_bytes for c in block) for block in items)
    for point in points:
        assert point.risk == pytest.approx(risk_of(items, point.choice), rel=1e-9, abs=1e-12)
