"""Parameters that share memory are refused by name, and state that does runs as written.

Tensors that only lie near one another are accepted.
"""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import baoc_compile
from baoc_compile import BaocWarning, OptionError, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.capture.refuse_overlap import refuse_overlap

BASE = torch.zeros(24, 12)


@pytest.mark.parametrize(
    "views",
    [
        [BASE, BASE],
        [BASE, BASE[3:4]],
        [BASE, BASE.t()],
        [BASE[:, :7], BASE[:, 6:]],
        [BASE.view(-1)[:100], BASE[8:]],
        [BASE[::2], BASE[::3]],
    ],
    ids=["the same", "a row", "transposed", "a column", "by an element", "some rows"],
)
def test_two_parameters_in_the_same_memory_are_named(views):
    model = nn.ParameterDict({"first": nn.Parameter(views[0]), "second": nn.Parameter(views[1])})
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(OptionError, match=r"first and second share memory"):
        baoc_compile.prepare(optimizer, model=model)
    assert not optimizer.state


@pytest.mark.parametrize(
    "view", [BASE[:1].expand(24, 12), BASE.as_strided((20, 5), (1, 2))], ids=["expanded", "windows"]
)
def test_a_parameter_whose_elements_share_memory_is_named(view):
    optimizer = torch.optim.SGD([nn.Parameter(view)], lr=0.1)
    with pytest.raises(OptionError, match=re.escape("param_groups[0].params[0]: several of its elements")):
        baoc_compile.prepare(optimizer)


def test_a_compiled_step_refuses_them_too():
    optimizer = torch.optim.SGD([nn.Parameter(BASE), nn.Parameter(BASE[:2])], lr=0.1)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(Exception, match="share memory"):
        torch.compile(optimizer.step, backend="baoc")()


@pytest.mark.parametrize(
    "views",
    [
        [BASE[:12], BASE[12:]],
        [BASE[:, ::2], BASE[:, 1::2]],
        [BASE[:, :6], BASE[:, 6:]],
        [BASE[:0], BASE],
        [BASE.t()],
        [BASE.as_strided((3, 4), (1, 3))],
    ],
    ids=["halves", "interleaved", "column halves", "empty", "transposed", "packed"],
)
def test_views_without_a_common_element_are_accepted(views):
    optimizer = torch.optim.SGD([nn.Parameter(view) for view in views], lr=0.1)
    refuse_overlap(ParameterTable.of(optimizer))


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=3)


@given(first=shapes, second=shapes, offsets=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_refused_exactly_if_an_element_is_shared(first, second, offsets):
    """Against sets of addresses, for any strides."""
    memory = torch.arange(200.0)
    views = [
        memory.as_strided([size for size, _ in dims], [stride for _, stride in dims], offset)
        for dims, offset in zip((first, second), offsets, strict=True)
    ]
    elements = [view.reshape(-1).tolist() for view in views]
    shared = any(len(set(e)) < len(e) for e in elements) or bool(set(elements[0]) & set(elements[1]))
    optimizer = torch.optim.SGD([nn.Parameter(view) for view in views], lr=0.1)
    if shared:
        with pytest.raises(OptionError, match="share"):
            refuse_overlap(ParameterTable.of(optimizer))
    else:
        refuse_overlap(ParameterTable.of(optimizer))


class Keeps(torch.optim.Optimizer):
    """Momentum that begins with the tensor that `keep` returns, and is changed in place from the second step on."""

    def __init__(self, parameters, keep):
        super().__init__(parameters, {"lr": 0.1})
        self.keep = keep

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = self.keep(parameter)
                else:
                    state["momentum"].mul_(0.9).add_(parameter.grad, alpha=0.1)
                parameter.add_(state["momentum"], alpha=-group["lr"])


def trained(keep, in_place, compiled):
    """Return the parameter after five steps, on gradients that are overwritten in place or new."""
    draws = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(5000, generator=draws))
    optimizer = Keeps([parameter], keep)
    step = torch.compile(optimizer.step, backend="baoc", options={"plan": "8bit"}) if compiled else optimizer.step
    for _ in range(5):
        gradient = torch.randn(5000, generator=draws)
        if in_place and parameter.grad is not None:
            parameter.grad.copy_(gradient)
        else:
            parameter.grad = gradient
        step()
    return parameter.detach()


@pytest.mark.parametrize(
    ("keep", "in_place"),
    [
        (lambda p: p.grad, True),
        (lambda p: p.grad.detach(), True),
        (lambda p: p.grad.view(-1), True),
        (lambda p: p.detach(), False),
    ],
    ids=["the gradient", "detached", "a view", "the parameter"],
)
def test_state_in_the_memory_of_a_gradient_or_parameter_runs_as_written(keep, in_place):
    torch.compiler.reset()
    expected = trained(keep, in_place, compiled=False)
    with pytest.warns(BaocWarning, match="memory") as notices:
        found = trained(keep, in_place, compiled=True)
    assert len(notices) == 1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("keep", "in_place"), [(lambda p: p.grad, False), (lambda p: p.grad.clone(), True)])
def test_a_gradient_kept_as_state_is_compressed_if_it_stays(keep, in_place):
    torch.compiler.reset()
    expected = trained(keep, in_place, compiled=False)
    difference = (trained(keep, in_place, compiled=True) - expected).norm()
    assert 0 < difference < 0.01 * expected.norm()


def test_two_slots_in_the_same_memory_are_refused():
    parameter = nn.Parameter(BASE.clone())
    optimizer = torch.optim.AdamW([parameter])
    both = torch.zeros_like(parameter)
    optimizer.state[parameter].update(step=torch.zeros(()), exp_avg=both, exp_avg_sq=both)
    with pytest.raises(UnsupportedStep, match=r"state 'exp_avg' of .* and state 'exp_avg_sq' of .* share memory"):
        baoc_compile.prepare(optimizer)
