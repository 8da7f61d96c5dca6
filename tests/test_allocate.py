"""The solver against brute force and an integer programme; its certificates, refusals, ties and invariances."""

import itertools
import math
import re
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from knapsack_items import KINDS, best_by_force, binding_budgets, check, equal, make_items, small_items, swapped
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from baoc_compile.core.allocation import Allocation, Candidate
from baoc_compile.core.errors import BudgetError
from baoc_compile.passes.solve import solve_knapsack
from baoc_compile.passes.solve.allocate import allocate, frontier


@given(small_items, st.data())
def test_equals_brute_force(items, data):
    some = [data.draw(st.sampled_from(block)) for block in items]
    budget_bytes = sum(c.size_bytes for c in some) + data.draw(st.integers(-2, 5))
    budget_ns = data.draw(st.none() | st.just(math.fsum(c.time_ns for c in some)) | st.floats(0, 5))
    best = best_by_force(items, budget_bytes, budget_ns)
    if best is None:
        with pytest.raises(BudgetError):
            allocate(items, budget_bytes, budget_ns)
        return
    allocation = check(items, allocate(items, budget_bytes, budget_ns), budget_bytes, budget_ns)
    assert allocation.is_exact and allocation.certificate == "optimal"
    assert equal(allocation.risk, best, scale=sum(max(abs(c.risk) for c in block) for block in items))


def agrees_with_milp(items, budget_bytes, budget_ns, seconds) -> bool:
    """False if the integer programme was not solved in time. Its solution may violate a budget, by rounding."""
    risk = np.array([c.risk for block in items for c in block])
    sizes = np.array([c.size_bytes for block in items for c in block]) / budget_bytes
    times = np.array([c.time_ns for block in items for c in block])
    block_of = np.repeat(np.arange(len(items)), [len(block) for block in items])
    one_each = csr_matrix((np.ones(len(risk)), (block_of, np.arange(len(risk)))))
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None], -np.inf, 1)]
    if budget_ns is not None:
        limits.append(LinearConstraint(times[None] / budget_ns, -np.inf, 1))
    options = {"time_limit": seconds, "mip_rel_gap": 1e-7}
    solved = milp(risk, constraints=limits, integrality=np.ones(len(risk)), bounds=Bounds(0, 1), options=options)

    allocation = check(items, allocate(items, budget_bytes, budget_ns), budget_bytes, budget_ns)
    assert allocation.relative_gap <= 0.005
    slack = 1e-6 * abs(allocation.risk)
    if solved.mip_dual_bound is not None:
        assert allocation.risk >= solved.mip_dual_bound - slack
    if solved.x is not None:
        picked = np.flatnonzero(solved.x > 0.5) - np.cumsum([0] + [len(block) for block in items[:-1]])
        theirs = Allocation.of(items, picked.tolist(), -math.inf)
        if theirs.fits(budget_bytes, budget_ns):
            assert allocation.lower_bound <= theirs.risk + slack
            assert allocation.risk <= theirs.risk + allocation.gap + slack
    return solved.status == 0


def random_instances(count: int, most_blocks: int):
    rng = np.random.default_rng(0)
    for i in range(count):
        blocks = int(np.exp(rng.uniform(math.log(3), math.log(most_blocks))).round())
        items = make_items(KINDS[i % 3], blocks, rng, int(rng.integers(2, 13)))
        budget_bytes, budget_ns = binding_budgets(items, rng)
        yield items, budget_bytes, budget_ns if i % 2 else None


def test_agrees_with_an_integer_programme():
    solved = [agrees_with_milp(*instance, seconds=5) for instance in random_instances(30, most_blocks=60)]
    assert sum(solved) >= 25


@pytest.mark.slow
def test_agrees_with_an_integer_programme_1000_times():
    solved = [agrees_with_milp(*instance, seconds=10) for instance in random_instances(1000, most_blocks=400)]
    print(f"{sum(solved)} of {len(solved)} integer programmes solved")
    assert sum(solved) >= 900


