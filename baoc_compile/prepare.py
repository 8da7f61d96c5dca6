"""`prepare`: create an optimizer's state before its first step, compressed from the start."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from baoc_compile.core.codec import Slot, weight_slots
from baoc_compile.core.errors import OptionError
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.passes.blocks.record_calls import ForwardGraph
from baoc_compile.passes.blocks.record_forward import watch_forward
from baoc_compile.passes.capture.refuse_overlap import refuse_overlap
from baoc_compile.passes.migrate.migrate_state import migrate_state, migrate_weights
from baoc_compile.passes.plan.choose_storage import choose_storage
from baoc_compile.passes.rules.discover_state import Filled, StateSchema, discover_state
from baoc_compile.runtime.compile_lock import compile_lock
from baoc_compile.runtime.configurator import start_configurator
from baoc_compile.runtime.device_memory import bytes_left
from baoc_compile.runtime.notices import notice, refuse_untraceable
from baoc_compile.runtime.session import Session, session_of
from baoc_compile.state.entries import bytes_of, fresh, state_bytes
from baoc_compile.state.request import Request

log = logging.getLogger("baoc")


def prepare(
    optimizer: Any,
    *,
    model: torch.nn.Module | None = None,
    memory_budget: str | int | None = None,
    plan: Any = None,
    seed: int | None = None,
    **planner: Any,
) -> None:
    """Decide how every state slot is stored, and create the state in that form.

    Full-precision state is never allocated, and the first compiled step is traced once.

    optimizer: the optimizer. State that it already has is converted.
    model: the model. It names parameters in plans and reports, and its first training call shows their roles.
    memory_budget: limit on optimizer state: "25%" of full precision, "2.2 B/param", "512 MiB", bytes, or "fit": what
        the device has left after a forward and backward pass (state is then created at the first step). Default "28%".
    plan: a Plan, its JSON, the name of a format, or slot -> format. It overrides the budget.
    seed: seed of the stochastic rounding and of the sampling; by default the plan's, or 0. It counts beside a named
        plan.
    planner: the options of `PlannerOptions`, such as `time_budget` and `warmup_steps`.

    Within a budget, training starts with the uniform configuration of least expected harm that fits. After the warm-up,
    every block of parameters gets a configuration of its own.

    Some optimizers do something in their first step that no initial state can stand for: SGD with dampening copies its
    first gradient. They create their own state, and the first compiled steps convert it.

    Raises OptionError for a bad option and for parameters that share memory (it names them), PlanError for a bad plan,
    BudgetError for a budget that can't be met, and UnsupportedStep if the optimizer's step can't be tried on a small
    parameter. Nothing has changed then.
    """
    for name in ("param_groups", "state", "step"):
        if not hasattr(optimizer, name):
            raise OptionError(f"optimizer: expected an optimizer, but {type(optimizer).__name__} has no {name!r}")
    refuse_untraceable(optimizer)
    asked = Request.parse({"memory_budget": memory_budget, "plan": plan, "seed": seed, **planner})
    with compile_lock():
        session = session_of(optimizer)
        table = ParameterTable.of(optimizer, model) if model is not None else session.table()
        refuse_overlap(table)
        schemas = discover_state(table)
        request = session.request.or_else(asked, is_settled=bool(session.storage.parameters))
        storage = session.storage
        if request.budget is None or not request.budget.is_deferred:
            storage = _chosen(request, storage, table, schemas)
        session.request = request  # nothing is refused from here on
        if model is not None:
            _watch(session, model)
        if request.budget is not None and request.budget.is_deferred:
            _make_state_at_first_step(session)
        else:
            _make_state(session, storage, table, schemas)


def _watch(session: Session, model: torch.nn.Module) -> None:
    session.model = weakref.ref(model)
    reference = weakref.ref(session)

    def saw(forward: ForwardGraph) -> None:
        known = reference()
        if known is not None:
            known.forward = forward

    watch_forward(model, saw)


def _make_state_at_first_step(session: Session) -> None:
    """Create the state at the first step, after a forward and backward pass have shown what they need.

    An optimizer without hooks creates its own state, which the first compiled step converts.
    """
    optimizer: Any = session.optimizer()
    if not hasattr(optimizer, "register_step_pre_hook"):
        return

    @torch.compiler.disable(reason="makes optimizer state, once")
    def make(*_: Any) -> None:
        handle.remove()
        table = session.table()
        device = table.parameters[0].device if table.parameters else torch.device("cpu")
        assert session.request.budget is not None
        with compile_lock():
            budget = session.request.budget.resolved(bytes_left(device, state_bytes(table.optimizer)))
            request, schemas = replace(session.request, memory_budget=budget), discover_state(table)
            storage = _chosen(request, session.storage, table, schemas)
            session.request = request
            _make_state(session, storage, table, schemas)

    handle = optimizer.register_step_pre_hook(make)


def _chosen(request: Request, storage: Storage, table: ParameterTable, schemas: Sequence[StateSchema]) -> Storage:
    slots_of: dict[int, tuple[Slot, ...]] = {}
    for index, schema in enumerate(schemas):
        weights = weight_slots(table.parameters[index], schema.slots) if schema.rule is not None else ()
        slots_of[index] = (*schema.slots, *weights)
    return choose_storage(request, storage, table, slots_of, _bytes_beside_slots(schemas, table))


def _make_state(session: Session, storage: Storage, table: ParameterTable, schemas: Sequence[StateSchema]) -> None:
    """Convert the state that exists, and create what is missing."""
    optimizer = table.optimizer
    session.store(storage)
    migrate_state(storage, table)
    for index, (parameter, schema) in enumerate(zip(table.parameters, schemas, strict=True)):
        if schema.first is None or table.state(index):
            continue
        codecs = storage.of(index).codecs
        entries: dict[str, Any] = {}
        for key, entry in schema.first.items():
            if isinstance(entry, Filled) and key in codecs:
                entries[key] = fresh(parameter, entry.dtype, entry.value, codecs[key], key, storage.seed)
            elif isinstance(entry, Filled):
                entries[key] = torch.full_like(parameter, entry.value, dtype=entry.dtype).detach()
            elif isinstance(entry, torch.Tensor):  # a compiled step has its counters there; Dynamo moves "step" itself
                entries[key] = entry.clone().to(parameter.device)
            else:
                entries[key] = copy.deepcopy(entry)
        if entries:
            optimizer.state[parameter] = entries
    migrate_weights(storage, table)
    start_configurator(session)
    for schema in schemas:
        if schema.first is None and schema.rule is None and schema.reason:
            notice(optimizer, schema.reason)
    if any(schema.first is None for schema in schemas):
        log.info("%s makes its own state at its first step, which is then converted", type(optimizer).__name__)


def _bytes_beside_slots(schemas: Sequence[StateSchema], table: ParameterTable) -> int:
    """Return the bytes of counters that will be created. They count against the budget too."""
    total = 0
    for index, (parameter, schema) in enumerate(zip(table.parameters, schemas, strict=True)):
        slots = {slot.key for slot in schema.slots}
        for key, entry in ({} if table.state(index) else schema.first or {}).items():
            filled = isinstance(entry, Filled) and key not in slots
            total += parameter.numel() * entry.dtype.itemsize if filled else bytes_of(entry)
    return total
