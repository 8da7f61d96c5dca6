"""A part of a step: parameters that are stepped together, apart from all others, as soon as their gradients are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from baoc_compile.core.errors import StateError, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.numbers.number_function import GuardFailed
from baoc_compile.passes.recorder.recording import Value
from baoc_compile.passes.rewrite.bound_group import OutOfBounds
from baoc_compile.passes.rules.reading import Reading
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.runtime.own_step import OwnStep


class StepPart:
    """The step of some of an optimizer's parameters. It is bound to them at its first use, and again when the step changes.

    own: the step of all.
    parameters: the parameters.
    bound: their step; None before the first one.
    """

    def __init__(self, own: OwnStep, parameters: Sequence[Tensor]):
        self.own, self.parameters = own, list(parameters)
        self.bound: BoundStep | None = None

    def ready(self) -> BoundStep:
        """Return the step, with its numbers computed. Nothing has changed yet. Raises StateError and UnsupportedStep."""
        own, bound = self.own, self.bound
        optimizer = own.session.optimizer()
        is_known = bound is not None and not own.unborn and bound.is_bound_to(optimizer)
        if bound is not None and is_known and bound.look() and own.fits(bound, False):
            try:
                bound.numbers.compute(optimizer, bound.parameters)
                return bound
            except (GuardFailed, OutOfBounds):
                pass
        self.bound = bound = self._bind(own.session.table())
        bound.look()
        bound.numbers.compute(optimizer, bound.parameters)
        return bound

    def _bind(self, table: ParameterTable) -> BoundStep:
        """Find the reading that holds for these parameters, and bind what it says of them."""
        position = {id(p): i for i, p in enumerate(table.parameters)}
        if any(id(p) not in position for p in self.parameters):
            raise StateError(
                "release_gradients: the optimizer no longer has some of the parameters that it had; call remove() on what "
                "release_gradients returned, and release_gradients again"
            )
        indices = sorted(position[id(p)] for p in self.parameters)
        with _others_hidden(table, set(indices)):
            reading = self.own.ready(table.optimizer, False).reading
        reason = why_not_in_parts(reading, table)
        if reason:
            raise UnsupportedStep(f"release_gradients: {reason}")
        part = reading.restricted(frozenset(indices))
        part.is_independent = reading.is_independent
        if self.bound is not None:
            self.bound.release()
        return BoundStep(part, table, self.own.session.storage, self.own.function, indices)

    def release(self) -> None:
        """Drop all that is bound to tensors."""
        if self.bound is not None:
            self.bound.release()
            self.bound = None


@contextmanager
def _others_hidden(table: ParameterTable, members: set[int]) -> Iterator[None]:
    """Take away the gradients of all parameters but these within this context."""
    hidden = [(p, p.grad) for i, p in enumerate(table.parameters) if i not in members and p.grad is not None]
    for parameter, _ in hidden:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad in hidden:
            parameter.grad = grad


def why_not_in_parts(reading: Reading, table: ParameterTable) -> str:
    """Return why a step can't be taken in parts, some parameters before others; empty if it can."""
    recording = reading.recording
    mixed = next((p.parameters for p in recording.pieces if len(p.parameters) > 1), ())
    if mixed:
        return (
            f"the step mixes {table.names[mixed[0]]} with {table.names[mixed[1]]}, so it needs both of their gradients"
        )
    if recording.reads_gradients or recording.late or recording.conditions or any(p.exported for p in recording.pieces):
        return "the step computes numbers from all gradients (a norm, a distance) before it updates a parameter"
    if any(call.is_inplace for call in recording.prelude):
        return "the step changes tensors that belong to no parameter, and would change them once for every part"
    shared = next((w for w in recording.writes if w.source.parameter < 0), None)
    if shared is not None:
        what = "a tensor" if isinstance(shared.value, Value) else "a number"
        return f"the step changes {what} that all parameters share ({_named(shared.source.path)}), once for each whole step"
    if recording.returns.kind == "number":
        return "the step returns a number, which is known only after all of it"
    return ""


def _named(path: Sequence[object]) -> str:
    return ".".join(map(str, path)) if path else "of the optimizer"