@pytest.mark.parametrize("kind", KINDS)
def test_certified_within_half_a_percent_beyond_150_blocks(kind):
    rng = np.random.default_rng(1)
    items = make_items(kind, 200, rng)
    budget_bytes, budget_ns = binding_budgets(items, rng)
    allocation = check(items, allocate(items, budget_bytes, budget_ns), budget_bytes, budget_ns)
    assert allocation.relative_gap <= 0.005
    assert allocate(items, budget_bytes).risk < allocation.lower_bound  # both budgets bind
    assert allocate(items, 2**60, budget_ns).risk < allocation.lower_bound


@pytest.mark.slow
@pytest.mark.parametrize("blocks, seconds", [(150, 10), (1000, 60)])  # ten times what it should take
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_large_instances_take_seconds(kind, blocks, seconds, seed):
    rng = np.random.default_rng(seed)
    items = make_items(kind, blocks, rng)
    budget_bytes, budget_ns = binding_budgets(items, rng)
    started = time.perf_counter()
    allocation = check(items, allocate(items, budget_bytes, budget_ns), budget_bytes, budget_ns)
    taken = time.perf_counter() - started
    print(f"{kind}, {blocks} blocks: {taken:.2f} s, {allocation.certificate}")
    assert taken < seconds
    assert allocation.relative_gap <= 0.005


@pytest.mark.parametrize("labels", [1, 30])
@pytest.mark.parametrize("is_tight", [False, True])
def test_bound_is_valid_when_labels_run_out(monkeypatch, labels, is_tight):
    cut_off = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        items = make_items(KINDS[seed % 3], 30, rng)
        budget_bytes, budget_ns = binding_budgets(items, rng)
        if is_tight:  # hardly any choice fits
            budget_ns = allocate(swapped(items), budget_bytes).risk * (1 + 1e-5)
        exact = allocate(items, budget_bytes, budget_ns)
        assert exact.is_exact
        with monkeypatch.context() as m:
            m.setattr(solve_knapsack, "LABELS", labels)
            m.setattr("baoc_compile.passes.solve.search_labels.NARROWEST", 1)
            m.setattr("baoc_compile.passes.solve.search_labels.MANY", 10**9)  # no further prices either
            quick = check(items, allocate(items, budget_bytes, budget_ns), budget_bytes, budget_ns)
        cut_off += not quick.is_exact
        assert quick.lower_bound <= exact.risk * (1 + 1e-12) and exact.risk <= quick.risk * (1 + 1e-12)
    assert cut_off >= 1, "the limit has to be hit for this test to mean something"


@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(0, 10**6))
def test_larger_budgets_never_raise_the_risk(kind, blocks, seed):
    rng = np.random.default_rng(seed)
    items = make_items(kind, blocks, rng, candidates=6)
    budget_bytes, budget_ns = binding_budgets(items, rng)
    risks = {}
    for b, t in itertools.product((0, 1, 2), repeat=2):
        budgets = int(budget_bytes * (1 + 0.04 * b)), budget_ns * (1 + 0.03 * t)
        risks[b, t] = check(items, allocate(items, *budgets), *budgets).risk
    for (b, t), (b2, t2) in itertools.product(risks, repeat=2):
        if b <= b2 and t <= t2:
            assert risks[b2, t2] <= risks[b, t] * (1 + 1e-12)


@given(st.sampled_from(KINDS), st.integers(1, 30), st.integers(0, 10**6))
def test_order_of_blocks_and_candidates_does_not_change_the_risk(kind, blocks, seed):
    rng = np.random.default_rng(seed)
    items = make_items(kind, blocks, rng, candidates=6)
    budgets = binding_budgets(items, rng)
    shuffled = [
        [block[j] for j in rng.permutation(len(block))] for block in (items[i] for i in rng.permutation(blocks))
    ]
    a, b = allocate(items, *budgets), check(shuffled, allocate(shuffled, *budgets), *budgets)
    assert equal(a.risk, b.risk) and equal(a.lower_bound, b.lower_bound)


