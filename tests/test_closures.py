"""A closure that is handed to `step` is the user's: it runs as it is, and nothing of it is recorded or compiled."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import baoc_compile


def inside_a_compiled_function(optimizer):
    return torch.compile(lambda closure: optimizer.step(closure), backend="eager")


WAYS = {
    "step": lambda optimizer: optimizer.step,
    "compiled by baoc": lambda optimizer: torch.compile(optimizer.step, backend="baoc"),
    "compiled by another backend": lambda optimizer: torch.compile(optimizer.step, backend="eager"),
    "inside a compiled function": inside_a_compiled_function,
}


@pytest.fixture(params=WAYS)
def training(request):
    """A model, its prepared optimizer, and the way in which its step is called."""
    torch.manual_seed(0)
    model = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    baoc_compile.prepare(optimizer, memory_budget="15%")
    return model, optimizer, WAYS[request.param](optimizer)


def test_a_closure_runs_as_it_is(training):
    model, optimizer, step = training
    seen = []

    def closure():
        modes = len(_get_current_dispatch_mode_stack())
        seen.append((torch.compiler.is_compiling(), torch.is_grad_enabled(), modes))
        optimizer.zero_grad()
        loss = model(torch.ones(4, 100)).square().mean()
        loss.backward()
        return loss

    losses = [step(closure).item() for _ in range(4)]
    assert seen == [(False, True, 0)] * 4
    assert losses == sorted(losses, reverse=True)
    assert counters["stats"]["unique_graphs"] == 0


def test_a_compiled_model_is_compiled_in_a_closure(training):
    model, optimizer, step = training
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)

    def closure():
        optimizer.zero_grad()
        loss = compiled(torch.ones(4, 100)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        step(closure)
    assert counter.frame_count == 1


def test_another_thread_may_step_while_a_closure_runs(training):
    model, optimizer, step = training
    done = []

    def closure():
        model.weight.grad, model.bias.grad = torch.ones(100, 100), torch.ones(100)
        thread = threading.Thread(target=lambda: done.append(optimizer.step()), daemon=True)
        thread.start()
        thread.join(30)
        return len(done)

    assert step(closure) == 1
    assert step(closure) == 2
    assert optimizer.state[model.weight]["step"] == 4


def test_an_error_in_a_closure_leaves_all_as_it_was(training):
    model, optimizer, step = training
    before = model.weight.detach().clone()

    def closure():
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        step(closure)
    assert torch.equal(model.weight, before)
    model.weight.grad = torch.ones(100, 100)
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == 1
