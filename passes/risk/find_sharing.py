"""Analysis: along which structure of a tensor may a second moment be shared, judging by early gradients?

Gefen (arXiv 2606.13894) picks one period p for runs of consecutive elements: with y = ln(g^2 + 1e-12), the divisor p
that is the largest interior local maximum of mean |difference of adjacent block means of y|, p > 8. Two measured flaws:
on gradients without structure the period is noise, and scales per column or per head are missed. Here instead every
partition of the tensor into equal groups is a one-way analysis of variance of y = ln g^2, in which a scale that the
elements of a group share is an additive effect. A partition counts only if its F statistic cannot be chance. All group
sums come from two running sums, one over the flat tensor and one over its column sums.

ln g^2 of a normal, Laplace or Student-t gradient is skewed, but its moments are finite, and with groups of equal size
F hardly depends on the kurtosis (Box & Andersen 1955): one threshold serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_TENSOR = 64
SMALLEST_RUN = 4  # elements per run, and runs per tensor
FLOOR = 1e-6  # |g| below this fraction of its mean, exact zeros included, counts as this fraction
PRICE = 4.0  # of one stored value, in units of twice the log likelihood


@dataclass(frozen=True)
class Structure:
    """`name` is that of the codec in `kernels/codecs/sharing.py` which stores it."""

    name: str
    z: float  # significance, in standard deviations of a normal distribution
    explained: float  # adjusted R^2: the fraction of the variance of ln g^2, 0 on average where there is no structure


def find_sharing(gradient: Tensor | Sequence[Tensor], *, significance: float = 4.0) -> str:
    """The best partition's name, or "none" if no partition is significant.

    "row": a value per index of the first dimension; "column": one per index of the others, flattened; "head:d",
    "column_head:d": one per d consecutive rows or columns; "run:p": one per p consecutive elements, where p is no whole
    number of rows; "factored": row and column effects multiply. A vector only has runs.
    """
    ranked = rank_sharing(gradient, significance=significance)
    return ranked[0].name if ranked else "none"


def rank_sharing(gradient: Tensor | Sequence[Tensor], *, significance: float = 4.0) -> list[Structure]:
    """The significant partitions, best first; several gradients are analysed by the mean of their ln g^2.

    Significant: z > sqrt(significance^2 + 2 ln m) for m candidates, which multiplies the normal tail, about
    exp(-z^2 / 2), by 1/m (Bonferroni). Best: least n ln(SSE / n) + PRICE K for K stored values. A needless value lowers
    the first term by about 1, so a partition beats a finer one that explains no more. PRICE lies between AIC's 2,
    which errs if the finer one has few more values, and BIC's ln n, which prefers merged rows to weak effects per row.
    At this price weak effects of runs of 4 or 8 elements are taken for longer ones: little is saved by storing those.
    """
    y = _log_squares([gradient] if isinstance(gradient, Tensor) else gradient)
    if y is None:
        return []
    n, (rows, columns) = y.numel(), y.shape
    total = y.square().sum().item()
    if total <= 1e-9 * n:  # all of one magnitude, up to rounding
        return []
    tiny = 1e-12 * total
    ranked: list[tuple[float, Structure]] = []
    tried = 0

    def judge(name: str, values: int, effects: Sequence[tuple[float, int]]) -> None:
        """`effects`: sum of squares and degrees of freedom of each; all must be significant given the others."""
        nonlocal tried
        tried += 1
        error, freedom = max(total - sum(s for s, _ in effects), tiny), n - values
        z = min(_paulson(s / k / (error / freedom), k, freedom) for s, k in effects)
        explained = 1.0 - error / freedom * (n - 1) / total
        ranked.append((n * math.log(error / n) + PRICE * values, Structure(name, z, explained)))

    flat = y.flatten().cumsum(0)
    for run in _divisors(n):
        height, part = divmod(run, columns)
        if not 1 < n // run < n or (part and min(run, n // run) < SMALLEST_RUN):
            continue
        name = f"run:{run}" if part else "row" if height == 1 else f"head:{height}"
        judge(name, n // run, [(_between(flat, run) / run, n // run - 1)])
    if rows > 1 and columns > 1:
        across = y.sum(0).cumsum(0)
        for run in _divisors(columns)[:-1]:
            name, values = "column" if run == 1 else f"column_head:{run}", columns // run
            judge(name, values, [(_between(across, run) / (run * rows), values - 1)])
        row, column = _between(flat, columns) / columns, _between(across, 1) / rows
        judge("factored", rows + columns - 1, [(row, rows - 1), (column, columns - 1)])

    threshold = math.sqrt(significance**2 + 2.0 * math.log(max(tried, 1)))
    return [s for _, s in sorted(ranked, key=lambda r: r[0]) if s.z > threshold]


def _log_squares(gradients: Sequence[Tensor]) -> Tensor | None:
    """ln |g| summed over `gradients`, less its mean, as a float64 matrix; None if there is nothing to analyse.

    The analysis does not depend on the factor that is missing to the mean of ln g^2.
    """
    y: Tensor | None = None
    for gradient in gradients:
        magnitude = gradient.detach().abs().to(torch.float32)
        floor = FLOOR * magnitude.mean().item() if magnitude.numel() >= SMALLEST_TENSOR else 0.0
        if not math.isfinite(floor):
            return None
        if floor > 1e-37:  # normal numbers only: a gradient of zeros says nothing
            one = magnitude.clamp_min_(floor).log_().to(torch.float64)
            y = one if y is None else y.add_(one)
    if y is None:
        return None
    return y.sub_(y.mean()).reshape((1, -1) if y.dim() < 2 else (len(y), -1))


def _between(cumulative: Tensor, run: int) -> float:
    """Sum over runs of (sum of the run)^2, from running sums of values that sum to 0."""
    ends = cumulative[run - 1 :: run]
    return (ends[0].square() + ends.diff().square().sum()).item()


def _paulson(f: float, k: int, freedom: int) -> float:
    """F(k, freedom) as a standard normal deviate: Paulson (1942), after Wilson & Hilferty's cube root of chi^2."""
    a, b, root = 2.0 / (9.0 * k), 2.0 / (9.0 * freedom), max(f, 0.0) ** (1.0 / 3.0)
    return ((1.0 - b) * root - (1.0 - a)) / math.sqrt(b * root * root + a)


def _divisors(n: int) -> list[int]:
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d < n]
