"""Decide how an optimizer's slots are stored: find out what storage they bear, then choose within the request.

A slot's sign is proved by its rule or by trial. A plan that a budget has chosen is tried on copies before it is trusted; a
slot that does not bear its codec must stay exact, and the choice is made again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from baoc_compile.core.codec import FINE, Codec, Slot
from baoc_compile.core.errors import warn_once
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.codecs.plain import Full
from baoc_compile.passes.plan.choose_storage import choose_storage
from baoc_compile.passes.rules.reading import Reading
from baoc_compile.passes.trials import copies
from baoc_compile.passes.trials.bench import Bench, CopyBench, RuleBench, TrialFailed
from baoc_compile.passes.trials.trials import signs, why_exact
from baoc_compile.runtime.distributed.ranks import Ranks
from baoc_compile.runtime.session import Session
from baoc_compile.state.entries import follows_weight
from baoc_compile.state.plan import Plan
from baoc_compile.state.request import Request

log = logging.getLogger("baoc")

SlotsOf = Mapping[int, tuple[Slot, ...]]


@dataclass(frozen=True)
class _Fact:
    """What trials have shown of a slot.

    nonnegative: it stays >= 0.
    is_robust: no values of its sign make the step give NaN.
    why_fine: why it must be stored finely all the same; see `Slot`.
    why_exact: why it must stay exact all the same.
    """

    nonnegative: bool = False
    is_robust: bool = False
    why_fine: str = ""
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
    #: For kinds whose slots are given more bits: the first error, and what was known then.
    _before: dict[Any, tuple[float, dict[str, _Fact]]] = field(default_factory=dict)
    _told: dict[Any, list[str]] = field(default_factory=dict)
    #: What the first steps do not bear, by kind and state key, until there are slots that it is known of.
    _at_first: dict[Any, dict[str, _Fact]] = field(default_factory=dict)

    def choose(
        self,
        slots: SlotsOf,
        table: ParameterTable,
        reading: Reading | None,
        bytes_to_come: int = 0,
        has_closure: bool = False,
    ) -> Storage:
        """Return the session's storage with a codec for every slot. Raises BudgetError and PlanError.

        reading: the step's rules; None if it can't be read.

        A plan that the user has named is taken as it is; what a trial shows of it is a warning. Of several processes that
        hold DTensors, the first one chooses for all. Raises OptionError if they do not ask for the same.
        """
        ranks = Ranks.of(table)
        if ranks.is_alone:
            return self._choose(slots, table, reading, bytes_to_come, has_closure)
        ranks.compare(_asked(self.session.request, table))

        def decide() -> tuple[str, dict[tuple[int, str], str], Any]:
            chosen = self._choose(slots, table, reading, bytes_to_come, has_closure)
            return Plan.written(chosen, table).to_json(), _reasons(chosen), self._facts

        plan, reasons, self._facts = ranks.decided_by_first(decide)
        return _with_reasons(Plan.from_json(plan).storage, reasons)

    def _choose(
        self, slots: SlotsOf, table: ParameterTable, reading: Reading | None, bytes_to_come: int, has_closure: bool
    ) -> Storage:
        session, rules = self.session, {} if reading is None else reading.rules
        kinds = _kinds(table, slots, rules)
        benches = _Benches(table, reading, self.function, has_closure)
        self._find_signs(kinds, slots, benches)
        for kind in kinds.keys() & self._at_first.keys():
            facts = self._facts.setdefault(kind, {})
            for key, fact in self._at_first.pop(kind).items():
                facts[key] = replace(facts.get(key, _Fact()), why_fine=fact.why_fine, why_exact=fact.why_exact)
        while True:
            known = dict(slots)
            for kind, facts in self._facts.items():
                known |= {i: _refined(slots[i], facts) for i in kinds.get(kind, ())}
            storage = choose_storage(session.request, session.storage, table, known, bytes_to_come)
            if not self._find_unfit(kinds, storage, benches) or session.request.plan is not None:
                for message in (message for messages in self._told.values() for message in messages):
                    warn_once(message)
                return storage

    def foresee(self, indices: Collection[int], table: ParameterTable, has_closure: bool) -> Storage:
        """Return the storage of state that the first step will make, if the step can't be read: a copy of one parameter of
        each kind shows what it makes.

        Raises TrialFailed, BudgetError and PlanError.
        """
        ranks = Ranks.of(table)
        slots = ranks.decided_by_first(lambda: self._slots_to_come(indices, table, has_closure))
        return self.choose({i: of for i, of in slots.items() if of}, table, None, has_closure=has_closure)

    def _slots_to_come(
        self, indices: Collection[int], table: ParameterTable, has_closure: bool
    ) -> dict[int, tuple[Slot, ...]]:
        slots: dict[int, tuple[Slot, ...]] = {i: () for i in indices}
        benches = _Benches(table, None, self.function, has_closure)
        for members in _kinds(table, slots, {}).values():
            bench = benches.maker(members)()
            bench.step()
            made = {k: follows_weight(bench.parameter, v) for k, v in bench.state.items() if isinstance(k, str)}
            slots |= {i: tuple(Slot(key, follows_weight=f) for key, f in made.items()) for i in members}
        return slots

    def remember(self, first: StorageChoice) -> None:
        """Remember what trials of the first steps have shown: what these do not bear, later ones need not show again.

        Signs are tried anew, since new state may not have those that it has later.
        """
        for kind, facts in first._facts.items():
            unfit = {key: fact for key, fact in facts.items() if fact.why_fine or fact.why_exact}
            if unfit:
                self._at_first[kind] = unfit

    def apply(self, reading: Reading) -> None:
        """Let the rules of a reading know what trials have shown of their slots."""
        for rule_class in reading.classes:
            rule = rule_class.rule
            if rule is not None:
                slots = _refined(rule.slots, self._facts.get(_kind_of(rule), {}))
                if slots != rule.slots:
                    rule_class.rule = replace(rule, slots=slots)

    def _find_signs(self, kinds: _Kinds, slots: SlotsOf, benches: _Benches) -> None:
        for kind, members in kinds.items():
            first = members[0]
            unknown = [s.key for s in slots[first] if s.weight_dtype is None and (not s.nonnegative or s.why_exact)]
            if kind in self._facts or not unknown:
                continue
            self._facts[kind] = {}
            try:
                proven, is_robust = signs(benches.maker(members))
            except TrialFailed as reason:
                log.info("the signs of the state of %s can't be tried: %s", benches.table.names[first], reason)
                continue
            self._facts[kind] = {key: _Fact(key in proven, is_robust) for key in unknown}

    def _find_unfit(self, kinds: _Kinds, storage: Storage, benches: _Benches) -> bool:
        """Try a storage; return whether slots were found that do not bear their codecs.

        More bits for one slot may leave less for others. If what bears its codecs in the end does not halve the first error, all
        that was found is taken back.
        """
        found, is_asked = False, self.session.request.plan is not None
        for kind, members in kinds.items():
            first = next((i for i in members if _rounding(storage.of(i).codecs)), members[0])
            codecs = _rounding(storage.of(first).codecs)
            if not codecs or self._was_tried(kind, codecs):
                continue
            name = benches.table.names[first]
            try:
                reasons, error = why_exact(benches.maker(members), codecs, storage.seed)
            except TrialFailed as reason:
                log.info("the plan for %s can't be tried: %s", name, reason)
                continue
            facts = self._facts.setdefault(kind, {})
            if reasons and not is_asked:
                self._before.setdefault(kind, (error, dict(facts)))
            elif error > (before := self._before.pop(kind, (float("inf"), {})))[0] / 2:
                self._facts[kind], found = before[1], True
                self._told[kind] = [f"updates of {name} and the like are {before[0]:.0%} off in a trial of the plan"]
                continue
            for key, why in reasons.items():
                if is_asked:
                    warn_once(f"state {key!r} of {name} and the like does not bear the plan that was asked for: {why}")
                    continue
                is_coarse = codecs[key].relative_error > FINE
                fact = facts.get(key, _Fact())
                facts[key] = replace(fact, why_fine=why) if is_coarse else replace(fact, why_exact=why)
                how = "with 16 bits or more" if is_coarse else "in full precision"
                self._told.setdefault(kind, []).append(f"baoc keeps state {key!r} of {name} and the like {how}: {why}")
            found = found or bool(reasons)
        return found

    def _was_tried(self, kind: Any, codecs: Mapping[str, Codec]) -> bool:
        asked = kind, tuple(sorted((key, codec.name) for key, codec in codecs.items()))
        is_known = asked in self._tried
        self._tried.add(asked)
        return is_known


@dataclass
class _Benches:
    """Where an optimizer's parameters are tried; see `passes/trials/bench.py`."""

    table: ParameterTable
    reading: Reading | None
    function: Callable[..., Any]
    has_closure: bool

    def maker(self, members: list[int]) -> Callable[[], Bench]:
        """Return what makes benches for parameters of one kind. Raises TrialFailed.

        The user's own step on a copy shows most, since its numbers go on from step to step: it is taken where the copy is
        small, and where there is no rule.
        """
        local = self.table.local.parameters
        sizes = {i: local[i].numel() for i in members if local[i].numel() or not self.table.wholes[i].numel()}
        small = [i for i in sizes if ENOUGH_ELEMENTS <= sizes[i] <= FEW_ELEMENTS]
        by_rule = None if small else self._by_rule(members[0])
        if by_rule is not None:
            return by_rule
        able = small or [i for i in sizes if sizes[i] <= copies.MOST_ELEMENTS]
        if not able:
            raise TrialFailed("its parameters are too large to be copied, or held by other processes")
        chosen = next((i for i in able if sizes[i] >= ENOUGH_ELEMENTS), able[-1])
        return lambda: CopyBench(self.table, chosen, self.function, self.has_closure)

    def _by_rule(self, index: int) -> Callable[[], Bench] | None:
        """Return what makes benches with the parameter's rule; None if it has none, or if later steps may have another."""
        reading = self.reading
        if reading is None or reading.has_other_steps:
            return None
        for rule_class in reading.classes:
            rule, pieces = rule_class.rule, [p for p in rule_class.members if index in p.parameters]
            if rule is not None and pieces:
                begun = reading.beginnings.get(index, {})
                return lambda: RuleBench(rule, pieces[0], self.table.local.parameters[index], begun)
        return None


