"""Decision: the best uniform configuration that fits the memory budget, and the codec of every slot under it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace

from baoc_compile.core.budget import DEFAULT_BUDGET, MemoryBudget
from baoc_compile.core.codec import Slot
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.kernels.codecs.catalogue import AUTOMATIC, full_precision
from baoc_compile.passes.plan.start_by_block import start_by_block
from baoc_compile.runtime.session import Decision, Session
from baoc_compile.state.plan import Plan
from baoc_compile.state.state_tensor import StateTensor, bytes_of

log = logging.getLogger("baoc")

SlotsOf = Mapping[int, tuple[Slot, ...]]  # by parameter index


def decide(session: Session, table: ParameterTable, slots_of: SlotsOf, bytes_to_come: int = 0) -> None:
    """Gives every slot in `slots_of` a codec, once and for all. `bytes_to_come`: counters that do not exist yet.

    Raises BudgetError, PlanError; then nothing changed.
    """
    undecided = {
        i: slots for i, slots in slots_of.items() if any(s.key not in _decided(session, table, i) for s in slots)
    }
    if not undecided:
        _decide_update_scales(session, table, slots_of)
        return
    if not session.is_explicit:
        _keep_loaded(session, table, undecided)
        session.memory_budget = session.memory_budget or MemoryBudget.parse(DEFAULT_BUDGET)
    if session.has_named_plan or session.memory_budget is None:
        plan = session.plan or Plan(seed=session.seed)
    else:
        plan = _best_fit(session, table, undecided, session.memory_budget, bytes_to_come)
    found = _decisions(plan, table, undecided)
    session.plan = plan
    for index, decisions in found.items():
        known = session.decisions.setdefault(table.parameters[index], {})
        known |= {key: decision for key, decision in decisions.items() if key not in known}
    _decide_update_scales(session, table, slots_of)


def _decide_update_scales(session: Session, table: ParameterTable, slots_of: SlotsOf) -> None:
    for index in slots_of:
        parameter = table.parameters[index]
        if session.plan is not None and parameter not in session.update_scales:
            session.update_scales[parameter] = session.plan.update_scale_of(index, parameter)


def _decided(session: Session, table: ParameterTable, index: int) -> Mapping[str, Decision]:
    return session.decisions.get(table.parameters[index], {})


def _keep_loaded(session: Session, table: ParameterTable, undecided: SlotsOf) -> None:
    """State that is already compressed (a checkpoint) keeps its codec when the user asked for nothing else."""
    for index, slots in undecided.items():
        for slot in slots:
            value = table.state(index).get(slot.key)
            if isinstance(value, StateTensor):
                session.decisions.setdefault(table.parameters[index], {})[slot.key] = Decision(value.codec, "as loaded")


def _decisions(plan: Plan, table: ParameterTable, slots_of: SlotsOf) -> dict[int, dict[str, Decision]]:
    return {i: {s.key: Decision(*plan.codec(table, i, s)) for s in slots} for i, slots in slots_of.items()}


def _best_fit(
    session: Session, table: ParameterTable, undecided: SlotsOf, budget: MemoryBudget, bytes_to_come: int
) -> Plan:
    """Least sum of the slots' expected harm among the uniform configurations that fit; then fewest bytes."""
    settled = {p: d for p, d in session.decisions.items()}
    fixed = sum(d.codec.storage_bytes(p.shape) for p, slots in settled.items() for d in slots.values())
    counters = bytes_to_come + sum(
        bytes_of(value)
        for index in range(len(table.parameters))
        for key, value in table.state(index).items()
        if key not in {s.key for s in undecided.get(index, ())} and key not in _decided(session, table, index)
    )
    everything = {
        **{table.parameters[i]: sum(s.weight_dtype is None for s in slots) for i, slots in undecided.items()},
        **{p: len(s) for p, s in settled.items()},
    }
    full = counters + sum(full_precision(p.dtype).storage_bytes(p.shape) * n for p, n in everything.items())
    limit = budget.in_bytes(full, sum(p.numel() for p in everything))
    keys = sorted({slot.key for slots in undecided.values() for slot in slots if slot.weight_dtype is None})
    candidates = _candidates(session, keys)
    if session.plan is not None:  # parameters that joined later follow the others where that fits
        candidates = [session.plan, *candidates]
    sizes = {}
    for order, plan in enumerate(candidates):
        decisions = _decisions(plan, table, undecided)
        used = sum(d.codec.storage_bytes(table.parameters[i].shape) for i, ds in decisions.items() for d in ds.values())
        error = sum(max(ds[k].codec.expected_harm for ds in decisions.values() if k in ds) for k in keys)
        follows = session.plan is not None and order == 0
        sizes[(not follows, error, fixed + counters + used, order)] = plan
    fitting = [rank for rank in sizes if rank[2] <= limit]
    if not fitting and not session.is_explicit:  # nobody asked for this budget: come as close as possible
        smallest = min(rank[2] for rank in sizes)
        log.info(
            "the default budget of %s is out of reach; the smallest uniform plan takes %d bytes", budget.text, smallest
        )
        fitting = [rank for rank in sizes if rank[2] == smallest]
    if not fitting:
        weights = sum(
            d.codec.storage_bytes(table.parameters[i].shape) for i, d in _weights(candidates[0], table, undecided)
        )
        plan = replace(candidates[0], memory_budget=budget.text)
        return start_by_block(plan, table, undecided, fixed + counters + weights, limit)
    return replace(sizes[min(fitting)], memory_budget=budget.text)


def _weights(plan: Plan, table: ParameterTable, slots_of: SlotsOf) -> list[tuple[int, Decision]]:
    """What weight codecs take, which no budget chooses."""
    weights = [(i, s) for i, slots in slots_of.items() for s in slots if s.weight_dtype is not None]
    return [(i, Decision(*plan.codec(table, i, s))) for i, s in weights]


def _candidates(session: Session, keys: list[str]) -> list[Plan]:
    choices = itertools.product(AUTOMATIC, repeat=len(keys))
    return [
        Plan({**dict(zip(keys, choice, strict=True)), "*": choice[-1] if choice else "fp32"}, seed=session.seed)
        for choice in choices
    ]
