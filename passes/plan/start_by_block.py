"""Start: a plan by block for a budget that no uniform configuration meets, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from baoc_compile.core.allocation import Candidate
from baoc_compile.core.codec import Slot
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.passes.plan.list_candidates import list_candidates
from baoc_compile.passes.solve.allocate import allocate
from baoc_compile.state.plan import ParameterPlan, Plan

#: Update scale of parameters without momentum, until one is fitted. It halves the cost of dropping; docs/learning.md
#: shows whole trainings with it.
UPDATE_SCALE_OF_DROPPED = 0.3


def start_by_block(
    plan: Plan, table: ParameterTable, slots_of: Mapping[int, tuple[Slot, ...]], fixed_bytes: int, budget_bytes: int
) -> Plan:
    """Return `plan` with entries for the parameters in `slots_of`: the least expected harm within the budget.

    plan: the plan to extend.
    table: the optimizer's parameters.
    slots_of: the slots to decide on, by parameter index.
    fixed_bytes: state that is not decided here.
    budget_bytes: the limit on the whole state.

    Harm is weighted by elements. Parameters of one shape with the same slots form a block.

    Raises BudgetError that names the smallest budget that can be met.
    """
    blocks: dict[tuple[tuple[Slot, ...], torch.Size, torch.dtype], list[int]] = {}
    for i, slots in slots_of.items():
        planned = tuple(s for s in slots if s.weight_dtype is None)
        blocks.setdefault((planned, table.parameters[i].shape, table.parameters[i].dtype), []).append(i)
    configurations, items = [], []
    for (slots, shape, dtype), members in blocks.items():
        full = {s.key: full_precision(dtype) for s in slots}
        configurations.append(list_candidates(slots, shape, dtype, full))
        items.append(
            [
                Candidate(
                    c.label,
                    c.storage_bytes(shape) * len(members),
                    0.0,
                    c.expected_harm * shape.numel() * len(members),
                )
                for c in configurations[-1]
            ]
        )
    allocation = allocate([*items, [Candidate("", fixed_bytes, 0.0, 0.0)]], budget_bytes)
    parameters = dict(plan.parameters)
    for members, candidates, j in zip(blocks.values(), configurations, allocation.choice, strict=False):
        for i in members:
            names = {key: codec.name for key, codec in candidates[j].codecs.items()}
            update_scale = (
                UPDATE_SCALE_OF_DROPPED
                if any(c.mechanism == "dropping" for c in candidates[j].codecs.values())
                else 1.0
            )
            parameters[i] = ParameterPlan(table.names[i], tuple(table.parameters[i].shape), names, update_scale)
    return replace(plan, parameters=parameters)
