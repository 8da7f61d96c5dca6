"""Time to learn 256 levels from a histogram of 4096 bins, and the error against Lloyd's algorithm.

The histogram is that of Laplace-distributed values, each divided by the largest of its group of 32.

    OMP_NUM_THREADS=1 python benchmarks/optimal_levels.py [--bins 4096] [--levels 256]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from baoc_compile.kernels.codecs.optimal_levels import (
    Floats,
    nearest_error,
    nearest_levels,
    stochastic_error,
    stochastic_levels,
)

REPEATS = 5


def histogram(bins: int) -> tuple[Floats, Floats]:
    groups = np.random.default_rng(0).laplace(size=(50_000, 32))
    values = groups / np.abs(groups).max(1, keepdims=True)
    places = np.rint((values.ravel() + 1.0) * (0.5 * (bins - 1))).astype(np.intp)
    return np.linspace(-1.0, 1.0, bins), np.bincount(places, minlength=bins).astype(np.float64)


def uniform_levels(points: Floats, weights: Floats, count: int) -> Floats:
    return np.linspace(points[0], points[-1], count)


def quantile_levels(points: Floats, weights: Floats, count: int) -> Floats:
    return np.interp((np.arange(count) + 0.5) / count, np.cumsum(weights) / weights.sum(), points)


def lloyd(points: Floats, weights: Floats, levels: Floats, iterations: int = 2000) -> Floats:
    count = len(levels)
    for _ in range(iterations):
        cluster = np.searchsorted(0.5 * (levels[1:] + levels[:-1]), points)
        mass = np.bincount(cluster, weights, count)
        sums = np.bincount(cluster, weights * points, count)
        levels = np.where(mass > 0.0, sums / np.where(mass > 0.0, mass, 1.0), levels)
    return levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bins", type=int, default=4096)
    parser.add_argument("--levels", type=int, default=256)
    options = parser.parse_args()
    points, weights = histogram(options.bins)
    learners: dict[str, Callable[[Floats, Floats, int], Floats]] = {
        "stochastic_levels": stochastic_levels,
        "nearest_levels": nearest_levels,
        "uniform": uniform_levels,
        "Lloyd from uniform": lambda x, w, count: lloyd(x, w, uniform_levels(x, w, count)),
        "Lloyd from quantiles": lambda x, w, count: lloyd(x, w, quantile_levels(x, w, count)),
    }
    print(f"{options.bins} bins, {options.levels} levels, median of {REPEATS}; stochastic error with both ends kept")
    print(f"{'':22}{'seconds':>10}{'nearest error':>16}{'stochastic error':>18}")
    for name, learn in learners.items():
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            levels = learn(points, weights, options.levels)
            seconds.append(time.perf_counter() - start)
        ends = learn(points, weights, options.levels - 2)
        stochastic = levels if learn is stochastic_levels else np.union1d(ends, points[[0, -1]])
        errors = nearest_error(points, weights, levels), stochastic_error(points, weights, stochastic)
        print(f"{name:22}{statistics.median(seconds):>10.3f}{errors[0]:>16.4e}{errors[1]:>18.4e}")


if __name__ == "__main__":
    main()
