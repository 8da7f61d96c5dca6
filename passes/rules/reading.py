"""A reading: a recorded step with its rules and numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule
from baoc_compile.passes.capture.group_numbers import GroupedNumbers, group_numbers
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Beginning, Piece, Recording
from baoc_compile.passes.rules.extract_rules import Bounds, RuleClass, extract_rules


@dataclass(eq=False)
class Reading:
    """A recorded step with its rules and numbers.

    recording: the step.
    numbers: what the host computes.
    classes: the pieces, grouped by rule.
    present: indices of the parameters that had a gradient.
    has_closure: whether the step was called with a closure.
    beginnings: parameter index -> state key -> its first value, for state that is made before the step.
    is_independent: whether the step was found to do the same for these parameters when others have no gradient.
    """

    recording: Recording
    numbers: GroupedNumbers
    classes: list[RuleClass]
    present: frozenset[int]
    has_closure: bool
    beginnings: dict[int, dict[str, Beginning]] = field(default_factory=dict)
    is_independent: bool = False

    @property
    def rules(self) -> dict[int, UpdateRule]:
        """Parameter index -> rule, for parameters whose update is elementwise."""
        return {piece.parameters[0]: c.rule for c in self.classes if c.rule is not None for piece in c.members}

    @property
    def reasons(self) -> dict[int, str]:
        """Parameter index -> why it has no rule."""
        return {i: c.reason for c in self.classes if c.rule is None for piece in c.members for i in piece.parameters}

    def restricted(self, present: frozenset[int]) -> Reading:
        """Return the reading for some of its parameters only."""
        recording = replace(
            self.recording,
            pieces=[p for p in self.recording.pieces if present.issuperset(p.parameters)],
            guards=[g for g in self.recording.guards if g.expression.owner < 0 or g.expression.owner in present],
            writes=[w for w in self.recording.writes if w.source.parameter < 0 or w.source.parameter in present],
        )
        kept = set(map(id, recording.pieces))
        classes = [replace(c, members=[p for p in c.members if id(p) in kept]) for c in self.classes]
        classes = [c for c in classes if c.members]
        return Reading(recording, group_numbers(recording), classes, present, self.has_closure)

    @property
    def has_other_steps(self) -> bool:
        """Whether a condition depends on a number that the step itself changes: later steps may be other ones."""
        changed = {(w.source.kind, w.source.path, w.source.parameter) for w in self.recording.writes}

        def changes(value: Any) -> bool:
            if not isinstance(value, Expression):
                return False
            if value.source is not None:
                return (value.source.kind, value.source.path, value.source.parameter) in changed
            return any(map(changes, value.arguments))

        return any(changes(guard.expression) for guard in self.recording.guards)

    @property
    def creates(self) -> bool:
        """Whether the step makes state."""
        return any(piece.created and not replaces(piece) for piece in self.recording.pieces)

    def widen(self, table: ParameterTable, known: Mapping[Hashable, list[Bounds]]) -> bool:
        """Prove the rules again for wider intervals of their numbers. Return whether a rule has changed."""
        before = {i: rule.key for i, rule in self.rules.items()}
        so_far = {piece.signature: c.bounds for c in self.classes for piece in c.members}
        self.classes = extract_rules(self.recording, table, so_far | dict(known))
        return before != {i: rule.key for i, rule in self.rules.items()}


def replaces(piece: Piece) -> bool:
    """Return whether all that a piece makes replaces state that exists."""
    existing = {(v.role.parameter, v.role.key) for v in piece.inputs if v.role is not None and v.role.kind == "state"}
    return all((role.parameter, role.key) in existing for role, _ in piece.created)


@dataclass(frozen=True)
class StepReading:
    """How an optimizer steps.

    first: the next step, if it makes state that only its own program can make; None if `warm` is the next step.
    first_as_written: whether the next step must run as its user wrote it, since it differs from later ones by more than
        that.
    warm: the step from then on.
    assumes_zeros: parameter index -> keys of the state that `first` would make, but that may as well start at 0 as long
        as the numbers are what they were.
    """

    first: Reading | None
    warm: Reading
    assumes_zeros: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    first_as_written: bool = False
