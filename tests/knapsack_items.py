"""Random knapsacks, and what an allocation of one has to be."""

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from baoc_compile.core.allocation import Allocation, Candidate
from baoc_compile.passes.solve.allocate import allocate

KINDS = ("realistic", "uncorrelated", "shapes")
SHAPES = (768, 768 * 768, 768 * 3072, 3 * 768 * 768, 50257 * 768)


def make_items(kind: str, blocks: int, rng: np.random.Generator, candidates: int = 12) -> list[list[Candidate]]:
    """ "realistic": sizes over three decades, risk falls convexly with bytes, with noise; time has nothing to do with
    bytes. "shapes": few distinct sizes, so that many choices take equally many bytes."""
    shape = (blocks, candidates)
    if kind == "uncorrelated":
        sizes, risk, times = rng.integers(1, 10**6, shape), rng.uniform(0, 1, shape), rng.uniform(0, 1e5, shape)
    else:
        if kind == "realistic":
            numel = np.exp(rng.uniform(math.log(1e3), math.log(1e6), (blocks, 1))).astype(np.int64)
            width = np.sort(rng.uniform(0.3, 8, shape), 1)
            times = numel * rng.uniform(0.5, 2, shape)
        else:
            numel = rng.choice(SHAPES, (blocks, 1), p=[0.4, 0.2, 0.2, 0.18, 0.02])
            width = np.array([8, 6, 5, 4, 4, 3, 2, 2, 1, 1, 0.5, 0.02])[:candidates]
            times = numel * (0.3 * width + rng.choice([0.2, 0.5, 1, 2], candidates))
        sizes = (numel * width).astype(np.int64)
        risk = rng.lognormal(0, 1, (blocks, 1)) * np.sqrt(numel) * 2.0**-width * rng.lognormal(0, 0.3, shape)
    return [
        [Candidate(f"c{j}", int(sizes[i, j]), float(times[i, j]), float(risk[i, j])) for j in range(candidates)]
        for i in range(blocks)
    ]


def swapped(items: list[list[Candidate]]) -> list[list[Candidate]]:
    """Time as risk."""
    return [[Candidate(c.configuration, c.size_bytes, c.time_ns, c.time_ns) for c in block] for block in items]


def binding_budgets(items: list[list[Candidate]], rng: np.random.Generator) -> tuple[int, float]:
    least = sum(min(c.size_bytes for c in block) for block in items)
    wanted = sum(min(block, key=lambda c: c.risk).size_bytes for block in items)
    budget_bytes = least + int(rng.uniform(0.1, 0.5) * max(wanted - least, 0))
    slow, fast = allocate(items, budget_bytes).time_ns, allocate(swapped(items), budget_bytes).risk
    return budget_bytes, fast + rng.uniform(0.2, 0.8) * (slow - fast)


def best_by_force(items, budget_bytes, budget_ns):
    everything = (Allocation.of(items, c, -math.inf) for c in itertools.product(*(range(len(b)) for b in items)))
    return min((a.risk for a in everything if a.fits(budget_bytes, budget_ns)), default=None)


def check(items, allocation, budget_bytes, budget_ns=None):
    """What it says is true: sums of what was chosen, within the budgets."""
    chosen = [block[j] for block, j in zip(items, allocation.choice, strict=True)]
    assert allocation.size_bytes == sum(c.size_bytes for c in chosen) <= budget_bytes
    assert allocation.time_ns == math.fsum(c.time_ns for c in chosen) <= (math.inf if budget_ns is None else budget_ns)
    assert allocation.risk == math.fsum(c.risk for c in chosen) >= allocation.lower_bound
    return allocation


def equal(a: float, b: float, scale: float = 0.0) -> bool:
    return abs(a - b) <= 2e-12 * max(abs(a), abs(b), scale)


candidate = st.builds(
    Candidate,
    st.sampled_from("abcde"),
    st.integers(0, 12) | st.sampled_from([2**49, 2**50 - 1, 2**50]),
    st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0, 2.5, 1e3]),
    st.sampled_from([-1.0, 0.0, 1e-12, 0.1, 0.2, 0.3, 1.0, 1e3]) | st.floats(-2, 2),
)
small_items = st.lists(st.lists(candidate, min_size=1, max_size=5), max_size=4)
