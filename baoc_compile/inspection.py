"""`inspect`: what baoc made of an optimizer's step."""

from __future__ import annotations

import inspect as python_inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import fx

from baoc_compile.core.errors import OptionError, StateError
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.torch_private import uncompiled_function
from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.passes.capture.piece_graph import graph_of_recording
from baoc_compile.passes.rewrite.rewritten_graph import rewritten_graph
from baoc_compile.runtime.own_step import OwnStep
from baoc_compile.runtime.session import Session, known_session
from baoc_compile.state.entries import state_bytes
from baoc_compile.state.plan import Plan
from baoc_compile.state.wrapped_optimizer import inside
from baoc_compile.step_text import step_text


@dataclass(frozen=True)
class ProgramView:
    """One program of the step that ran last.

    title: its rule and storage, as one line.
    source: its source text.
    parameters: names of the parameters that it updates.
    graph: decode, rule and encode as one graph.
    launches: launches since the step was bound to its state.
    """

    title: str
    source: str
    parameters: tuple[str, ...]
    graph: fx.GraphModule
    launches: int = 0


@dataclass(frozen=True)
class Inspection:
    """The step that ran last. `print` it for the rewritten step and its rules.

    graphs: stage -> GraphModule: "recorded" (what the user's step computes, one call per tensor), "rewritten" (what
        runs).
    rules: the update rules.
    plan: how every slot is stored.
    programs: one per (rule, configuration, types).
    fallbacks: parameters whose update is not elementwise -> why.
    state_bytes: exact bytes of the optimizer's state.
    """

    graphs: OrderedDict[str, fx.GraphModule]
    rules: tuple[UpdateRule, ...]
    plan: Plan
    programs: tuple[ProgramView, ...]
    fallbacks: dict[str, str]
    state_bytes: int

    def __str__(self) -> str:
        """Return the rewritten step and its rules as text."""
        parts = [
            f"optimizer state: {self.state_bytes} bytes",
            step_text(self.graphs["rewritten"]),
            *map(str, self.rules),
        ]
        return "\n\n".join(parts)


def inspect(optimizer_or_step: Any) -> Inspection:
    """Return the inspection of an optimizer, of its `step`, or of a compiled function that calls it.

    Raises StateError if baoc has not run a step of it yet.
    """
    session = next(iter(_sessions_behind(optimizer_or_step)), None)
    own: OwnStep | None = session.own if session is not None else None
    if session is None or own is None or own.bound is None:
        why = f": it runs as written, since {own.refused}" if own is not None and own.refused else ""
        raise StateError(
            'inspect: baoc has run no step of this optimizer yet; prepare it, or compile its step with backend="baoc", '
            f"and call the step once{why}"
        )
    bound, table = own.bound, session.table()
    graphs = OrderedDict(
        recorded=graph_of_recording(bound.reading.recording, table), rewritten=rewritten_graph(bound.bound, table)
    )
    launches = [launch.launch for launch in bound.bound.launches]
    rules = tuple(dict.fromkeys(launch.graph.rule for launch in launches))
    programs = tuple(map(_view, launches))
    fallbacks = {table.short_name(i): reason for i, reason in bound.reading.reasons.items()}
    return Inspection(graphs, rules, session.plan(), programs, fallbacks, state_bytes(session.optimizer()))


def _view(launch: Launch) -> ProgramView:
    graph = launch.graph
    return ProgramView(graph.title, launch.executable.source, tuple(launch.parameters), graph.gm, launch.count)


def _sessions_behind(value: Any) -> Iterator[Session]:
    """Yield the session of an optimizer, of a bound method's owner, or of an optimizer that a function refers to."""
    for candidate in _candidates(value):
        try:
            session = known_session(candidate)
        except TypeError:  # not hashable, or without weak references: not an optimizer
            continue
        if session is not None:
            yield session


def _candidates(value: Any) -> Iterator[Any]:
    """Yield the value, what it wraps and is bound to, then whatever its function's closure and globals name."""
    yield value
    with suppress(OptionError):
        yield inside(value)
    original = uncompiled_function(value)
    for function in (value, original):
        owner = getattr(function, "__self__", None)
        yield owner
        yield from getattr(owner, "__dict__", {}).values()
    function = python_inspect.unwrap(original)
    if hasattr(function, "__code__"):
        referred = python_inspect.getclosurevars(function)
        for found in (*referred.nonlocals.values(), *referred.globals.values()):
            yield found
            yield getattr(found, "__self__", None)
