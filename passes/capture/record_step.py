"""Record: run an optimizer's step once on stand-ins, and return what it computes.

The step is the user's own code. It sees tensors without memory and numbers that remember how they were computed, and it
changes nothing but its stand-in. What the stand-in looks like afterwards says what the step writes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.torch_private import uncompiled
from baoc_compile.passes.capture.find_writes import find_writes
from baoc_compile.passes.capture.split_pieces import split_pieces
from baoc_compile.passes.capture.stand_in import NUDGE, StandIn
from baoc_compile.passes.capture.surroundings import Surroundings, undisturbed
from baoc_compile.passes.numbers.expressions import NOBODY, NumberTrace, Source
from baoc_compile.passes.numbers.traced_functions import traced_functions
from baoc_compile.passes.numbers.traced_numbers import is_traced
from baoc_compile.passes.recorder.number_recorder import HoldsElements
from baoc_compile.passes.recorder.recorder import Recorder
from baoc_compile.passes.recorder.recording import Recording, Returned, values_in


def record_step(
    table: ParameterTable,
    step: Callable[..., Any],
    present: frozenset[int],
    *,
    has_closure: bool = False,
    steps: int = 1,
    nudges: bool = False,
) -> list[Recording]:
    """Record consecutive steps from the optimizer's present state; return one recording for each.

    table: the optimizer's parameters.
    step: the optimizer's step as its class has it, without hooks.
    present: indices of the parameters that have a gradient.
    has_closure: whether the step is called with a closure.
    steps: how many steps to record, each on the state that the one before left.
    nudges: whether the first one is recorded with smaller floats; see `StandIn`.

    Raises UnsupportedStep, with the reason, for a step that can't be recorded.
    """
    elements, fixed = elements_of_scalars(table), frozenset[Source]()
    while True:
        try:
            return _record(table, step, present, has_closure, steps, elements, nudges, fixed)
        except HoldsElements as found:
            if found.entry is None or found.entry in elements:
                raise
            elements |= {found.entry}
        except _FailsWhenNudged as found:
            fixed |= found.sources


class _FailsWhenNudged(Exception):
    """The step could not be run with smaller floats, of which it has looked at some.

    sources: those floats. What is done is recorded for their values alone, so they need no nudge.
    """

    def __init__(self, sources: frozenset[Source]):
        super().__init__()
        self.sources = sources


def elements_of_scalars(table: ParameterTable) -> frozenset[tuple[int, Any]]:
    """Return the 0-dim state on the host that has elements: state of 0-dim parameters.

    It is what other parameters have in their own shape, or what has the type of a parameter of less than 32 bits. All other
    0-dim state is taken for a number until the step shows otherwise.
    """
    own_shape = {
        key
        for i, p in enumerate(table.parameters)
        for key, value in table.state(i).items()
        if p.ndim and isinstance(value, torch.Tensor) and value.shape == p.shape
    }
    found = set()
    for i, p in enumerate(table.parameters):
        for key, value in () if p.ndim else table.state(i).items():
            is_small = isinstance(value, torch.Tensor) and value.dtype == p.dtype and p.dtype.itemsize < 4
            if key in own_shape or is_small:
                found.add((i, key))
    return frozenset(found)


def _record(
    table: ParameterTable,
    step: Callable[..., Any],
    present: frozenset[int],
    has_closure: bool,
    steps: int,
    elements: frozenset[tuple[int, Any]],
    nudges: bool,
    fixed: frozenset[Source],
) -> list[Recording]:
    recordings: list[Recording] = []
    before: StandIn | None = None
    device = table.parameters[0].device if table.parameters else torch.device("cpu")
    for k in range(steps):
        recorder = Recorder(NumberTrace(), device)
        stand_in = StandIn.__new__(StandIn)
        with undisturbed(step, table.optimizer), traced_functions(stand_in.real_id, recorder.has_element):
            nudge = 1.0 if not nudges else NUDGE if k == 0 else 1 / NUDGE if k == 1 else 1.0
            stand_in.__init__(table, recorder, present, elements, before, nudge, fixed)  # type: ignore[misc]
            asked = stand_in.asked_ids
            try:
                returned = _run(stand_in, step, has_closure)
            except HoldsElements:
                raise
            except UnsupportedStep as reason:
                looked_at = frozenset[Source]() if nudge == 1.0 else recorder.trace.compared_by_value - fixed
                if looked_at:
                    raise _FailsWhenNudged(looked_at) from reason
                raise
            if stand_in.keeps_ids and stand_in.asked_ids == asked:
                raise UnsupportedStep("it looks up parameters by their ids in a way that can't be followed")
            recording = find_writes(stand_in)
            recording.returns, recording.options = returned, stand_in.options
            recording.pieces, recording.prelude, recording.late = split_pieces(stand_in, recording.writes)
            recording.conditions = recorder.conditions
        recording.guards, recording.sources = recorder.trace.guards, recorder.trace.sources
        recording.surroundings = Surroundings(step, table.optimizer).values()
        mixed = recorder.has_stacked or any(len(piece.parameters) > 1 for piece in recording.pieces)
        reads = any(v.group is not None or v.role for v in values_in(recording.prelude))
        recording.reads_gradients = mixed or reads or any(piece.exported for piece in recording.pieces)
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


def _run(stand_in: StandIn, step: Callable[..., Any], has_closure: bool) -> Returned:
    """Run the step; return what it returns."""
    recorder = stand_in.recorder
    closure = _Closure(recorder)
    arguments = [closure] if has_closure else []
    grad = torch.is_grad_enabled()
    try:
        with uncompiled(), torch.no_grad(), recorder:
            returned = step(stand_in.optimizer, *arguments)
    except UnsupportedStep:
        raise
    except Exception as reason:
        if recorder.refusal is not None:
            raise recorder.refusal from reason
        raise UnsupportedStep(f"it can't be run on stand-ins ({type(reason).__name__}: {reason})") from reason
    finally:
        torch.set_grad_enabled(grad)
    if recorder.refusal is not None:
        raise recorder.refusal
    if has_closure and not closure.count:
        raise UnsupportedStep("it doesn't call its closure")
    if returned is None:
        return Returned("none")
    if returned is closure.loss:
        return Returned("loss")
    if is_traced(returned) and returned.expression.owner == NOBODY:
        return Returned("number", returned.expression)
    if type(returned) in (bool, int, float):
        return Returned("number", returned, repr(returned))
    raise UnsupportedStep(f"its step returns {type(returned).__name__}, neither its closure's loss nor a number")