#: Elements with which a trial shows what it should: signs that are random, errors that are not one element's.
ENOUGH_ELEMENTS = 256
#: Elements of a parameter that may be copied although it has a rule, and state that never is in full precision.
FEW_ELEMENTS = 1 << 16

#: Parameters by kind, the smallest first.
_Kinds = Mapping[Any, list[int]]


def _kinds(table: ParameterTable, slots: SlotsOf, rules: Mapping[int, UpdateRule]) -> _Kinds:
    """Return the parameters that can be tried: those of one rule, or those alike as far as can be seen."""
    found: dict[Any, list[int]] = defaultdict(list)
    of_rule = {rule: _kind_of(rule) for rule in set(rules.values())}
    for i, of in slots.items():
        parameter = table.parameters[i]
        if parameter.requires_grad and parameter.numel():
            keys = tuple(s.key for s in of if s.weight_dtype is None)
            alike = keys, parameter.ndim, parameter.dtype, table.groups[i]
            found[of_rule[rules[i]] if i in rules else alike].append(i)
    return {kind: sorted(members, key=lambda i: table.parameters[i].numel()) for kind, members in found.items()}


def _asked(request: Request, table: ParameterTable) -> dict[str, str]:
    """Return what a storage is chosen by, as far as the user has named it, as text."""
    parameters = zip(table.names, table.wholes, strict=True)
    return {
        "plan": "none" if request.plan is None else request.plan.to_json(),
        "memory_budget": "none" if request.budget is None else request.budget.text,
        "seed": str(request.seed_in_force),
        "the parameters": ", ".join(f"{name} {p.dtype} {tuple(p.shape)}" for name, p in parameters),
        **{name: repr(value) for name, value in vars(request.planner).items() if name != "blocks"},
    }


