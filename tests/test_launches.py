"""One launch for every program of a step, whatever the number of tensors; in place; over tensors that may move in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from program_cases import BF16, FP32, MANY_ROWS, Which, assert_same_bits, bits, cpp, graphs_of, step, table_of
from torch import Tensor

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.backend import baoc
from baoc_compile.core.errors import StateError
from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.runtime.session import session_of

FUSED_UPDATE = torch.ops.baoc.fused_update.default
LARGE, SMALL = (64, 64), (8,)  # stored in 8 bits, and left as it is


def parameters_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def draw_gradients(parameters: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def parameters_in(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def prepared(optimizer: Any, plan: Any) -> Callable[[], object]:
    baoc_compile.prepare(optimizer, plan=plan)
    return torch.compile(optimizer.step, backend="baoc")


def calls(optimizer: Any) -> list[torch.fx.Node]:
    """The nodes that launch something, in the graph that was rewritten last."""
    return [n for n in baoc_compile.inspect(optimizer).graphs["rewritten"].graph.nodes if n.target is FUSED_UPDATE]


def counts(optimizer: Any) -> list[int]:
    return [program.launches for program in baoc_compile.inspect(optimizer).programs]


def stored_tensors(optimizer: Any) -> list[Tensor]:
    """Parameters, gradients, and every tensor that state consists of."""
    found = []
    for p in parameters_in(optimizer):
        found += [p, p.grad]
        for value in optimizer.state[p].values():
            found += value.parts.values() if isinstance(value, StateTensor) else [value]
    return found


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
    """The rewritten graph is for reading; what runs are launches with their tensors bound."""

    def with_operators(gm: Any, inputs: Any) -> Callable[..., Any]:
        compiled = baoc(gm, inputs).compiled
        return lambda *arguments: (compiled.rewritten or compiled.bind()).gm(*arguments)

    results = []
    for backend in ("baoc", with_operators):
        torch._dynamo.reset()
        parameters = parameters_of([LARGE, SMALL, (3, 5, 7)])
        optimizer = torch.optim.AdamW(parameters)
        baoc_compile.prepare(optimizer, plan={"exp_avg_sq": "factored", "*": "8bit"})
        compiled = torch.compile(optimizer.step, backend=backend)
        for seed in range(3):
            draw_gradients(parameters, seed)
            compiled()
        assert counts(optimizer) == [3, 3, 3]
        results.append([bits(t.detach()) for t in stored_tensors(optimizer)])
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


# tensors that move


def transposed(value: Tensor) -> Tensor:
    """The same values in other strides."""
    return value.detach().mT.contiguous().mT


def moved_parameters(optimizer: Any) -> list[Tensor]:
    """Gives every parameter new memory; returns the old, kept alive."""
    old = [p.data for p in parameters_in(optimizer)]
    for p in parameters_in(optimizer):
        p.data = p.data.clone()
    return old


def transposed_parameters(optimizer: Any) -> list[Tensor]:
    old = [p.data for p in parameters_in(optimizer)]
    for p in parameters_in(optimizer):
        p.data = transposed(p)
    return old


def moved_state(optimizer: Any) -> list[Tensor]:
    old = []
    for p in parameters_in(optimizer):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            value = optimizer.state[p][key]
            old.append(value.data)
            value.data = value.data.clone()
    return old


def transposed_state(optimizer: Any) -> list[Tensor]:
    old = []
    for p in parameters_in(optimizer):
        old.append(optimizer.state[p]["exp_avg"].data)
        optimizer.state[p]["exp_avg"].data = transposed(old[-1])
    return old


def transposed_gradients(optimizer: Any) -> list[Tensor]:
    for p in parameters_in(optimizer):
        p.grad = transposed(p.grad)
    return []


def no_gradients_in_between(optimizer: Any) -> list[Tensor]:
    gradients = [p.grad.clone() for p in parameters_in(optimizer)]
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    for p, grad in zip(parameters_in(optimizer), gradients, strict=True):
        p.grad = grad
    return []


def other_rate(optimizer: Any) -> list[Tensor]:
    optimizer.param_groups[0]["lr"].mul_(3)
    return []


def nothing(optimizer: Any) -> list[Tensor]:
    return []


CHANGES = [
    nothing,
    moved_parameters,
    transposed_parameters,
    moved_state,
    transposed_state,
    transposed_gradients,
    no_gradients_in_between,
    other_rate,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_tensors_may_move_without_compiling_again(change):
    """New gradients at every step, and a change between the second and the third; eager torch goes through the same."""
    shapes = [(6, 5), (33,), (2, 3, 4)] if "transposed" not in change.__name__ else [(6, 5), (4, 4), (2, 3, 4)]
    optimizers = [torch.optim.AdamW(parameters_of(shapes), lr=torch.tensor(0.05), foreach=False) for _ in range(2)]
    compiled = prepared(optimizers[0], "fp32")
    compiles = []
    steps = [compiled, optimizers[1].step]
    for number in range(5):
        for optimizer, run in zip(optimizers, steps, strict=True):
            draw_gradients(parameters_in(optimizer), number)
            old = change(optimizer) if number == 2 else []
            kept = [t.clone() for t in old]
            stance = "fail_on_recompile" if number >= 2 and run is compiled else "default"
            with torch.compiler.set_stance(stance):
                run()
            assert all(torch.equal(a, b) for a, b in zip(old, kept, strict=True)), "wrote to memory that was given up"
        compiles.append(len(session_of(optimizers[0]).steps))
    assert compiles[1:] == compiles[1:2] * 4
    for ours, theirs in zip(*map(parameters_in, optimizers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for key, value in optimizers[1].state[theirs].items():
            torch.testing.assert_close(optimizers[0].state[ours][key], value, rtol=1e-5, atol=1e-6)


def test_compressed_state_may_move():
    """The parts of a state tensor are given other memory; the codes written are those that would have been."""
    results = []
    for moves in (False, True):
        parameters = parameters_of([LARGE])
        optimizer = torch.optim.AdamW(parameters)
        compiled = prepared(optimizer, "8bit")
        for seed in range(4):
            draw_gradients(parameters, seed)
            if moves:
                for part in optimizer.state[parameters[0]]["exp_avg"].parts.values():
                    part.data = part.data.clone()
            compiled()
        results.append([bits(t.detach()) for t in stored_tensors(optimizer)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_scheduler_changes_a_tensor_of_the_rate():
    optimizers = [torch.optim.AdamW(parameters_of([(33,)]), lr=torch.tensor(0.05), foreach=False) for _ in range(2)]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in optimizers]
    compiled = prepared(optimizers[0], "fp32")
    for number in range(4):
        for optimizer, scheduler, run in zip(optimizers, schedulers, (compiled, optimizers[1].step), strict=True):
            draw_gradients(parameters_in(optimizer), number)
            with torch.compiler.set_stance("fail_on_recompile" if number > 1 and run is compiled else "default"):
                run()
            scheduler.step()
    torch.testing.assert_close(parameters_in(optimizers[0]), parameters_in(optimizers[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_no_gradient_is_kept_alive(plan):
    """Neither those of the first step nor later ones: with `set_to_none` they would take memory once more."""
    parameters = parameters_of([LARGE, SMALL])
    optimizer = torch.optim.AdamW(parameters)
    compiled = prepared(optimizer, plan)
    for seed in range(3):
        draw_gradients(parameters, seed)
        watched = [weakref.ref(p.grad) for p in parameters]
        compiled()
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        assert [gradient() for gradient in watched] == [None, None], f"after step {seed}"


@pytest.mark.parametrize("plan", ["fp32", "8bit"])
def test_autograd_is_told_that_parameters_were_written(plan):
    """A backward pass that needs their old values fails, as after an eager step."""
    parameters = parameters_of([LARGE, SMALL])
    optimizer = torch.optim.AdamW(parameters)
    compiled = prepared(optimizer, plan)
    draw_gradients(parameters, 0)
    compiled()
    for p in parameters:
        loss = (p * p).sum()
        compiled()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_parameter_of_another_type_is_an_error():
    parameters = parameters_of([SMALL])
    optimizer = torch.optim.AdamW(parameters)
    compiled = prepared(optimizer, "fp32")
    for seed in range(2):
        draw_gradients(parameters, seed)
        compiled()
    parameters[0].data = parameters[0].data.double()
    parameters[0].grad = torch.ones(SMALL, dtype=torch.float64)
    with pytest.raises(StateError, match=r"param_groups\[0\].params\[0\] is now float64"):
        compiled()