def named_budgets(error: BudgetError) -> list[dict[str, float]]:
    """The alternatives that a message offers."""
    text = str(error)
    both = re.search(r"raise memory_budget to (\d+) and time_budget to (\S+)$", text)
    if both:
        return [{"budget_bytes": int(both[1]), "budget_ns": float(both[2])}]
    either = re.search(r"raise memory_budget to (\d+), .* or time_budget to ([^ ,]+),", text)
    if either:
        return [{"budget_bytes": int(either[1])}, {"budget_ns": float(either[2])}]
    one = re.search(r"raise it to (\S+)$", text)
    assert one, text
    if text.startswith("memory_budget"):
        return [{"budget_bytes": int(one[1])}]
    assert text.startswith("time_budget"), text
    return [{"budget_ns": float(one[1])}]


@given(small_items.filter(bool), st.integers(-1, 30), st.none() | st.floats(0, 4))
def test_a_refusal_names_the_least_budgets_that_are_accepted(items, budget_bytes, budget_ns):
    if best_by_force(items, budget_bytes, budget_ns) is not None:
        return
    asked = {"budget_bytes": budget_bytes, "budget_ns": budget_ns}
    with pytest.raises(BudgetError) as refused:
        allocate(items, **asked)
    assert str(budget_bytes) in str(refused.value) or repr(budget_ns) in str(refused.value)
    for alternative in named_budgets(refused.value):
        allocate(items, **{**asked, **alternative})
        if len(alternative) == 1 and "budget_bytes" in alternative:
            assert best_by_force(items, alternative["budget_bytes"] - 1, budget_ns) is None
        elif len(alternative) == 1:
            assert best_by_force(items, budget_bytes, math.nextafter(alternative["budget_ns"], -1.0)) is None


@pytest.mark.parametrize("kind, blocks", [("realistic", 60), ("uncorrelated", 12)])
def test_a_refusal_of_many_blocks_names_accepted_budgets(kind, blocks):
    rng = np.random.default_rng(2)
    items = make_items(kind, blocks, rng)
    least = sum(min(c.size_bytes for c in block) for block in items)
    fast = sum(min(block, key=lambda c: (c.time_ns, c.size_bytes)).size_bytes for block in items)
    budget_bytes = least + (fast - least) // 20
    budget_ns = allocate(swapped(items), budget_bytes).risk * (1 - 1e-6)
    with pytest.raises(BudgetError, match=r"memory_budget.*time_budget") as refused:
        allocate(items, budget_bytes, budget_ns)
    memory, more_time = named_budgets(refused.value)
    allocate(items, memory["budget_bytes"], budget_ns)
    allocate(items, budget_bytes, more_time["budget_ns"])


def test_messages():
    items = [[Candidate("small", 4, 9.0, 1.0), Candidate("fast", 9, 4.0, 1.0)]]
    with pytest.raises(BudgetError, match=r"^memory_budget: 3 bytes is too small.*takes 4 bytes: raise it to 4$"):
        allocate(items, 3)
    with pytest.raises(BudgetError, match=r"^time_budget: 3.0 ns .* memory budget of 5 bytes .* raise it to 9.0$"):
        allocate(items, 5, 3.0)
    with pytest.raises(BudgetError, match=r"^memory_budget: 3 bytes .* time budget of 5.0 ns .* raise it to 9$"):
        allocate(items, 3, 5.0)
    with pytest.raises(BudgetError, match=r"cannot be met together: raise memory_budget to 9, .* time_budget to 9.0,"):
        allocate(items, 5, 5.0)
    with pytest.raises(BudgetError, match=r"both too small: .* raise memory_budget to 4 and time_budget to 9.0$"):
        allocate(items, 3, 3.0)


