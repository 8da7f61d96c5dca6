"""`prepare`: give an optimizer baoc's own step, and create its state compressed, before its first step."""

from __future__ import annotations

import logging
import weakref
from contextlib import suppress
from typing import Any

import torch

from baoc_compile.core.errors import OptionError, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.options import Options
from baoc_compile.passes.blocks.record_calls import ForwardGraph
from baoc_compile.passes.blocks.record_forward import watch_forward
from baoc_compile.passes.capture.refuse_overlap import refuse_overlap, refuse_wrappers
from baoc_compile.passes.migrate.migrate_state import decode_state
from baoc_compile.runtime.compile_lock import compile_lock
from baoc_compile.runtime.lead_methods import lead_methods
from baoc_compile.runtime.lead_steps import lead, own_function
from baoc_compile.runtime.notices import refuse_differentiable
from baoc_compile.runtime.own_step import OwnStep
from baoc_compile.runtime.session import ATTRIBUTE, KEY, Session, known_session, session_of
from baoc_compile.state.request import Request
from baoc_compile.state.wrapped_optimizer import inside

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
    """Give `optimizer.step` to baoc, decide how every state slot is stored, and create the state in that form.

    From here on, whoever calls `optimizer.step` runs fused programs on compressed state, compiled or not. Full-precision
    state is never allocated. `restore` takes baoc off again.

    optimizer: the optimizer, or a wrapper that has it inside; see `inside`. State that it already has is converted.
    model: the model. It names parameters in plans and reports, and its first training call shows their roles.
    memory_budget: limit on optimizer state: "25%" of full precision, "2.2 B/param", "512 MiB", bytes, or "fit": what
        the device has left after a forward and backward pass (state is then created at the first step). Default "28%".
    plan: a Plan, its JSON, the name of a format, or slot -> format. It overrides the budget.
    seed: seed of the stochastic rounding and of the sampling; by default the plan's, or 0. It counts beside a named
        plan.
    planner: the options of `PlannerOptions`, such as `time_budget` and `warmup_steps`.

    Within a budget, training starts with the uniform configuration of least expected harm that fits. After the warm-up,
    every block of parameters gets a configuration of its own.

    State is made for the parameters that require gradients. A step that can't be read before it has run once (it needs a
    closure, or gradients that do not exist yet) is read at its first call; until then nothing is compressed.

    Raises OptionError for a bad option and for parameters that share memory or have it elsewhere (it names them), PlanError
    for a bad plan, and BudgetError for a budget that can't be met. Nothing has changed then.
    """
    optimizer = inside(optimizer)
    refuse_differentiable(optimizer)
    lead_methods(type(optimizer))
    asked = Request.parse({"memory_budget": memory_budget, "plan": plan, "seed": seed, **planner})
    with compile_lock():
        fresh = known_session(optimizer) is None
        session = session_of(optimizer)
        try:
            table = ParameterTable.of(optimizer, model) if model is not None else session.table()
            refuse_wrappers(table)
            refuse_overlap(table)
            before = session.request
            session.request = before.or_else(asked, is_settled=bool(session.storage.parameters))
            try:
                _begin(session, table)
            except Exception:
                session.request = before
                raise
        except Exception:
            if fresh:
                _detach(optimizer)
            raise
        if model is not None:
            _watch(session, model)
    lead(type(optimizer))


def adopt(optimizer: Any, options: Any) -> None:
    """Prepare an optimizer whose step was compiled with `backend="baoc"`, with the options of `torch.compile`.

    Raises OptionError if it was prepared for other ones.
    """
    parsed = Options.parse(options)
    refuse_differentiable(optimizer)
    lead_methods(type(optimizer))
    is_new = known_session(optimizer) is None
    session = session_of(optimizer)
    try:
        refuse_wrappers(session.table())
        with suppress(UnsupportedStep):  # the step is refused when it runs
            refuse_overlap(session.table())
        session.request = session.request.or_else(parsed.request, is_settled=bool(session.storage.parameters))
    except Exception:
        if is_new:
            _detach(optimizer)
        raise


def _begin(session: Session, table: ParameterTable) -> None:
    """Read the step and make the state, or leave both to the first step."""
    own: OwnStep = session.own or OwnStep(session, own_function(session.optimizer()))
    session.own = own
    budget = session.request.budget
    if budget is not None and budget.is_deferred:
        return
    try:
        own.begin(table)
    except UnsupportedStep as reason:
        log.info("%s is read at its first step: %s", type(session.optimizer()).__name__, reason)


def _watch(session: Session, model: torch.nn.Module) -> None:
    session.model = weakref.ref(model)
    reference = weakref.ref(session)

    def saw(forward: ForwardGraph) -> None:
        known = reference()
        if known is not None:
            known.forward = forward

    watch_forward(model, saw)


@torch.no_grad()
def restore(optimizer: Any) -> None:
    """Take baoc off an optimizer: decode its state, and let its own step run again.

    Weights keep the type that they have; see `master_weights`. Raises OptionError if the optimizer was not prepared.
    """
    optimizer = inside(optimizer)
    session = known_session(optimizer)
    if session is None:
        raise OptionError("optimizer: restore expects an optimizer that was prepared, or whose step baoc has run")
    if session.own is not None:
        if session.own.parts is not None:
            session.own.parts.remove()
        session.own.release()
    decode_state(optimizer)
    session.forget()
    _detach(optimizer)


def _detach(optimizer: Any) -> None:
    for name in (ATTRIBUTE, KEY, "__getstate__"):
        vars(optimizer).pop(name, None)
