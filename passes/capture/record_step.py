"""Record: run an optimizer's step once on stand-ins, and return what it computes.

The step is the user's own code. It sees tensors without memory and numbers that remember how they were computed, and it
changes nothing but its stand-in. What the stand-in looks like afterwards says what the step writes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.passes.capture.expressions import NumberTrace
from baoc_compile.passes.capture.find_writes import find_writes
from baoc_compile.passes.capture.recorder import HoldsElements, Recorder
from baoc_compile.passes.capture.recording import Recording
from baoc_compile.passes.capture.split_pieces import split_pieces
from baoc_compile.passes.capture.stand_in import StandIn
from baoc_compile.passes.capture.traced_numbers import traced_functions


def record_step(
    table: ParameterTable,
    step: Callable[..., Any],
    present: frozenset[int],
    *,
    has_closure: bool = False,
    steps: int = 1,
) -> list[Recording]:
    """Record consecutive steps from the optimizer's present state; return one recording for each.

    table: the optimizer's parameters.
    step: the optimizer's step as its class has it, without hooks.
    present: indices of the parameters that have a gradient.
    has_closure: whether the step is called with a closure.
    steps: how many steps to record, each on the state that the one before left.

    Raises UnsupportedStep, with the reason, for a step that can't be recorded.
    """
    elements: frozenset[tuple[int, Any]] = frozenset()
    while True:
        try:
            return _record(table, step, present, has_closure, steps, elements)
        except HoldsElements as found:
            if found.entry is None or found.entry in elements:
                raise
            elements |= {found.entry}


def _record(
    table: ParameterTable,
    step: Callable[..., Any],
    present: frozenset[int],
    has_closure: bool,
    steps: int,
    elements: frozenset[tuple[int, Any]],
) -> list[Recording]:
    recordings: list[Recording] = []
    before: StandIn | None = None
    for _ in range(steps):
        recorder = Recorder(NumberTrace())
        stand_in = StandIn(table, recorder, present, elements, before)
        returned = _run(stand_in, step, has_closure)
        recording = find_writes(stand_in)
        recording.returns = returned
        recording.pieces, recording.prelude = split_pieces(stand_in)
        recording.guards = recorder.trace.guards
        recordings.append(recording)
        before = stand_in
    return recordings


class _Closure:
    """The closure that a recorded step may call: once, before anything else."""

    def __init__(self, recorder: Recorder):
        self.recorder, self.loss = recorder, torch.zeros((), device="meta")
        self.count = 0

    def __call__(self) -> torch.Tensor:
        if self.recorder.calls or self.count:
            raise UnsupportedStep("it calls its closure in the middle of the step, or more than once")
        self.count += 1
        return self.loss


def _run(stand_in: StandIn, step: Callable[..., Any], has_closure: bool) -> str:
    """Run the step; return what it returns: "none" or "loss"."""
    recorder = stand_in.recorder
    closure = _Closure(recorder)
    arguments = [closure] if has_closure else []
    grad = torch.is_grad_enabled()
    try:
        with traced_functions(stand_in.real_id), torch.compiler.set_stance("force_eager"), torch.no_grad(), recorder:
            returned = step(stand_in.optimizer, *arguments)
    except UnsupportedStep:
        raise
    except Exception as reason:
        raise UnsupportedStep(f"it can't be run on stand-ins ({type(reason).__name__}: {reason})") from reason
    finally:
        torch.set_grad_enabled(grad)
    if has_closure and not closure.count:
        raise UnsupportedStep("it doesn't call its closure")
    if returned is None:
        return "none"
    if returned is closure.loss:
        return "loss"
    raise UnsupportedStep(f"its step returns {type(returned).__name__}, not its closure's loss")
