"""One launch for every program of a step, whatever the number of tensors; in place; as an operator that torch accepts."""

from __future__ import annotations

import pytest
import torch
from launch_cases import (
    FUSED_UPDATE,
    LARGE,
    SMALL,
    calls,
    counts,
    draw_gradients,
    parameters_of,
    prepared,
    stored_tensors,
)
from program_cases import BF16, FP32, MANY_ROWS, Which, assert_same_bits, bits, cpp, graphs_of, step, table_of

import baoc_compile
from baoc_compile.kernels.launch.fused_update import Launch

# how many


@pytest.mark.parametrize("tensors", [10, 60, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_launches_do_not_grow_with_the_number_of_tensors(plan, tensors):
    parameters = parameters_of([LARGE, SMALL] + [(i % 7,) for i in range(tensors - 2)])
    starts = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    compiled = prepared(optimizer, plan)
    programs = {"fp32": 1, "8bit": 2}[plan]
    for steps in (1, 2, 3):
        draw_gradients(parameters, steps)
        compiled()
        assert counts(optimizer) == [steps] * programs
    assert len(calls(optimizer)) == programs
    assert sum(len(node.args[1]) for node in calls(optimizer)) == tensors
    for p, start in zip(parameters, starts, strict=True):
        assert p.numel() == 0 or (p.detach() != start).all()


@pytest.mark.parametrize(
    ("plan", "launched"),
    [
        ({"*": "bf16"}, ["update", "update"]),
        ({"exp_avg_sq": "factored", "*": "8bit"}, ["average", "update", "update"]),
        ({"exp_avg_sq": "row", "exp_avg": "column"}, ["average", "update", "update"]),
    ],
    ids=["bf16", "factored", "rows and columns"],
)
def test_one_more_where_slots_are_shared(plan, launched):
    """Averages are taken before the update, in one launch for all slots; small tensors have an update of their own."""
    parameters = parameters_of([LARGE, LARGE, SMALL])
    optimizer = torch.optim.AdamW(parameters)
    compiled = prepared(optimizer, plan)
    draw_gradients(parameters, 1)
    compiled()
    compiled()
    assert sorted(node.name.partition("_")[0] for node in calls(optimizer)) == launched
    assert counts(optimizer) == [2] * len(launched)


def test_two_groups_with_their_own_numbers_share_a_launch():
    parameters = parameters_of([(5,), (5,)])
    parameters[1].data.copy_(parameters[0].detach())
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}], lr=0.1)
    starts = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.ones(5)
    prepared(optimizer, "fp32")()
    assert counts(optimizer) == [1]
    for p, start, lr in zip(parameters, starts, (0.1, 0.2), strict=True):
        torch.testing.assert_close(p.detach(), start - lr)


def test_two_types_make_two_launches():
    parameters = [*parameters_of([(5,), (6,)]), *parameters_of([(7,)], torch.bfloat16)]
    optimizer = torch.optim.AdamW(parameters)
    draw_gradients(parameters, 1)
    prepared(optimizer, "fp32")()
    assert counts(optimizer) == [1, 1]
    assert sorted(len(program.parameters) for program in baoc_compile.inspect(optimizer).programs) == [1, 2]


# the operator

OPERATOR_CASES = [
    Which("AdamW", "8bit", FP32, FP32),
    Which("AdamW", "4bit-learned", BF16, BF16),
    Which("SGD", "fp32", FP32, FP32),
    Which("AdamW", "exp_avg=column exp_avg_sq=factored *=8bit", FP32, FP32),
]


def launches_of(which: Which, batch: list) -> list[tuple[Launch, tuple]]:
    """Launches over the batch, in order, with the operator's arguments. One number comes in as a changing scalar."""
    found = []
    for graph in graphs_of(which):
        name = next((o.name for o in graph.numbers if o.source == "scalar"), None)
        numbers = [dict(row.numbers) for row in batch]
        scalars = [torch.tensor(row.pop(name), dtype=torch.float64) for row in numbers] if name else []
        varying = [{name: i} if name else {} for i in range(len(batch))]
        params = [row.tensors["param"] for row in batch]
        launch = Launch(
            graph,
            cpp(graph),
            [f"p{i}" for i in range(len(batch))],
            [p.shape for p in params],
            numbers,
            varying,
            [row.sharing for row in batch],
        )
        state = [row.tensors[o.name] for row in batch for o in launch.state_operands]
        found.append((launch, (launch.key, params, [row.tensors["grad"] for row in batch], state, scalars)))
    return found


@pytest.mark.parametrize("which", OPERATOR_CASES, ids=str)
def test_the_operator_passes_torchs_own_checks(which):
    launches = launches_of(which, table_of(which, MANY_ROWS))
    for launch, arguments in launches:
        results = torch.library.opcheck(FUSED_UPDATE, arguments)
        assert set(results.values()) == {"SUCCESS"}
        assert launch.count > 0


def test_its_schema_says_what_it_writes():
    schema = FUSED_UPDATE._schema
    written = {a.name: a.alias_info is not None and a.alias_info.is_write for a in schema.arguments}
    assert written == {"launch": False, "params": True, "grads": False, "state": True, "scalars": False}
    assert schema.is_mutable and not schema.returns


@pytest.mark.parametrize("which", OPERATOR_CASES, ids=str)
def test_the_operator_does_what_the_program_does(which):
    ours, expected = table_of(which, MANY_ROWS), table_of(which, MANY_ROWS)
    for _, arguments in (launches := launches_of(which, ours)):
        FUSED_UPDATE(*arguments)
    step(which, expected)
    assert [launch.count for launch, _ in launches] == [1] * len(launches)
    assert_same_bits(ours, expected)


def test_the_graph_with_operators_does_what_the_bound_step_does():
    """The rewritten graph is for reading; what runs are launches with their tensors bound.

    It has the numbers of the last step, which are those of all steps here, and writes nothing back but tensors.
    """
    results = []
    for by_graph in (False, True):
        parameters = parameters_of([LARGE, SMALL, (3, 5, 7)])
        optimizer = torch.optim.RMSprop(parameters, momentum=0.9)
        compiled = prepared(optimizer, {"square_avg": "factored", "*": "8bit"})
        for seed in range(4):
            draw_gradients(parameters, seed)
            if by_graph and seed >= 2:
                baoc_compile.inspect(optimizer).graphs["rewritten"](*(p.grad for p in parameters))
            else:
                compiled()
        assert counts(optimizer) == [4, 4, 4]
        results.append([bits(t.detach()) for t in stored_tensors(optimizer) if t.ndim])
    for bound, by_operators in zip(*results, strict=True):
        assert torch.equal(bound, by_operators)


@pytest.mark.parametrize("plan", ["fp32", "8bit", "4bit-learned"])
def test_everything_stays_where_it_is(plan):
    parameters = parameters_of([LARGE, SMALL])
    optimizer = torch.optim.AdamW(parameters)
    compiled = prepared(optimizer, plan)
    draw_gradients(parameters, 1)
    compiled()
    before = [t.data_ptr() for t in stored_tensors(optimizer)]
    gradients = [p.grad.clone() for p in parameters]
    for _ in range(3):
        compiled()
    assert [t.data_ptr() for t in stored_tensors(optimizer)] == before
    assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters, gradients, strict=True))