def _reasons(storage: Storage) -> dict[tuple[int, str], str]:
    of = ((i, key, slot.reason) for i, stored in storage.parameters.items() for key, slot in stored.slots.items())
    return {(i, key): reason for i, key, reason in of if reason}


def _with_reasons(storage: Storage, reasons: Mapping[tuple[int, str], str]) -> Storage:
    """Return a storage whose slots have these reasons, which no plan holds."""
    parameters = {
        i: replace(s, slots={k: replace(slot, reason=reasons.get((i, k), "")) for k, slot in s.slots.items()})
        for i, s in storage.parameters.items()
    }
    return replace(storage, parameters=parameters)


def _kind_of(rule: UpdateRule) -> Any:
    return rule.gm.code, rule.inputs, rule.outputs


def _refined(slots: tuple[Slot, ...], facts: Mapping[str, _Fact]) -> tuple[Slot, ...]:
    def refined(slot: Slot, fact: _Fact) -> Slot:
        by_rule = "" if fact.is_robust else slot.why_exact
        sign = slot.nonnegative or fact.nonnegative
        return replace(slot, nonnegative=sign, why_fine=fact.why_fine, why_exact=fact.why_exact or by_rule)

    return tuple(refined(s, facts.get(s.key, _Fact())) for s in slots)


def _rounding(codecs: Mapping[str, Codec]) -> dict[str, Codec]:
    return {k: c for k, c in codecs.items() if c.mechanism == "rounding" and not isinstance(c, Full)}
