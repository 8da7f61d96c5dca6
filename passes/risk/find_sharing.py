"""Analysis: the structure of a tensor along which its second moment may be shared, judged by early gradients.

Gefen (arXiv 2606.13894) picks one period p for runs of consecutive elements: with y = ln(g^2 + 1e-12), the divisor p
that is the largest interior local maximum of mean |difference of adjacent block means of y|, p > 8. It has two measured
flaws: on gradients without structure the period is noise, and scales per column or per head are missed.

Here every partition of the tensor into equal groups is a one-way analysis of variance of y = ln g^2. A scale that the
elements of a group share is an additive effect. A partition counts only if its F statistic cannot be chance. Two
running sums give all group sums: one over the flat tensor and one over its column sums.

For a normal, Laplace or Student-t gradient, ln g^2 is skewed, but its moments are finite. With groups of equal size F
hardly depends on the kurtosis (Box & Andersen 1955), so one threshold serves all of these distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_TENSOR = 64
SMALLEST_RUN = 4  # least number of elements per run, and of runs per tensor
FLOOR = 1e-6  # smallest |g|, as a fraction of its mean; smaller values, exact zeros included, are raised to it
PRICE = 4.0  # price of one stored value, in units of twice the log likelihood


@dataclass(frozen=True)
class Structure:
    """One significant partition of a tensor.

    name: the codec in `kernels/codecs/sharing.py` that stores it.
    z: the significance, in standard deviations of a normal distribution.
    explained: the adjusted R^2, a fraction of the variance of ln g^2; 0 on average where there is no structure.
    """

    name: str
    z: float
    explained: float


def find_sharing(gradient: Tensor | Sequence[Tensor], *, significance: float = 4.0) -> str:
    """Return the name of the best partition, or "none" if no partition is significant.

    "row": one value per index of the first dimension.
    "column": one value per index of the other dimensions, flattened.
    "head:d", "column_head:d": one value per d consecutive rows or columns.
    "run:p": one value per p consecutive elements, where p is not a whole number of rows.
    "factored": row effects times column effects.

    A vector has only runs.
    """
    ranked = rank_sharing(gradient, significance=significance)
    return ranked[0].name if ranked else "none"


def rank_sharing(gradient: Tensor | Sequence[Tensor], *, significance: float = 4.0) -> list[Structure]:
    """Return the significant partitions, best first. Several gradients are analysed through the mean of their ln g^2.

    A partition is significant if z > sqrt(significance^2 + 2 ln m), where m is the number of candidates. This
    multiplies the normal tail, about exp(-z^2 / 2), by 1/m (Bonferroni). The best partition has the least n ln(SSE / n)
    + PRICE K, where K is the number of stored values. A needless value lowers the first term by about 1, so a partition
    beats a finer one that explains no more. PRICE lies between AIC's 2, which errs if the finer partition has few more
    values, and BIC's ln n, which prefers merged rows to weak effects per row. At this price, weak effects of runs of 4
    or 8 elements are taken for those of longer runs; storing the short runs would save little.
    """
    y = _log_squares([gradient] if isinstance(gradient, Tensor) else gradient)
    if y is None:
        return []
    n, (rows, columns) = y.numel(), y.shape
    total = y.square().sum().item()
    if total <= 1e-9 * n:  # all elements have one magnitude, up to rounding
        return []
    tiny = 1e-12 * total
    ranked: list[tuple[float, Structure]] = []
    tried = 0

    def judge(name: str, values: int, effects: Sequence[tuple[float, int]]) -> None:
        """Add one partition to `ranked`.

        `effects` holds the sum of squares and the degrees of freedom of each effect. Each must be significant given the
        others.
        """
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
    """Return ln |g| summed over `gradients`, less its mean, as a float64 matrix; None if there is nothing to analyse.

    The constant factor between this sum and the mean of ln g^2 does not change the analysis.
    """
    y: Tensor | None = None
    for gradient in gradients:
        magnitude = gradient.detach().abs().to(torch.float32)
        floor = FLOOR * magnitude.mean().item() if magnitude.numel() >= SMALLEST_TENSOR else 0.0
        if not math.isfinite(floor):
            return None
        if floor > 1e-37:  # normal numbers only; a gradient of zeros carries no information
            one = magnitude.clamp_min_(floor).log_().to(torch.float64)
            y = one if y is None else y.add_(one)
    if y is None:
        return None
    return y.sub_(y.mean()).reshape((1, -1) if y.dim() < 2 else (len(y), -1))


def _between(cumulative: Tensor, run: int) -> float:
    """Return the sum over runs of (sum of the run)^2, from the running sums of values that sum to 0."""
    ends = cumulative[run - 1 :: run]
    return (ends[0].square() + ends.diff().square().sum()).item()


def _paulson(f: float, k: int, freedom: int) -> float:
    """Return F(k, freedom) as a standard normal deviate.

    Paulson (1942), after Wilson & Hilferty's cube root of chi^2.
    """
    a, b, root = 2.0 / (9.0 * k), 2.0 / (9.0 * freedom), max(f, 0.0) ** (1.0 / 3.0)
    return ((1.0 - b) * root - (1.0 - a)) / math.sqrt(b * root * root + a)


def _divisors(n: int) -> list[int]:
    """Return the divisors of n in ascending order."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d < n]
