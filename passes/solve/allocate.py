"""Allocation: choose the configuration of every block for the least total risk under a memory and a time budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from baoc_compile.core.allocation import Allocation, Candidate
from baoc_compile.core.errors import BudgetError
from baoc_compile.passes.solve.frontier import frontier
from baoc_compile.passes.solve.instance import Instance, Knapsack, whole_times
from baoc_compile.passes.solve.relax import relax
from baoc_compile.passes.solve.settle_ties import settle_ties
from baoc_compile.passes.solve.solve_knapsack import Solution, solve_knapsack

__all__ = ["allocate", "frontier"]


def allocate(items: Sequence[Sequence[Candidate]], budget_bytes: int, budget_ns: float | None = None) -> Allocation:
    """Solve a multiple-choice knapsack: one of the candidates `items[i]` for every block i.

    Bytes are added as integers, times and risks with math.fsum. Sums are compared with the budgets without tolerance.
    Among choices of equal risk (a relative 1e-12), one with fewer distinct configurations is preferred, then one with
    fewer bytes. The effort is limited in labels, not in time: equal calls give equal answers, and the order of blocks
    and candidates does not change the risk. An allocation that is not exact says so by its lower bound. A larger budget
    never gives a larger risk if its allocation is exact; otherwise the risk may be larger, by less than the gap.

    Raises BudgetError, which names budgets that are accepted; ValueError for an item that has no finite candidates.
    """
    table = Instance.of(items)
    if budget_ns is not None and math.isnan(budget_ns):
        raise ValueError("the time budget is not a number")
    if budget_ns == math.inf:
        budget_ns = None
    solution = _least(table, table.risk, budget_bytes, budget_ns)
    choice = solution.choice
    if choice is None:
        ends = _ends(table, budget_bytes, budget_ns)
        choice = next((c for c in ends if c is not None and _fits(table, c, budget_bytes, budget_ns)), None)
        if choice is None:
            raise _refusal(table, budget_bytes, budget_ns, *ends)
    found = Allocation.of(items, table.original(choice), math.inf if solution.is_exact else solution.bound)
    return settle_ties(items, found, budget_bytes, budget_ns)


class Relaxed(NamedTuple):
    """The solution of the linear relaxation, rounded to whole candidates.

    choice: for every block the candidate of least cost at these prices. Together they may exceed each budget by part of
        a block.
    per_byte: the price of memory, in nats per byte.
    per_ns: the price of time, in nats per ns.
    """

    choice: list[int]
    per_byte: float
    per_ns: float


def relaxed(items: Sequence[Sequence[Candidate]], budget_bytes: int, budget_ns: float | None = None) -> Relaxed | None:
    """Solve the linear relaxation. Return None if not even fractions of candidates fit."""
    table = Instance.of(items)
    knapsack = _knapsack(table, table.risk, budget_bytes, budget_ns)
    relaxation = relax(knapsack) if knapsack is not None else None
    if relaxation is None:
        return None
    left_bytes = budget_bytes - sum(min(c.size_bytes for c in block) for block in items)
    left_ns = 0.0 if budget_ns is None else budget_ns - math.fsum(min(c.time_ns for c in block) for block in items)
    prices = [*relaxation.prices.tolist(), 0.0]
    return Relaxed(
        table.original(relaxation.reduced.argmin(1)),
        prices[0] / left_bytes if left_bytes > 0 else 0.0,
        prices[1] / left_ns if left_ns > 0.0 else 0.0,
    )


def fastest_choice(items: Sequence[Sequence[Candidate]], budget_bytes: int) -> list[int]:
    """Return the candidates of least time within the memory budget.

    Raises BudgetError if none fit.
    """
    table = Instance.of(items)
    choice = _least(table, table.time_ns, budget_bytes, None).choice
    if choice is None:
        raise _refusal(table, budget_bytes, None, _ends(table, budget_bytes, None)[0], None)
    return table.original(choice)


def _fits(table: Instance, choice: np.ndarray, budget_bytes: int | None, budget_ns: float | None) -> bool:
    return (budget_bytes is None or table.bytes_of(choice) <= budget_bytes) and (
        budget_ns is None or table.time_of(choice) <= budget_ns
    )


def _least(table: Instance, cost: np.ndarray, budget_bytes: int | None, budget_ns: float | None) -> Solution:
    """Return the choice of least total cost within the budgets; None stands for no budget."""
    knapsack = _knapsack(table, cost, budget_bytes, budget_ns)
    if knapsack is None:
        return Solution(None, math.inf, False)
    return solve_knapsack(knapsack, lambda choice: _fits(table, choice, budget_bytes, budget_ns))


def _knapsack(table: Instance, cost: np.ndarray, budget_bytes: int | None, budget_ns: float | None) -> Knapsack | None:
    """Build the knapsack for these costs and budgets; None if a budget is too small for any choice."""
    weights, budgets, exists = [], [], table.exists
    if budget_bytes is not None:
        weights.append(table.size_bytes)
        budgets.append(budget_bytes)
    if budget_ns is not None:
        times, budget, exists = whole_times(table.time_ns, budget_ns, exists)
        weights.append(times)
        budgets.append(budget)
    return Knapsack.of(cost, weights, budgets, exists)


def _ends(table: Instance, budget_bytes: int, budget_ns: float | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the smallest choice within the time budget and the fastest one within the memory budget.

    Either is None if there is none.
    """
    sizes = table.size_bytes.astype(float)
    if budget_ns is None:
        return np.where(table.exists, sizes, np.inf).argmin(1), None
    smallest = _least(table, sizes, None, budget_ns).choice
    return smallest, _least(table, table.time_ns, budget_bytes, None).choice


def _refusal(
    table: Instance,
    budget_bytes: int,
    budget_ns: float | None,
    smallest: np.ndarray | None,
    fastest: np.ndarray | None,
) -> BudgetError:
    """Build the error for budgets that cannot be met; it names budgets that can."""
    memory = f"memory_budget: {budget_bytes} bytes"
    if budget_ns is None:
        assert smallest is not None
        size = table.bytes_of(smallest)
        return BudgetError(f"{memory} is too small, the smallest allocation takes {size} bytes: raise it to {size}")
    time = f"time_budget: {budget_ns!r} ns"
    if smallest is None and fastest is None:  # neither can be met by itself
        least = np.lexsort((table.time_ns, table.size_bytes, ~table.exists))[:, 0]
        size, ns = table.bytes_of(least), table.time_of(least)
        return BudgetError(
            f"{memory} and {time} are both too small: the smallest allocation takes {size} bytes and {ns!r} ns; "
            f"raise memory_budget to {size} and time_budget to {ns!r}"
        )
    if smallest is None:
        assert fastest is not None
        ns = table.time_of(fastest)
        return BudgetError(
            f"{time} is too small, the fastest allocation within the memory budget of {budget_bytes} bytes takes "
            f"{ns!r} ns: raise it to {ns!r}"
        )
    size = table.bytes_of(smallest)
    if fastest is None:
        return BudgetError(
            f"{memory} is too small, the smallest allocation within the time budget of {budget_ns!r} ns takes "
            f"{size} bytes: raise it to {size}"
        )
    ns = table.time_of(fastest)
    return BudgetError(
        f"{memory} and {time} cannot be met together: raise memory_budget to {size}, with which this time budget can be "
        f"met, or time_budget to {ns!r}, with which this memory budget can be met"
    )
