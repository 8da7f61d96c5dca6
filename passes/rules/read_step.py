"""Read an optimizer's step: record it until two recordings in a row agree, and say what its rules and numbers are.

Consecutive recordings, each on the state that the one before left, must be equal as long as the conditions of the first
hold for the second. If they are not, the step computes with a number whose origin is lost, and it can't be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from baoc_compile.core.codec import Slot, weight_slots
from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule
from baoc_compile.passes.capture.group_numbers import GroupedNumbers, group_numbers, same_numbers
from baoc_compile.passes.capture.record_step import record_step
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Beginning, Recording
from baoc_compile.passes.rules.extract_rules import extract_rules
from baoc_compile.passes.rules.reading import Reading, StepReading, replaces
from baoc_compile.state.entries import follows_weight

#: Recordings in a row that may differ with good reason: a step that makes state, one that uses it, one whose guards flip.
MOST_RECORDINGS = 4


def read_step(
    table: ParameterTable, step: Callable[..., Any], present: frozenset[int], *, has_closure: bool = False
) -> StepReading:
    """Read the optimizer's next steps from its present state. Raises UnsupportedStep, with the reason.

    table: the optimizer's parameters.
    step: the step as its class has it, without hooks.
    present: indices of the parameters that have a gradient.
    has_closure: whether the step is called with a closure.
    """
    count = 2
    recordings = record_step(table, step, present, has_closure=has_closure, steps=count, nudges=True)
    if not _holds(recordings[0], recordings[1]):
        recordings = record_step(table, step, present, has_closure=has_closure, steps=count)
    numbers = [group_numbers(r) for r in recordings]
    _refuse_absent(recordings[0], present, table)
    makes_state = bool(recordings[0].beginnings) or any(not replaces(piece) for piece in recordings[0].pieces)
    if makes_state and _are_equal(recordings[0], recordings[1], numbers[0], numbers[1]):
        warm = _reading(table, recordings[1], numbers[1], present, has_closure)
        warm.beginnings = recordings[0].beginnings
        return StepReading(None, warm)
    if not makes_state and _agree(recordings[0], recordings[1], numbers[0], numbers[1]) is not None:
        return StepReading(None, _reading(table, recordings[1], numbers[1], present, has_closure))
    while count < MOST_RECORDINGS:
        count += 1
        recordings = record_step(table, step, present, has_closure=has_closure, steps=count)
        numbers = [group_numbers(r) for r in recordings]
        if _agree(recordings[-2], recordings[-1], numbers[-2], numbers[-1]):
            break
    first = _reading(table, recordings[0], numbers[0], present, has_closure)
    if not makes_state:
        return StepReading(None, first)
    warm = _reading(table, recordings[1], numbers[1], present, has_closure)
    if recordings[0].beginnings:
        return StepReading(None, warm, first_as_written=True)
    zeros = _starts_at_zero(table, first, warm)
    if zeros is not None:
        warm.beginnings = zeros
        return StepReading(None, warm, {i: tuple(made) for i, made in zeros.items()})
    return StepReading(first, warm)


def _refuse_absent(recording: Recording, present: frozenset[int], table: ParameterTable) -> None:
    """Raise UnsupportedStep if the step changes a parameter that has no gradient, or its state."""
    changed = {i for piece in recording.pieces for i in piece.parameters}
    changed |= {write.source.parameter for write in recording.writes if write.source.parameter >= 0}
    odd = sorted({*changed, *recording.beginnings} - present)
    if odd:
        raise UnsupportedStep(f"it changes {table.names[odd[0]]}, or its state, though that has no gradient")


def _reading(
    table: ParameterTable, recording: Recording, numbers: GroupedNumbers, present: frozenset[int], has_closure: bool
) -> Reading:
    classes = extract_rules(recording, table)  # may add the number of steps to a piece's numbers
    apart = next((c for c in classes if c.rule is None and any(piece.exported for piece in c.members)), None)
    if apart is not None:
        raise UnsupportedStep(f"its updates exchange numbers, and {apart.reason}")
    for rule_class in classes if recording.conditions else ():
        if rule_class.rule is not None:  # if they don't hold, the step runs as written, with a value for each element
            slots = (replace(s, why_not_shared=_BRANCHES, why_not_dropped=_BRANCHES) for s in rule_class.rule.slots)
            rule_class.rule = replace(rule_class.rule, slots=tuple(slots))
    return Reading(recording, group_numbers(recording), classes, present, has_closure)


_BRANCHES = "the step branches on values"


def _are_equal(a: Recording, b: Recording, of_a: GroupedNumbers, of_b: GroupedNumbers) -> bool:
    """Return whether two recordings compute the same."""
    return (
        a.returns == b.returns
        and [(p.parameters, p.signature, p.constants) for p in a.pieces]
        == [(p.parameters, p.signature, p.constants) for p in b.pieces]
        and _calls(a) == _calls(b)
        and [c.expected for c in a.conditions] == [c.expected for c in b.conditions]
        and same_numbers(of_a, of_b)
    )


def _calls(recording: Recording) -> list[Any]:
    return [(call.name, len(call.arguments)) for call in recording.prelude]


def _agree(a: Recording, b: Recording, of_a: GroupedNumbers, of_b: GroupedNumbers) -> bool | None:
    """Return True if two recordings in a row are equal, and None if they need not be.

    Raises UnsupportedStep if they should be and are not.
    """
    if a.constants != b.constants or not _holds(a, b):
        return None
    if _are_equal(a, b, of_a, of_b):
        return True
    raise UnsupportedStep("it computes with a number whose origin can't be followed, so it can't be replayed")


def _holds(a: Recording, b: Recording) -> bool:
    """Return whether the guards of one recording hold for the numbers of another."""
    values = {source: expression.value for source, expression in b.sources.items()}
    for guard in a.guards:
        found = _value(guard.expression, values)
        if found is None or (bool(found[0]) if guard.is_truth else found[0]) != guard.expected:
            return False
    return True


def _value(expression: Any, values: Mapping[Any, Any]) -> tuple[Any] | None:
    """Return the value of an expression for other numbers, in a tuple; None if it has none."""
    known: dict[Expression, Any] = {}

    def of(argument: Any) -> Any:
        if not isinstance(argument, Expression):
            return argument
        if argument not in known:
            if argument.source is not None:
                known[argument] = values[argument.source]
            else:
                assert argument.function is not None
                known[argument] = argument.function(*map(of, argument.arguments))
        return known[argument]

    try:
        return (of(expression),)
    except Exception:  # a number that does not exist there, or a function that is not defined
        return None


def difference(reading: Reading, recording: Recording, numbers: GroupedNumbers, table: ParameterTable) -> str:
    """Return how a later recording of the same step differs from a reading whose guards hold for it; or an empty text."""
    before = reading.recording
    if before.surroundings != recording.surroundings:
        return "it depends on a global that has changed"
    if before.constants != recording.constants or not _holds(before, recording):
        return ""
    extract_rules(recording, table, prove=False)  # adds the number of steps to the pieces' numbers
    numbers = group_numbers(recording)
    if _are_equal(before, recording, reading.numbers, numbers):
        return ""
    pieces = {p.parameters: (p.signature, p.constants) for p in recording.pieces}
    for piece in before.pieces:
        if pieces.get(piece.parameters) != (piece.signature, piece.constants):
            return (
                f"the update of {table.names[piece.parameters[0]]} is another one than before, and no number says why"
            )
    return "its numbers are computed in another way than before, and no number says why"


def _starts_at_zero(table: ParameterTable, first: Reading, warm: Reading) -> dict[int, dict[str, Beginning]] | None:
    """Return the state that the first step makes if the warm step, started from 0, gives the same; else None.

    Both rules are evaluated on random elements and must give equal bits.
    """
    made: dict[int, dict[str, Beginning]] = {}
    verdicts: dict[Any, bool] = {}
    pieces = {piece.parameters[0]: (c, piece) for c in warm.classes for piece in c.members}
    for rule_class in first.classes:
        for piece in rule_class.members:
            index = piece.parameters[0]
            after = pieces.get(index)
            if rule_class.rule is None or after is None or after[0].rule is None:
                return None
            key = tuple((p.signature, tuple(p.constants), _scalars(p)) for p in (piece, after[1]))
            if key not in verdicts:
                verdicts[key] = _is_same_from_zero(rule_class.rule, piece, after[0].rule, after[1], first.recording)
            if not verdicts[key]:
                return None
            made[index] = {
                role.key: Beginning("filled", 0.0, value.dtype, tuple(value.shape)) for role, value in piece.created
            }
    return made


def _scalars(piece: Any) -> tuple[Any, ...]:
    return tuple(s.value if isinstance(s, Expression) else None for s in piece.scalars)


def _is_same_from_zero(first: UpdateRule, piece: Any, warm: UpdateRule, after: Any, recording: Recording) -> bool:
    if any(i.varies for rule in (first, warm) for i in rule.inputs) or warm.inputs_of("counter"):
        return False
    created = set(first.created)
    now = {source: expression.value for source, expression in recording.sources.items()}
    generator = torch.Generator().manual_seed(0)
    elements = {name: torch.randn(8, 8, generator=generator) for name in ("param", "grad")}

    def run(rule: UpdateRule, of: Any) -> dict[str, Any] | None:
        values = []
        for i in rule.inputs:
            if i.kind in ("slot", "lines"):
                values.append(torch.zeros(8, 8) if i.key in created else elements.setdefault(i.key, torch.rand(8, 8)))
            elif i.origin in ("numel", "columns"):
                values.append(torch.tensor(64.0 if i.origin == "numel" else 8.0, dtype=torch.float64))
            elif i.kind == "scalar":
                number = of.scalars[i.position] if i.origin == "scalars" else of.constants[i.position]
                if not isinstance(number, (Expression, float)):
                    return None
                known = _value(number, now)  # of the first step's numbers
                if known is None:
                    return None
                values.append(torch.tensor(float(known[0]), dtype=torch.float64))
            else:
                values.append(elements[i.kind])
        names = {i.name: i.key or i.kind for i in rule.inputs}
        results = zip(rule.outputs, rule.gm(*values), strict=True)
        return {names.get(o.name, o.key) if o.kind == "new" else o.key: v.expand(8, 8) for o, v in results}

    some, others = run(first, piece), run(warm, after)
    return (
        some is not None
        and others is not None
        and some.keys() == others.keys()
        and all(torch.equal(some[k], others[k]) for k in some)
    )


def slots_of(reading: StepReading, table: ParameterTable) -> dict[int, tuple[Slot, ...]]:
    """Return the slots to decide on, by parameter: those of the rules, and the float state of the other pieces."""
    found: dict[int, tuple[Slot, ...]] = {}
    rules = reading.warm.rules
    for index, rule in rules.items():
        begun = reading.warm.beginnings.get(index, {})
        slots = tuple(_follower(_as_it_begins(slot, begun), table, index, begun) for slot in rule.slots)
        found[index] = (*slots, *weight_slots(table.parameters[index], slots))
    for index in reading.warm.reasons:
        shape = tuple(table.parameters[index].shape)
        existing = {
            key: (tuple(value.shape), value.dtype)
            for key, value in table.state(index).items()
            if isinstance(value, torch.Tensor)
        }
        begun = reading.warm.beginnings.get(index, {})
        entries = {**existing, **{key: (tuple(b.shape), b.dtype) for key, b in begun.items() if b.dtype}}
        found[index] = tuple(
            _follower(Slot(key), table, index, begun)
            for key, (of, dtype) in entries.items()
            if isinstance(key, str) and of == shape and shape and dtype.is_floating_point
        )
    return found


def _follower(slot: Slot, table: ParameterTable, index: int, beginnings: Mapping[str, Beginning]) -> Slot:
    """Return the slot with the fact whether it follows the weights."""
    parameter, beginning = table.parameters[index], beginnings.get(slot.key)
    if beginning is not None:
        follows = beginning.kind == "parameter" and parameter.dtype == beginning.dtype == torch.float32
    else:
        follows = follows_weight(parameter, table.state(index).get(slot.key), is_signed=slot.nonnegative)
    return replace(slot, follows_weight=True, nonnegative=False) if follows else slot


def _as_it_begins(slot: Slot, beginnings: Mapping[str, Beginning]) -> Slot:
    """Return the slot without its sign if it begins with a negative number: the rule's proof starts at 0."""
    beginning = beginnings.get(slot.key)
    if beginning is None or not slot.nonnegative:
        return slot
    value = beginning.value.value if isinstance(beginning.value, Expression) else beginning.value
    begins_negative = beginning.kind == "parameter" or (value is not None and value < 0)
    return replace(slot, nonnegative=False) if begins_negative else slot
