"""Compiled step at run time: convert state once, bind to it, then run the rewritten graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any

from torch import fx

from baoc_compile.core.errors import StateError
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.step_graph import StepGraph
from baoc_compile.kernels.launch.fused_update import BoundLaunch
from baoc_compile.passes.capture.torch_calls import module_of
from baoc_compile.passes.migrate.migrate_state import migrate_state
from baoc_compile.passes.migrate.refresh_codebooks import CodebookRefresh
from baoc_compile.passes.rewrite.bind_launches import bind_launches
from baoc_compile.passes.rewrite.rewrite_step import Rewritten, rewrite_step
from baoc_compile.passes.rules.extract_rules import RuleClass
from baoc_compile.runtime.compile_lock import compile_lock
from baoc_compile.runtime.paused_gc import paused_gc
from baoc_compile.runtime.session import Session
from baoc_compile.state.entries import state_tensors


@dataclass(eq=False)
class CompiledStep:
    """One traced step as it runs. It is called with the traced graph's arguments; torch does so through a `StepHandle`.

    session: the optimizer's session.
    traced: the graph as torch traced it.
    step: the flat graph with roles.
    prelude: the calls that run once, before all updates.
    classes: the parameters' pieces of the step, grouped by rule.
    inner_backend: what compiles pieces that are not elementwise.
    code: code object of the traced function; None if unknown.
    rewritten: the graph bound to state; None until the first call and after `release`.
    run: the function that runs the bound graph.
    launches: the launches of the bound graph.
    codebooks: what refreshes learned codebooks.

    State is converted at the first call, not while torch traces: torch would see its guards fail. A step releases its
    tensors when another step of the optimizer binds, so that state which the user replaced can be freed.
    """

    session: Session
    traced: fx.GraphModule
    step: StepGraph
    prelude: list[fx.Node]
    classes: list[RuleClass]
    inner_backend: Any
    code: CodeType | None = None
    rewritten: Rewritten | None = None
    run: Callable[..., Any] | None = None
    launches: list[BoundLaunch] = field(default_factory=list)
    codebooks: CodebookRefresh | None = None

    @property
    def captured(self) -> fx.GraphModule:
        """The traced graph, to look at, without tensors and without unused attributes."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in self.traced.graph.nodes:
            if node.op != "get_attr" or node.users:
                copied[node] = graph.node_copy(node, lambda old: copied[old])
        return module_of(graph, {}, "CapturedStep")

    @property
    def flat(self) -> fx.GraphModule:
        """The flat graph, to look at. It is made on demand: torch takes long to write a module's code."""
        return module_of(self.step.graph, self.step.attributes, "FlatStep")

    def __call__(self, *arguments: Any) -> Any:
        if self.rewritten is None or not self._is_current(arguments):
            self.bind()
        assert self.run is not None and self.codebooks is not None
        self.codebooks.tick()
        configurator = self.session.configurator
        if configurator is None:
            return self.run(*arguments)
        return configurator.step(self, partial(self.run, *arguments))

    def bind(self) -> Rewritten:
        """Convert the optimizer's state and build the rewritten graph over it."""
        with compile_lock():
            return self._bind()

    def _bind(self) -> Rewritten:
        for other in self.session.steps:
            other.release()
        table, storage = self.session.table(), self.session.storage
        self.step.table = table
        migrate_state(storage, table)
        self.codebooks = CodebookRefresh(state_tensors(table))
        with paused_gc():
            self.rewritten = rewrite_step(self.step, self.prelude, self.classes, storage, self.inner_backend)
        bound, self.launches = bind_launches(self.rewritten.gm)
        self.run = bound.forward
        return self.rewritten

    def release(self) -> None:
        """Release the tensors that the step is bound to; the next call binds again."""
        for launch in self.launches:
            launch.release()
        self.rewritten = self.run = self.codebooks = None
        self.launches = []

    @property
    def rules(self) -> dict[int, UpdateRule]:
        """Parameter index -> rule, for parameters whose update is elementwise."""
        pieces = ((c.rule, piece) for c in self.classes if c.rule is not None for piece in c.members)
        return {piece.component.parameters[0]: rule for rule, piece in pieces}

    @contextmanager
    def observed(self, observe: Callable[..., None]) -> Iterator[None]:
        """Call `observe(launch, grads, scalars)` before every launch within this context."""
        for launch in self.launches:
            launch.observe = observe
        try:
            yield
        finally:
            for launch in self.launches:
                launch.observe = None

    def _is_current(self, arguments: tuple[Any, ...]) -> bool:
        """Return whether state and parameters among the arguments are still those that the graph is bound to."""
        assert self.rewritten is not None
        bound = self.rewritten.bound
        if not bound:
            return True
        return all(bound.get(node, value) is value for node, value in zip(self.step.arguments, arguments, strict=True))


class StepHandle:
    """What the backend returns to torch. torch's caches live as long as the process; a handle keeps no step alive."""

    def __init__(self, compiled: CompiledStep):
        self._compiled = weakref.ref(compiled)

    @property
    def compiled(self) -> CompiledStep:
        """The step. Raises StateError if the optimizer was freed, and its steps with it."""
        compiled = self._compiled()
        if compiled is None:
            raise StateError("the optimizer of this step is gone: keep a reference to it as long as you step it")
        return compiled

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)
