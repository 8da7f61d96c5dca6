"""Decide how an optimizer's slots are stored: find out what storage they bear, then choose within the request.

A slot's sign is proved by its rule or by trial. A plan that a budget has chosen is tried on copies before it is trusted; a
slot that does not bear its codec must stay exact, and the choice is made again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.core.errors import warn_once
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.codecs.full import Full
from baoc_compile.passes.plan.choose_storage import choose_storage
from baoc_compile.passes.rules.read_step import Reading
from baoc_compile.runtime.session import Session
from baoc_compile.runtime.trial import TrialFailed, Trials

log = logging.getLogger("baoc")

SlotsOf = Mapping[int, tuple[Slot, ...]]
#: Larger parameters are not copied for a trial.
MOST_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class _Fact:
    """What trials have shown of a slot."""

    nonnegative: bool = False
    why_exact: str = ""


@dataclass
class StorageChoice:
    """The choice for one optimizer, with what trials have shown so far.

    session: what is known about the optimizer.
    function: its step as the user wrote it.
    """

    session: Session
    function: Callable[..., Any]
    _facts: dict[Any, dict[str, _Fact]] = field(default_factory=dict)
    _tried: set[Any] = field(default_factory=set)

    def choose(self, slots: SlotsOf, table: ParameterTable, bytes_to_come: int = 0, has_closure: bool = False) -> Storage:
        """Return the session's storage with a codec for every slot. Raises BudgetError and PlanError."""
        trials = Trials(table, self.function, has_closure)
        self._find_signs(slots, table, trials)
        session = self.session
        while True:
            known = self.with_facts(slots, table)
            storage = choose_storage(session.request, session.storage, table, known, bytes_to_come)
            if session.request.plan is not None or not self._find_unfit(storage, known, table, trials):
                return storage

    def with_facts(self, slots: SlotsOf, table: ParameterTable) -> SlotsOf:
        """Return the slots with what trials have shown of them."""
        return {i: _refined(of, self._facts.get(_kind(table, i, of), {})) for i, of in slots.items()}

    def apply(self, reading: Reading, table: ParameterTable) -> None:
        """Let the rules of a reading know what trials have shown of their slots."""
        for rule_class in reading.classes:
            rule = rule_class.rule
            if rule is not None:
                facts = self._facts.get(_kind(table, rule_class.members[0].parameters[0], rule.slots), {})
                slots = _refined(rule.slots, facts)
                if slots != rule.slots:
                    rule_class.rule = replace(rule, slots=slots)

    def _find_signs(self, slots: SlotsOf, table: ParameterTable, trials: Trials) -> None:
        for kind, members in _kinds(table, slots).items():
            first = members[0]
            unknown = [s.key for s in slots[first] if not s.nonnegative and s.weight_dtype is None and not s.why_exact]
            if kind in self._facts or not unknown or table.parameters[first].numel() > MOST_ELEMENTS:
                continue
            self._facts[kind] = {}
            try:
                proven = trials.nonnegative(first)
            except TrialFailed as reason:
                log.info("the signs of the state of %s can't be tried: %s", table.names[first], reason)
                continue
            self._facts[kind] = {key: _Fact(True) for key in unknown if key in proven}

    def _find_unfit(self, storage: Storage, slots: SlotsOf, table: ParameterTable, trials: Trials) -> bool:
        """Try a storage; return whether slots were found that do not bear their codecs."""
        found = False
        for kind, members in _kinds(table, slots).items():
            first = members[0]
            codecs = _rounding(storage.of(first).codecs)
            if not codecs or table.parameters[first].numel() > MOST_ELEMENTS or self._was_tried(kind, codecs):
                continue
            try:
                reasons = trials.why_exact(first, codecs, storage.seed)
            except TrialFailed as reason:
                log.info("the plan for %s can't be tried: %s", table.names[first], reason)
                continue
            facts = self._facts.setdefault(kind, {})
            for key, why in reasons.items():
                facts[key] = replace(facts.get(key, _Fact()), why_exact=why)
                warn_once(f"baoc keeps state {key!r} of {table.names[first]} and the like in full precision: {why}")
            found = found or bool(reasons)
        return found

    def _was_tried(self, kind: Any, codecs: Mapping[str, Codec]) -> bool:
        asked = kind, tuple(sorted((key, codec.name) for key, codec in codecs.items()))
        is_known = asked in self._tried
        self._tried.add(asked)
        return is_known


def _kind(table: ParameterTable, index: int, slots: tuple[Slot, ...]) -> Any:
    """Return what parameters have in common that the step treats alike, as far as can be seen."""
    parameter = table.parameters[index]
    keys = tuple(s.key for s in slots if s.weight_dtype is None)
    return keys, parameter.ndim, parameter.dtype, table.groups[index]


def _kinds(table: ParameterTable, slots: SlotsOf) -> dict[Any, list[int]]:
    """Return the parameters that can be tried, by kind, the smallest first."""
    found: dict[Any, list[int]] = defaultdict(list)
    for i, of in slots.items():
        if table.parameters[i].requires_grad and table.parameters[i].numel():
            found[_kind(table, i, of)].append(i)
    return {kind: sorted(members, key=lambda i: table.parameters[i].numel()) for kind, members in found.items()}


def _refined(slots: tuple[Slot, ...], facts: Mapping[str, _Fact]) -> tuple[Slot, ...]:
    known = ((s, facts.get(s.key, _Fact())) for s in slots)
    return tuple(
        replace(s, nonnegative=s.nonnegative or f.nonnegative, why_exact=s.why_exact or f.why_exact) for s, f in known
    )


def _rounding(codecs: Mapping[str, Codec]) -> dict[str, Codec]:
    return {k: c for k, c in codecs.items() if c.mechanism == "rounding" and not isinstance(c, Full)}