def test_ties_prefer_fewer_configurations_then_fewer_bytes():
    rare = Candidate("rare", 1, 0.0, 0.5)
    common = [Candidate("common", 2, 0.0, 0.5), Candidate("common", 3, 0.0, 0.5)]
    items = [[rare, *common], [common[1], common[0]], [Candidate("other", 1, 0.0, 0.7), *common]]
    allocation = allocate(items, 100)
    assert {block[j].configuration for block, j in zip(items, allocation.choice, strict=True)} == {"common"}
    assert (allocation.size_bytes, allocation.risk, allocation.is_exact) == (6, 1.5, True)
    assert allocate(items, 5).size_bytes == 5  # the budget comes first
    nearly = [[Candidate("rare", 1, 0.0, 0.5 * (1 - 1e-13)), common[0]], [common[0]]]
    assert allocate(nearly, 100).choice == (1, 0)
    worse = [[Candidate("rare", 1, 0.0, 0.5 * (1 - 1e-9)), common[0]], [common[0]]]
    assert allocate(worse, 100).choice == (0, 0)


def test_no_blocks_single_candidates_and_budgets_far_too_large():
    assert allocate([], 0) == allocate([], 10, 1.0) == Allocation((), 0, 0.0, 0.0, 0.0)
    assert [p.choice for p in frontier([])] == [()]
    with pytest.raises(BudgetError):
        allocate([], -1)
    items = make_items("realistic", 50, np.random.default_rng(5))
    single = [block[:1] for block in items]
    assert allocate(single, sum(block[0].size_bytes for block in single)).choice == (0,) * 50
    best = tuple(min(range(12), key=lambda j: block[j].risk) for block in items)
    assert allocate(items, 2**70, 1e30).choice == allocate(items, 2**70, math.inf).choice == best


def test_risks_over_15_decades_and_sizes_up_to_2_50():
    rng = np.random.default_rng(6)
    items = [
        [Candidate(f"c{j}", int(rng.integers(2**49, 2**50)), 0.0, 10 ** rng.uniform(-12, 3)) for j in range(8)]
        for _ in range(300)
    ]
    budget_bytes = 300 * 2**49 + 300 * 2**47
    allocation = check(items, allocate(items, budget_bytes), budget_bytes)
    assert allocation.relative_gap <= 0.005


def test_a_budget_is_compared_without_tolerance():
    items = [[Candidate("a", 2**50, 0.1, 0.0), Candidate("b", 2**50 - 1, 0.3, 1.0)] for _ in range(10)]
    total = math.fsum([0.1] * 10)
    assert allocate(items, 10 * 2**50, total).risk == 0.0
    assert allocate(items, 10 * 2**50 - 1).risk == 1.0
    with pytest.raises(BudgetError):
        allocate(items, 10 * 2**50, math.nextafter(total, 0.0))
    assert total < 10 * Fraction(0.1), "it is the rounded sum that counts"
    items = [[Candidate("a", 2, 0.1, 0.0), Candidate("b", 1, 0.1, 1.0)] for _ in range(10)]
    assert allocate(items, 20, total).risk == 0.0


def test_certificate():
    inexact = Allocation((0,), 10, 1.0, 0.0123, 0.0122)
    assert not inexact.is_exact and inexact.gap == pytest.approx(1e-4)
    assert inexact.certificate == "within 0.81 % of the optimum (risk 0.0123, lower bound 0.0122)"
    assert str(inexact) == f"1 block, 10 bytes, 1 ns, risk 0.0123 nats: {inexact.certificate}"
    assert Allocation((0,), 10, 1.0, 0.0, 0.0).certificate == "optimal"


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_items_that_are_no_candidates(wrong):
    with pytest.raises(ValueError, match="block 1 has no candidates"):
        allocate([[Candidate("a", 1, 1.0, 1.0)], []], 10)
    with pytest.raises(ValueError, match="block 0 has a candidate whose risk or time is not finite"):
        allocate([[Candidate("a", 1, 1.0, wrong)]], 10)
    with pytest.raises(ValueError, match="block 0 has a candidate whose risk or time is not finite"):
        allocate([[Candidate("a", 1, wrong, 1.0)]], 10)
    with pytest.raises(ValueError, match="time budget is not a number"):
        allocate([], 10, math.nan)
