"""baoc's own step of an optimizer: it takes the place of the class's step, and does the same in fused programs.

    closure, if any    called first, with gradients enabled
    check              parameters, gradients, state and options are those that the programs are bound to
    numbers            computed on the host as the step would, once for each distinct expression; guards checked
    launches           one for each program, over the parameters that have a gradient
    write-backs        counters and whatever else the step changes

A step that can't be read runs as its user wrote it, with one notice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from baoc_compile.core.errors import OtherBranch, StateToCome, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.torch_private import divide_all
from baoc_compile.passes.migrate.compress_made import CompressMade
from baoc_compile.passes.migrate.migrate_state import decode_state
from baoc_compile.passes.migrate.opened_state import opened_state
from baoc_compile.passes.programs.make_programs import start_programs
from baoc_compile.runtime.audit import Schedule, audit_recording
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.runtime.compile_lock import compile_lock, paused_gc
from baoc_compile.runtime.notices import notice
from baoc_compile.runtime.session import Session
from baoc_compile.runtime.step_reader import FirstAsWritten, StepReader

log = logging.getLogger("baoc")

#: Steps that may run as written since they make state; one that makes more is refused.
MOST_POSTPONED = 8


class _Known:
    """A closure that was called already: it returns what is known once, and is called again after that."""

    def __init__(self, loss: Any, closure: Callable[[], Any]):
        self.loss, self.closure, self.is_known = loss, closure, True

    def __call__(self) -> Any:
        if self.is_known:
            self.is_known = False
            return self.loss
        return self.closure()


class OwnStep(StepReader):
    """The step of one optimizer.

    refused: why the step runs as written; empty if it does not.
    count: steps so far.
    postponed: how many steps ran as written because they could not be read before their state was made.
    audits: when the recording is audited.
    lock: held while a step runs.
    """

    def __init__(self, session: Session, function: Callable[..., Any]):
        super().__init__(session, function)
        self.refused = ""
        self.count = 0
        self.postponed = 0
        self.audits = Schedule()
        self.lock = threading.RLock()
        self._calls_closure_first = False  # as far as is known
        self._is_written_running = False  # whoever calls the step now is the user's step, which has `super().step()`

    @property
    def is_running(self) -> bool:
        """Whether the user's own step is running."""
        return self._is_written_running

    # ways in

    def __call__(
        self, optimizer: Any, closure: Callable[[], Any] | None, as_written: Callable[[Callable[[], Any] | None], Any]
    ) -> Any:
        """Run one step.

        closure: what the step was called with.
        as_written: runs the user's own step, given a closure or None.
        """
        with self.lock:
            if self._is_written_running:
                return as_written(closure)
            if self.refused or (closure is not None and not self._can_be_called_first(closure)):
                return self._run_as_written(closure, as_written)
        if (
            closure is not None
        ):  # it is the user's: a backward pass, whose threads may have steps of their own to wait for
            with torch.enable_grad():
                closure = _Known(closure(), closure)
        with self.lock:
            return self._stepped(optimizer, closure, as_written)

    def _stepped(
        self, optimizer: Any, closure: _Known | None, as_written: Callable[[Callable[[], Any] | None], Any]
    ) -> Any:
        """Run one step, after its closure was called."""
        if self.refused:
            return self._run_as_written(closure, as_written)
        loss = closure.loss if closure is not None else None
        if _found_inf(optimizer):
            return loss
        with torch.no_grad(), closing(self.gradients):
            if self.parts is not None:
                self.parts.finish()
                return loss
            bound = self._ran(optimizer, closure is not None)
        if bound is None:
            return self._run_as_written(closure, as_written)
        kind = bound.reading.recording.returns.kind
        return loss if kind == "loss" else bound.numbers.returned if kind == "number" else None

    def _ran(self, optimizer: Any, has_closure: bool) -> BoundStep | None:
        """Run one step in programs; return what was run, or None if this step is to run as written."""
        try:
            bound = self.ready(optimizer, has_closure)
        except FirstAsWritten:
            self._prepare_for_written()
            return None
        except UnsupportedStep as reason:
            self._postpone_or_refuse(reason, has_closure)
            return None
        try:
            self._run(bound, optimizer)
        except OtherBranch:
            self.unborn.were_stepped(bound.present)
            return None
        return bound

    def _can_be_called_first(self, closure: Callable[[], Any]) -> bool:
        """Return whether the step is known to call its closure once and first; refuse the step if it does not."""
        if self._calls_closure_first or any(reading.has_closure for reading in self.readings):
            return True
        table = self.session.table()
        try:
            with torch.no_grad():
                found = self.read(table, self.trained(table), has_closure=True)
            self.readings = [r for r in self.readings if r is not found.first and r is not found.warm]
            self._calls_closure_first = True
            return True
        except UnsupportedStep as reason:
            self._postpone_or_refuse(reason, has_closure=True)
            return False

    def _prepare_for_written(self) -> None:
        """Let the user's own step run once. State that is not rounded value by value is converted before the next step."""
        self.release()
        self.unborn.take_back(self.session.table())
        decode_state(self.session.optimizer(), but_rounded=True)

    def _run_as_written(self, closure: Any, as_written: Callable[[Any], Any]) -> Any:
        """Run the user's own step on decoded state. What it makes is compressed as it goes where it is decided how; the rest
        is once the step is refused for good.
        """
        session = self.session
        self._is_written_running = True
        try:
            with opened_state(session.optimizer(), CompressMade(session.storage, session.table())):
                loss = as_written(closure)
        finally:
            self._is_written_running = False
            if self.is_foreseen:
                self.is_foreseen = False
                session.store(replace(session.storage, parameters={}))
        if self.refused:
            with torch.no_grad(), compile_lock():
                self.compress_found(closure is not None)
        return loss

    def _run(self, bound: BoundStep, optimizer: Any) -> None:
        configurator = self.session.configurator

        def run() -> None:
            bound.run(self.session.table)
            bound.numbers.commit(optimizer)
            self.gradients.mark_written()

        if configurator is None:
            run()
        else:
            configurator.step(self, run)
        if self.unborn:
            self.unborn.were_stepped(bound.present)
        self.ended(bound)

    def ended(self, bound: BoundStep) -> None:
        """Count a step, and audit its recording if that is due; refuse the step from the next one on if it differs."""
        self.count += 1
        if not self.audits.is_due(self.count):
            return
        began = time.perf_counter()
        with compile_lock(), paused_gc():
            found = audit_recording(bound.reading, self.session.table(), self.function)
        self.audits.took(time.perf_counter() - began)
        if found:
            self.refuse(found)

    def _postpone_or_refuse(self, reason: UnsupportedStep, has_closure: bool) -> None:
        """Let the first step run as written, and try again at the second: the state may show what is missing.

        The same for a few later steps that make state which nothing but the step can make.
        """
        is_first = not self.count and not self.postponed
        if is_first or (isinstance(reason, StateToCome) and self.postponed < MOST_POSTPONED):
            self.postponed += 1
            self._prepare_for_written()
            self.foresee_state(has_closure)
            log.info("%s converts its state after this step: %s", type(self.session.optimizer()).__name__, reason)
        else:
            self.refuse(str(reason))

    def refuse(self, reason: str) -> None:
        """Run the step as its user wrote it from now on, on decoded state, and say why.

        State that no codec rounds value by value is converted to full precision first, and decided on again.
        """
        session, optimizer = self.session, self.session.optimizer()
        self.refused = reason
        self.release()
        self.unborn.take_back(session.table())
        decode_state(optimizer, but_rounded=True)
        session.store(replace(session.storage, parameters={}))
        notice(optimizer, reason)

    # readings

    def begin(self, table: ParameterTable) -> None:
        """Read the step ahead, make its state, and start compiling its programs. Raises UnsupportedStep and BudgetError."""
        found = self.read(table, self.trained(table))
        try:
            self.prepare_state(found, table)
        except Exception:
            self.readings = []
            raise
        if not found.first_as_written:
            start_programs(table, self.session.storage, (found.first or found.warm).classes)


def _found_inf(optimizer: Any) -> bool:
    """Follow the protocol of torch's gradient scaler for optimizers that scale gradients themselves.

    Return whether the step is to be skipped. Gradients are unscaled in place.
    """
    found, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if isinstance(found, torch.Tensor) and bool(found.item()):
        return True
    if isinstance(scale, torch.Tensor):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        divide_all(grads, scale)
    return False
