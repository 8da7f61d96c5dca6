"""Start: a plan by block for a budget that no uniform configuration meets, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from baoc_compile.core.allocation import Candidate
from baoc_compile.core.codec import Slot
from baoc_compile.core.configuration import Configuration
from baoc_compile.core.errors import BudgetError
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.passes.plan.list_candidates import list_candidates
from baoc_compile.passes.risk.measure_risk import last_resort
from baoc_compile.passes.solve.allocate import allocate
from baoc_compile.state.plan import ParameterPlan, Plan


def start_by_block(
    plan: Plan,
    table: ParameterTable,
    slots_of: Mapping[int, tuple[Slot, ...]],
    fixed_bytes: int,
    budget_bytes: int,
    allow: frozenset[str] = frozenset(),
) -> Plan:
    """Return `plan` with entries for the parameters in `slots_of`: the least expected harm within the budget.

    plan: the plan to extend.
    table: the optimizer's parameters.
    slots_of: the slots to decide on, by parameter index.
    fixed_bytes: state that is not decided here.
    budget_bytes: the limit on the whole state.
    allow: that of `PlannerOptions`; what it does not contain is done only if nothing else meets the budget.

    Harm is weighted by elements. Parameters of one shape with the same slots form a block.

    Raises BudgetError that names the smallest budget that can be met.
    """
    blocks: dict[tuple[tuple[Slot, ...], torch.Size, torch.dtype], list[int]] = {}
    for i, slots in slots_of.items():
        planned = tuple(s for s in slots if s.weight_dtype is None)
        blocks.setdefault((planned, table.parameters[i].shape, table.parameters[i].dtype), []).append(i)
    every = []
    for slots, shape, dtype in blocks:
        every.append(list_candidates(slots, shape, dtype, {s.key: full_precision(dtype) for s in slots}))
    wise = [[c for c in candidates if not last_resort(c.codecs, allow)] for candidates in every]

    def choose(configurations: list[list[Configuration]]) -> list[Configuration]:
        items = [[Candidate("", fixed_bytes, 0.0, 0.0)]]
        for (_, shape, _), members, candidates in zip(blocks, blocks.values(), configurations, strict=True):
            sizes = [c.storage_bytes(shape) * len(members) for c in candidates]
            harms = [c.expected_harm * shape.numel() * len(members) for c in candidates]
            items.append([Candidate("", size, 0.0, harm) for size, harm in zip(sizes, harms, strict=True)])
        choice = allocate(items, budget_bytes).choice[1:]
        return [candidates[j] for candidates, j in zip(configurations, choice, strict=True)]

    try:
        chosen = choose(wise)
    except BudgetError:
        chosen = choose(every)
    parameters = dict(plan.parameters)
    for members, configuration in zip(blocks.values(), chosen, strict=True):
        names = {key: codec.name for key, codec in configuration.codecs.items()}
        for i in members:
            parameters[i] = ParameterPlan(table.names[i], tuple(table.parameters[i].shape), names)
    return replace(plan, parameters=parameters)
