"""Private names of `torch.compile`: each does what the package relies on.

A test's docstring says what breaks without the name.
"""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from torch import fx, nn

from baoc_compile.core import torch_private as private


def test_lookup_backend_finds_by_name():
    """`inner_backend="inductor"` would find nothing."""
    gm = fx.symbolic_trace(nn.ReLU())
    assert private.lookup_backend("eager")(gm, [torch.ones(1)])(torch.tensor(-1.0)) == 0


def test_compiled_modules_are_known_and_lead_to_the_original():
    """The forward pass of a compiled model would be watched, and never be seen."""
    module, in_place = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not private.is_compiled(module) and private.uncompiled_module(module) is module
    wrapper = torch.compile(module, backend="eager")
    assert private.is_compiled(wrapper) and private.uncompiled_module(wrapper) is module
    in_place.compile(backend="eager")
    assert private.is_compiled(in_place)


def test_compiled_functions_lead_to_the_original():
    """`inspect` would not find the optimizer of a compiled step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    compiled = torch.compile(optimizer.step, backend="eager")
    assert private.uncompiled_function(compiled).__self__ is optimizer
    assert private.uncompiled_function(len) is len


@pytest.mark.parametrize("name", ["eager", "baoc"])
def test_running_backends_of_compiled_functions(name):
    """An optimizer whose step is compiled with baoc would not be known to be, nor its options."""
    seen = []

    @torch.compiler.disable
    def look():
        seen.extend(getattr(backend, "compiler_name", "") for backend in private.running_backends())

    def step(x):
        look()
        return x + 1

    torch.compile(step, backend=name)(torch.ones(2))
    assert name in seen
    assert not list(private.running_backends())


@pytest.mark.parametrize("name", ["eager", "baoc"])
def test_what_runs_compiled(name):
    """Whether `torch.compile` or the user calls a step would not be known."""
    seen = []

    @functools.partial(torch.compiler.disable, recursive=False)
    def skipped():
        seen.append(private.is_running_compiled())

    @torch.compiler.disable
    def left_alone():
        seen.append(private.is_running_compiled())

    def step(x):
        skipped()
        left_alone()
        return x + 1

    torch.compile(step, backend=name)(torch.ones(2))
    step(torch.ones(2))
    assert seen == [True, False, False, False]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_what_asks_for_one_graph(fullgraph):
    """With `fullgraph=True`, a step would break the graph."""

    @torch._dynamo.assume_constant_result
    def asked():
        return private.asks_for_one_graph()

    def step(x):
        return x + 1 if asked() else x - 1

    compiled = torch.compile(step, backend="eager", fullgraph=fullgraph)
    assert compiled(torch.zeros(())).item() == (1 if fullgraph else -1)


@pytest.mark.parametrize("is_compiling", [False, True])
def test_uncompiled_hides_that_something_is_compiled(is_compiling, monkeypatch):
    """A step that is recorded while Dynamo traces would take the branch of torch's optimizers for compiled code."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", is_compiling)
    with private.uncompiled():
        assert not torch.compiler.is_compiling()
    assert torch.compiler.is_compiling() == is_compiling


def test_uncompiled_concerns_one_thread_alone():
    """A step's compiled helpers would be compiled for stand-ins; or all threads' compiled steps would run as written."""
    compiled_here = []

    def backend(gm, inputs):
        compiled_here.append(threading.current_thread())
        return gm.forward

    function = torch.compile(lambda x: x + 1, backend=backend)
    with private.uncompiled():
        assert function(torch.zeros(2)).tolist() == [1, 1]
        assert not compiled_here
        other = threading.Thread(target=function, args=(torch.zeros(2),))
        other.start()
        other.join()
        assert compiled_here == [other]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_function_says_whether_it_is_one_graph(fullgraph):
    """The steps of optimizers that are compiled with `fullgraph=True` would not be compiled at all, which torch refuses."""
    found = []

    @torch._dynamo.assume_constant_result
    def asks():
        found.append(private.is_running_one_graph())
        return 1

    torch.compile(lambda x: x + asks(), backend="eager", fullgraph=fullgraph)(torch.ones(1))
    assert found == [fullgraph] and not private.is_running_one_graph()
