"""`prepare`: fill an optimizer's state before its first step, compressed from the start."""

from __future__ import annotations

import copy
import logging
import weakref
from typing import Any

import torch

from baoc_compile.core.budget import MemoryBudget
from baoc_compile.core.codec import weight_slots
from baoc_compile.core.errors import OptionError
from baoc_compile.core.planner_options import PlannerOptions
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.passes.blocks.record_calls import ForwardGraph
from baoc_compile.passes.blocks.record_forward import watch_forward
from baoc_compile.passes.migrate.migrate_state import fresh, migrate_state, migrate_weights
from baoc_compile.passes.plan.choose_uniform import decide
from baoc_compile.passes.rules.discover_state import Filled, StateSchema, discover_state
from baoc_compile.runtime.configurator import start_configurator
from baoc_compile.runtime.device_memory import bytes_left
from baoc_compile.runtime.notices import notice, refuse_untraceable
from baoc_compile.runtime.session import Session, session_of
from baoc_compile.state.plan import as_plan
from baoc_compile.state.state_tensor import bytes_of, state_bytes

log = logging.getLogger("baoc")

#: What `Session.configure` sets.
WISHES = ("memory_budget", "plan", "seed", "is_explicit", "has_named_plan", "planning")


def prepare(
    optimizer: Any,
    *,
    model: torch.nn.Module | None = None,
    memory_budget: str | int | None = None,
    plan: Any = None,
    seed: int = 0,
    **planning: Any,
) -> None:
    """Decides how every state slot is stored and creates the state in that form, so that no full-precision state is
    ever allocated and the first compiled step is traced once.

    `model` gives parameters their names in plans and reports, and its first training call tells what they are there for.
    `memory_budget`: "25%" of full-precision state, "2.2 B/param", "512 MiB" or bytes; "fit": what the device has left
    after a forward and backward pass (state is then made at the first step); default "28%". `plan`: a Plan, its JSON
    or a format name; overrides the budget. `planning`: the options of `PlannerOptions`, such as `time_budget` and
    `warmup_steps`: within a budget, state starts under the best uniform plan and is planned by block after the warm-up.
    State that exists already is converted. An optimizer whose first step does something that no filled-in state
    can stand for (SGD with dampening copies its first gradient) keeps making its own state, which the first
    compiled steps convert.

    Raises OptionError, PlanError, BudgetError, and UnsupportedStep when the optimizer's step can't be tried on a
    small parameter. Nothing has changed then.
    """
    for name in ("param_groups", "state", "step"):
        if not hasattr(optimizer, name):
            raise OptionError(f"optimizer: expected an optimizer, but {type(optimizer).__name__} has no {name!r}")
    refuse_untraceable(optimizer)
    budget = MemoryBudget.parse(memory_budget) if memory_budget is not None else None
    chosen = as_plan(plan) if plan is not None else None
    unknown = sorted(set(planning) - PlannerOptions.names())
    if unknown:
        raise OptionError(
            f"prepare: unknown option {unknown[0]!r}; known are {', '.join(sorted(PlannerOptions.names()))}"
        )
    how = PlannerOptions.parse(planning)
    session = session_of(optimizer)
    if model is not None:
        session.model = weakref.ref(model)
        reference = weakref.ref(session)
        watch_forward(model, lambda forward: _saw(reference, forward))
    schemas = discover_state(session.table())
    before = {name: getattr(session, name) for name in WISHES}
    session.configure(budget, chosen, seed, how)
    try:
        if session.memory_budget is not None and session.memory_budget.is_deferred:
            _make_state_at_first_step(session)
            return
        _make_state(session, schemas)
    except Exception:
        vars(session).update(before)
        raise


def _make_state_at_first_step(session: Session) -> None:
    """When a forward and backward pass have shown what they need. An optimizer without hooks makes its state as ever, and
    the first compiled step converts it."""
    optimizer: Any = session.optimizer()
    if not hasattr(optimizer, "register_step_pre_hook"):
        return

    @torch.compiler.disable(reason="makes optimizer state, once")
    def make(*_: Any) -> None:
        handle.remove()
        table = session.table()
        device = table.parameters[0].device if table.parameters else torch.device("cpu")
        assert session.memory_budget is not None
        session.memory_budget = session.memory_budget.resolved(bytes_left(device, state_bytes(table.optimizer)))
        _make_state(session, discover_state(table))

    handle = optimizer.register_step_pre_hook(make)


def _make_state(session: Session, schemas: list[StateSchema]) -> None:
    """Decides, converts what state there is, and fills in what there is not. Raises before anything is changed."""
    table = session.table()
    optimizer = table.optimizer
    slots_of = {index: schema.slots for index, schema in enumerate(schemas)}
    for index, schema in enumerate(schemas):
        if schema.rule is not None:
            slots_of[index] += weight_slots(table.parameters[index], schema.slots)
    decide(session, table, slots_of, _bytes_beside_slots(schemas, table))
    migrate_state(session, table)
    for index, (parameter, schema) in enumerate(zip(table.parameters, schemas, strict=True)):
        if schema.first is None or table.state(index):
            continue
        decisions = session.decisions.get(parameter, {})
        entries: dict[str, Any] = {}
        for key, entry in schema.first.items():
            if isinstance(entry, Filled) and key in decisions:
                entries[key] = fresh(parameter, entry.dtype, entry.value, decisions[key].codec, key, session.seed)
            elif isinstance(entry, Filled):
                entries[key] = torch.full_like(parameter, entry.value, dtype=entry.dtype).detach()
            elif isinstance(entry, torch.Tensor):  # where a compiled step has its counters; Dynamo moves "step" itself
                entries[key] = entry.clone().to(parameter.device)
            else:
                entries[key] = copy.deepcopy(entry)
        if entries:
            optimizer.state[parameter] = entries
    migrate_weights(session, table)
    start_configurator(session)
    for schema in schemas:
        if schema.first is None and schema.rule is None and schema.reason:
            notice(optimizer, schema.reason)
    if any(schema.first is None for schema in schemas):
        log.info("%s makes its own state at its first step, which is then converted", type(optimizer).__name__)


def _saw(session: weakref.ref[Session], forward: ForwardGraph) -> None:
    known = session()
    if known is not None:
        known.forward = forward


def _bytes_beside_slots(schemas: list[StateSchema], table: ParameterTable) -> int:
    """Counters that will be filled in: they count against the budget too."""
    total = 0
    for index, (parameter, schema) in enumerate(zip(table.parameters, schemas, strict=True)):
        slots = {slot.key for slot in schema.slots}
        for key, entry in ({} if table.state(index) else schema.first or {}).items():
            filled = isinstance(entry, Filled) and key not in slots
            total += parameter.numel() * entry.dtype.itemsize if filled else bytes_of(entry)
    return total
