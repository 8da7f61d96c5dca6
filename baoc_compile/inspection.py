"""`inspect`: what baoc made of an optimizer's step."""

from __future__ import annotations

import inspect as python_inspect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from baoc_compile.core.errors import StateError
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.torch_private import uncompiled_function
from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.runtime.compiled_step import CompiledStep
from baoc_compile.runtime.session import Session, known_session
from baoc_compile.state.entries import state_bytes
from baoc_compile.state.plan import Plan
from baoc_compile.step_text import step_text


@dataclass(frozen=True)
class ProgramView:
    """One program of the step compiled last.

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
    """The step compiled last. `print` it for the rewritten step and its rules.

    graphs: stage -> GraphModule: "captured" (as torch traced it), "flat" (one call per tensor), "rewritten" (what
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
    """Return the inspection of an optimizer, of its compiled `step`, or of a compiled function that calls it.

    Raises StateError if baoc has not compiled a step of it yet.
    """
    session = next(iter(_sessions_behind(optimizer_or_step)), None)
    if session is None or not session.steps:
        raise StateError(
            'inspect: no step of this optimizer has been compiled with backend="baoc" yet; call the compiled step once'
        )
    compiled: CompiledStep = next((s for s in reversed(session.steps) if s.rewritten is not None), session.steps[-1])
    rewritten = compiled.rewritten or compiled.bind()
    graphs = OrderedDict(captured=compiled.captured, flat=compiled.flat, rewritten=rewritten.gm)
    rules = tuple(dict.fromkeys(launch.graph.rule for launch in rewritten.launches))
    programs = tuple(_view(launch) for launch in rewritten.launches)
    fallbacks = {t.__name__.removeprefix("fallback_"): t.reason for t in rewritten.fallbacks}
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
    """Yield the value and what it is bound to, then whatever its function's closure and globals name."""
    yield value
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
