"""Launches over tensors that move in memory, change their layout, or go away."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from launch_cases import LARGE, SMALL, draw_gradients, parameters_in, parameters_of, prepared, stored_tensors
from program_cases import bits
from torch import Tensor

from baoc_compile.core.errors import StateError
from baoc_compile.runtime.session import session_of


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
        compiles.append(len(session_of(optimizers[0]).own.readings))
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
