"""Copies of an optimizer with a few of its parameters, on which steps can be tried."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.capture.leaves import is_hooks, is_left_out, is_of_weight, is_way_to_compute
from baoc_compile.state.state_tensor import StateTensor

#: Larger parameters are not copied: their full-precision state is what the user wants to save.
MOST_ELEMENTS = 1 << 22


def copied(table: ParameterTable, chosen: list[int], *, decoded: bool) -> ParameterTable:
    """Return copies of the chosen parameters under an optimizer of the same class; all others have no gradient.

    Of a DTensor, what this process holds is copied.

    decoded: whether the state is decoded, for the user's own step.
    """
    real = table.optimizer
    memo: dict[int, Any] = {}
    parameters: list[Tensor] = []
    here = table.local
    for i, (whole, p) in enumerate(zip(table.wholes, here.parameters, strict=True)):
        if i in chosen:
            made: Tensor = p.detach().clone(memory_format=torch.preserve_format)
            made = torch.nn.Parameter(made, whole.requires_grad) if isinstance(whole, torch.nn.Parameter) else made
            vars(made).update(vars(whole))
            made.grad = None if p.grad is None else p.grad.clone(memory_format=torch.preserve_format)
        else:
            made = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), whole.requires_grad)
        memo[id(whole)] = made
        parameters.append(made)
    optimizer = object.__new__(type(real))
    memo[id(real)] = optimizer
    attributes = vars(optimizer)
    attributes["param_groups"] = [
        {
            key: [memo[id(p)] for p in value]
            if key == "params"
            else (value and False if is_way_to_compute(real, key) else copy.deepcopy(value, memo))
            for key, value in group.items()
        }
        for group in real.param_groups
    ]
    state: Any = type(real.state)(dict) if hasattr(real.state, "default_factory") else {}
    for i in chosen:
        entries = {}
        for key, value in here.state(i).items():
            if decoded and is_of_weight(value):
                continue
            if decoded and isinstance(value, StateTensor):
                value = value.decode()
            entries[key] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value, memo)
            if isinstance(value, StateTensor):
                entries[key].anchored(parameters[i])
        state[parameters[i]] = entries
    for key, value in real.state.items():
        if not isinstance(key, Tensor):  # state of the whole optimizer
            state[key] = copy.deepcopy(value, memo)
    attributes["state"] = state
    for name, value in vars(real).items():
        if is_hooks(name):
            attributes[name] = type(value)()
        elif not is_left_out(name):
            attributes[name] = copy.deepcopy(value, memo)
    copied = ParameterTable(optimizer, parameters, table.names, table.groups)
    copied.kept = optimizer  # type: ignore[attr-defined]  # a table refers to its optimizer weakly
    return copied
