"""Tensors that belong to no parameter, and which parameters' updates read them before and after a change.

Number audits would find what is wrong here, but only where parameters are few and small.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from misleading_base import OneByOne

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.capture.record_step import record_step


class Scaled(OneByOne):
    """Scales gradients by a tensor that the step makes, changing it in between."""

    def __init__(self, params, change, view=False):
        self.change, self.view = change, view
        super().__init__(params)

    def step(self):
        scale = torch.ones(2)
        shown = scale[:1] if self.view else scale
        for k, p in enumerate(self.param_groups[0]["params"]):
            p.data.sub_(p.grad * shown[0])
            self.change(scale, p, k)


def pieces_of(change, view=False):
    parameters = [torch.nn.Parameter(torch.randn(3)) for _ in range(3)]
    for p in parameters:
        p.grad = torch.randn(3)
    optimizer = Scaled(parameters, change, view)
    table = ParameterTable(optimizer, parameters, ["a", "b", "c"], [0, 0, 0])
    (recording,) = record_step(table, Scaled.step, frozenset(range(3)))
    return [piece.parameters for piece in recording.pieces]


def test_what_nobody_changes_leaves_updates_apart():
    assert pieces_of(lambda scale, p, k: None) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("view", [False, True])
def test_a_change_that_all_updates_see_is_refused(view):
    with pytest.raises(UnsupportedStep, match="after an update has read it"):
        pieces_of(lambda scale, p, k: scale.mul_(0.5), view)


def add_gradient(scale, p, k, when):
    if k == when:
        scale.add_(p.grad[:2])


def test_an_update_that_changes_it_belongs_to_those_that_read_it():
    assert pieces_of(partial(add_gradient, when=1)) == [(0, 1, 2)]
    assert pieces_of(partial(add_gradient, when=2)) == [(0, 1, 2)]


def test_a_view_that_was_made_before_an_update_changes_it_is_refused():
    with pytest.raises(UnsupportedStep, match="reads a view"):
        pieces_of(partial(add_gradient, when=1), view=True)
