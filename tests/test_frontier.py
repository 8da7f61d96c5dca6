"""The frontier of plans, against brute force and against single allocations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from knapsack_items import KINDS, check, equal, make_items, small_items

from baoc_compile.core.allocation import Allocation
from baoc_compile.passes.solve import frontier as frontier_module
from baoc_compile.passes.solve.allocate import allocate, frontier


@given(small_items.filter(bool))
def test_frontier_is_what_brute_force_finds(items):
    everything = [Allocation.of(items, c, 0.0) for c in itertools.product(*(range(len(b)) for b in items))]
    scale = sum(max(abs(c.risk) for c in block) for block in items)
    points = frontier(items)
    assert points[0].size_bytes == min(a.size_bytes for a in everything)
    assert equal(points[-1].risk, min(a.risk for a in everything), scale)
    for point in points:
        assert point.is_exact
        assert equal(point.risk, min(a.risk for a in everything if a.size_bytes <= point.size_bytes), scale)
    for a in everything:  # nothing is left out
        assert min(p.risk for p in points if p.size_bytes <= a.size_bytes) <= a.risk + 2e-12 * scale


@pytest.mark.parametrize("labels", [2_000_000, 1000], ids=["all", "hull"])
@pytest.mark.parametrize("kind", KINDS)
def test_frontier_agrees_with_allocate(monkeypatch, kind, labels):
    monkeypatch.setattr(frontier_module, "LABELS", labels)
    items = make_items(kind, 12, np.random.default_rng(3), candidates=5)
    points = frontier(items)
    assert len(points) >= 10
    for a, b in itertools.pairwise(points):
        assert a.size_bytes < b.size_bytes and a.risk > b.risk
    for point in points[:: max(len(points) // 10, 1)]:
        check(items, point, point.size_bytes)
        assert point.is_exact and equal(point.risk, allocate(items, point.size_bytes).risk)
    assert points[0].size_bytes == sum(min(c.size_bytes for c in block) for block in items)
    assert equal(points[-1].risk, math.fsum(min(c.risk for c in block) for block in items))


def test_frontier_of_many_blocks_has_a_limited_number_of_points():
    items = make_items("realistic", 150, np.random.default_rng(4))
    points = frontier(items)
    assert 100 <= len(points) <= frontier_module.POINTS
    middle = points[len(points) // 2]
    assert equal(middle.risk, allocate(items, middle.size_bytes).risk)
