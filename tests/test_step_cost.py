"""The cost of programs, fitted to timings."""

from __future__ import annotations

import pytest

from baoc_compile.passes.programs.step_cost import Sample, fit


@pytest.mark.parametrize("plane", [(8_000.0, 600.0, 0.5), (0.0, 300.0, 9.0), (15_000.0, 0.0, 0.01), (5.0, 0.0, 0.0)])
def test_a_plane_is_found_again(plane):
    sizes = [(1, 256), (32, 8192), (8, 1 << 23), (3, 1 << 18)]
    found = fit([Sample(n, e, plane[0] + plane[1] * n + plane[2] * e) for n, e in sizes])
    assert found == pytest.approx(plane, rel=1e-6, abs=1e-6)


def test_no_coefficient_is_negative():
    found = fit([Sample(1, 256, 100.0), Sample(8, 1 << 20, 1e6), Sample(32, 8192, 90.0)])
    assert all(value >= 0.0 for value in found)
    assert any(value == 0.0 for value in found)


def test_large_times_do_not_drown_small_ones():
    samples = [Sample(1, 256, 10_000.0), Sample(8, 1 << 23, 9e6), Sample(8, 1 << 23, 7e6), Sample(32, 8192, 20_000.0)]
    launch, tensor, element = fit(samples)
    assert launch + tensor + 256 * element == pytest.approx(10_000.0, rel=0.01)
    assert 7e6 < launch + 8 * tensor + (1 << 23) * element < 9e6


def test_nothing_can_be_fitted_to_nothing():
    with pytest.raises(ValueError, match="no samples"):
        fit([])
