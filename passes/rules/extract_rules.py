"""Rewrite: turn pieces into canonical update rules, one for each structural class.

Pieces of equal structure form one class, and only one representative of each class is traced and decomposed.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import RuleInput, UpdateRule, bounds_of
from baoc_compile.passes.numbers.expressions import NOBODY, Expression, Source
from baoc_compile.passes.numbers.number_function import compile_numbers
from baoc_compile.passes.recorder.recording import Piece, Recording, Write
from baoc_compile.passes.rules.canonicalize import NotElementwise, canonicalize
from baoc_compile.passes.rules.reductions import reduction_of

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)


@dataclass
class RuleClass:
    """Pieces of the same structure.

    members: the pieces.
    bounds: for each scalar, the interval that the rule's proofs assume.
    rule: their update rule; None if they are not elementwise.
    reason: why there is no rule; empty if there is one.
    """

    members: list[Piece] = field(default_factory=list)
    bounds: list[Bounds] = field(default_factory=list)
    rule: UpdateRule | None = None
    reason: str = ""


def extract_rules(
    recording: Recording,
    table: ParameterTable,
    known: Mapping[Hashable, list[Bounds]] | None = None,
    *,
    prove: bool = True,
) -> list[RuleClass]:
    """Group the pieces of a recording by structure, in order of first appearance, and canonicalize each group.

    known: signature -> bounds that have already been found too narrow, and by how much.
    prove: False to group the pieces only.
    """
    counters = _step_counters(recording)
    changing = {(w.source.kind, w.source.path, w.source.parameter) for w in recording.writes}
    facts = _Facts(counters, changing)
    classes: dict[Hashable, RuleClass] = {}
    described: dict[Hashable, list[RuleInput]] = {}
    for piece in recording.pieces:
        inputs = facts.describe(piece)
        key: Hashable = (piece.signature, tuple((i.counts_steps, i.varies) for i in inputs))
        found = classes.get(key)
        if found is None:
            found = classes[key] = RuleClass(bounds=list((known or {}).get(piece.signature, ())))
            described[key] = inputs
        found.members.append(piece)
        found.bounds = joined(found.bounds, [i.bounds for i in inputs])
    if not prove:
        return list(classes.values())
    found_classes: list[RuleClass] = []
    for key, rule_class in classes.items():
        scalars = [replace(i, bounds=b) for i, b in zip(described[key], rule_class.bounds, strict=True)]
        representative = max(rule_class.members, key=lambda piece: table.parameters[piece.parameters[0]].ndim)
        canonical = _canonical(table, representative, scalars)
        depends = isinstance(canonical, str) or any(map(reduction_of, canonical.gm.graph.nodes))
        for alike in _by_shape(rule_class, table) if depends else [rule_class]:
            canonical = _canonical(table, alike.members[0], scalars) if depends else canonical
            if isinstance(canonical, str):
                alike.reason = canonical
            else:
                alike.rule = canonical
            found_classes.append(alike)
    return found_classes


def _by_shape(rule_class: RuleClass, table: ParameterTable) -> list[RuleClass]:
    """Take a class apart by the shapes of its parameters: a reduction over some dimensions is another one in other shapes."""
    found: dict[Hashable, RuleClass] = {}
    for piece in rule_class.members:
        shapes = tuple(tuple(table.parameters[i].shape) for i in piece.parameters)
        found.setdefault(shapes, RuleClass(bounds=rule_class.bounds)).members.append(piece)
    return list(found.values())


#: Rules and refusals of the pieces that were canonicalized last, by all that they depend on. torch keeps the source text of
#: every graph for as long as the process lives, so equal optimizers must not make graphs of their own.
_CANONICAL: OrderedDict[Hashable, UpdateRule | str] = OrderedDict()
MOST_CANONICAL = 512


def _canonical(table: ParameterTable, piece: Piece, scalars: list[RuleInput]) -> UpdateRule | str:
    """Return the rule of a piece, or the reason why it has none."""
    parameter = table.parameters[piece.parameters[0]]
    known = tuple((i.position, i.counts_steps, i.varies, i.bounds) for i in scalars)
    kind = tuple(parameter.shape), parameter.dtype, parameter.layout, len(piece.parameters)
    key = piece.signature, tuple(map(bounds_of, piece.constants)), known, kind
    if key not in _CANONICAL:
        try:
            _CANONICAL[key] = canonicalize(table, piece, scalars)
        except NotElementwise as reason:
            _CANONICAL[key] = str(reason)
        if len(_CANONICAL) > MOST_CANONICAL:
            _CANONICAL.popitem(last=False)
    return _CANONICAL[key]


def joined(some: list[Bounds], others: list[Bounds]) -> list[Bounds]:
    """Return the intervals that contain both, position by position."""
    if not some:
        return others
    return [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(some, others, strict=True)]


@dataclass
class _Facts:
    """What the writes of a recording say about the numbers of its pieces.

    counters: parameter index -> the expression that counts its steps; `NOBODY` -> one that counts the optimizer's.
    changing: what the step changes.
    """

    counters: dict[int, Expression]
    changing: set[tuple[Any, ...]]
    _varies: dict[Expression, bool] = field(default_factory=dict)

    def describe(self, piece: Piece) -> list[RuleInput]:
        """Return what is known of a piece's scalars, after adding the number of steps to them."""
        counter = self.counters.get(piece.parameters[0], self.counters.get(NOBODY))
        if counter is not None and counter not in piece.scalars:
            piece.scalars.append(counter)
        found = []
        for position, scalar in enumerate(piece.scalars):
            if not isinstance(scalar, Expression):
                found.append(RuleInput("", "scalar", origin="scalars", position=position))
                continue
            counts = scalar is counter
            bounds = (0.0, math.inf) if counts else bounds_of(float(scalar.value))
            varies = self._changes(scalar)
            found.append(RuleInput("", "scalar", "", "scalars", position, counts, varies, bounds))
        return found

    def _changes(self, expression: Expression) -> bool:
        if expression not in self._varies:
            if expression.source is not None:
                source = expression.source
                self._varies[expression] = (source.kind, source.path, source.parameter) in self.changing
            else:
                self._varies[expression] = any(
                    self._changes(a) for a in expression.arguments if isinstance(a, Expression)
                )
        return self._varies[expression]


def _is_same_place(a: Source, b: Source) -> bool:
    return a is b or (a.kind, a.path, a.parameter) == (b.kind, b.path, b.parameter)


def _step_counters(recording: Recording) -> dict[int, Expression]:
    """Find what the step increases by 1: parameter index (or `NOBODY`) -> its expression before the step."""
    found: dict[int, Expression] = {}
    verdicts: dict[Any, bool] = {}
    by_owner: dict[int, list[Write]] = defaultdict(list)
    for write in recording.writes:
        by_owner[write.source.parameter].append(write)
    for owner, writes in by_owner.items():
        for write in writes:
            value = write.value
            if owner in found or not isinstance(value, Expression) or value.source is not None:
                continue
            operands = [a for a in value.arguments if isinstance(a, Expression)]
            if len(operands) != 1 or operands[0].source is None or not _is_same_place(operands[0].source, write.source):
                continue
            if value.template not in verdicts:
                verdicts[value.template] = _adds_one(value)
            if verdicts[value.template]:
                found[owner] = operands[0]
    return found


def _adds_one(value: Expression) -> bool:
    function = compile_numbers((), [value])
    try:
        return all(function([float(k)]) == [(k + 1.0,)] for k in (0, 1, 5, 17))
    except Exception:
        return False
