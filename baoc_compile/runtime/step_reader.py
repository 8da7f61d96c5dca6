"""Find the reading that holds for an optimizer's next step, or make one, and bind it to the optimizer's tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch

from baoc_compile.core.errors import BudgetError, PlanError, StateError, StateMissing, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule, bounds_of
from baoc_compile.core.storage import Storage
from baoc_compile.passes.capture.group_numbers import same_numbers
from baoc_compile.passes.capture.leaves import constants_of
from baoc_compile.passes.capture.refuse_overlap import refuse_overlap
from baoc_compile.passes.capture.surroundings import Surroundings
from baoc_compile.passes.migrate.find_slots import find_slots, is_settled, is_sparse
from baoc_compile.passes.migrate.migrate_state import migrate_state, migrate_weights
from baoc_compile.passes.numbers.number_function import GuardFailed
from baoc_compile.passes.plan.choose_storage import suits
from baoc_compile.passes.rewrite.bound_group import OutOfBounds
from baoc_compile.passes.rules.extract_rules import joined
from baoc_compile.passes.rules.read_step import read_step, slots_of
from baoc_compile.passes.rules.reading import Reading, StepReading
from baoc_compile.passes.rules.refuse_divided import refuse_divided
from baoc_compile.passes.trials.bench import TrialFailed
from baoc_compile.runtime.audit import audit_numbers
from baoc_compile.runtime.begin_state import Unborn, begin_state, bytes_to_come
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.runtime.checkpoint import keep_in_checkpoints
from baoc_compile.runtime.compile_lock import compile_lock, paused_gc
from baoc_compile.runtime.configurator import start_configurator
from baoc_compile.runtime.decide_storage import StorageChoice
from baoc_compile.runtime.device_memory import resolved_budget
from baoc_compile.runtime.distributed.local_gradients import LocalGradients
from baoc_compile.runtime.distributed.ranks import Ranks
from baoc_compile.runtime.session import Session, StepsInParts

log = logging.getLogger("baoc")

#: Readings of one optimizer that are kept. A step that goes through more of them in turn is read again.
MOST_READINGS = 16


class FirstAsWritten(Exception):
    """The next step must run as its user wrote it."""


class StepReader:
    """The readings of one optimizer's step.

    session: what is known about the optimizer.
    function: the step as the user wrote it, without hooks.
    readings: the readings, those that were made or used last first.
    bound: the reading that ran last, bound to the optimizer's tensors; None before the first step.
    unborn: state that was made ahead of its first step.
    gradients: those of DTensors, while a step runs.
    is_foreseen: whether the storage was decided without a reading, for one step.
    parts: what steps parameters in the backward pass; None without gradient release.
    """

    def __init__(self, session: Session, function: Callable[..., Any]):
        self.session, self.function = session, function
        self.readings: list[Reading] = []
        self.bound: BoundStep | None = None
        self.unborn = Unborn()
        self.gradients = LocalGradients()
        self.is_foreseen = False
        self.parts: StepsInParts | None = None
        self.choice = StorageChoice(session, function)
        self._audited: set[Hashable] = set()
        self._kinds: dict[int, tuple[torch.Size, torch.dtype]] = {}
        self._others: list[BoundStep] = []  # readings of the same tensors, bound
        self._by_mask = False

    def read(self, table: ParameterTable, present: frozenset[int], has_closure: bool = False) -> StepReading:
        """Read the optimizer's next step, and remember it. Raises UnsupportedStep."""
        with compile_lock(), paused_gc():
            found = read_step(table, self.function, present, has_closure=has_closure)
        for reading in (found.first, found.warm):
            if reading is not None:
                refuse_divided(reading, table)
                self.choice.apply(reading)
                self.readings.insert(0, reading)
        del self.readings[MOST_READINGS:]
        return found

    def ready(self, optimizer: Any, has_closure: bool) -> BoundStep:
        """Return a bound step whose numbers for this step are computed."""
        if self.unborn and self.unborn.assumptions_changed(self.session.table()):
            self.release()
            self.unborn.take_back(self.session.table())
            self.readings = []
        bound, is_lent = self.bound, self.gradients.lend()
        if (
            bound is not None
            and is_lent
            and bound.is_bound_to(optimizer)
            and bound.look()
            and self.fits(bound, has_closure)
        ):
            try:
                if self.unborn:
                    self.unborn.begin_anew(self.session, bound.present)
                bound.numbers.compute(optimizer, bound.parameters)
                return bound
            except OutOfBounds as out:
                self._widen(bound.reading, out)
            except GuardFailed:
                pass
        with compile_lock():
            return self._find(optimizer, has_closure)

    def fits(self, bound: BoundStep, has_closure: bool) -> bool:
        """Return whether a bound step is the one for the gradients that exist."""
        reading = bound.reading
        if reading.has_closure != has_closure:
            return False
        is_exact = self._by_mask or reading.recording.reads_gradients
        if not is_exact and bound.parameters.all_present:
            return True
        present = bound.present
        if is_exact:
            return present == reading.present
        return present == reading.present or reading.is_independent or self._check_independence(reading, present)

    def _check_independence(self, reading: Reading, present: frozenset[int]) -> bool:
        """Record the step with some gradients only; return whether the parameters that have one are stepped as before."""
        alone = self.read(self.session.table(), present, reading.has_closure)
        self.readings = [r for r in self.readings if r is not alone.warm and r is not alone.first]
        reading.is_independent = _is_part(alone.first if reading.creates and alone.first else alone.warm, reading)
        self._by_mask = not reading.is_independent
        return reading.is_independent

    def _widen(self, reading: Reading, out: OutOfBounds) -> None:
        for rule_class in reading.classes:
            if any(piece.signature == out.signature for piece in rule_class.members):
                bounds = list(rule_class.bounds)
                bounds[out.position] = joined([bounds[out.position]], [bounds_of(float(out.value))])[0]
                with compile_lock():
                    reading.widen(self.session.table(), {out.signature: bounds})
                    self.choice.apply(reading)
                break
        self._drop(reading)

    def _drop(self, reading: Reading) -> None:
        """Forget how a reading is bound."""
        self._others = [b for b in self._others if b.reading is not reading]
        if self.bound is not None and self.bound.reading is reading:
            self.bound = None

    def _find(self, optimizer: Any, has_closure: bool) -> BoundStep:
        """Find a reading that holds now, or make one, and bind it."""
        table = self.session.table()
        self._check_kinds(table)
        refuse_overlap(table)
        if not self.gradients.hold(table) or (self.bound is not None and not self.bound.is_bound_to(optimizer)):
            self.release()
        present = frozenset(i for i, p in enumerate(table.parameters) if p.grad is not None)
        constants, surroundings = constants_of(table), Surroundings(self.function, optimizer).values()
        for reading in list(self.readings):
            is_known = reading.recording.was_made_for(constants) and reading.recording.surroundings == surroundings
            if reading.has_closure != has_closure or not is_known:
                continue
            bound = self._tried(reading, optimizer, table)
            if bound is not None:
                return bound
        for asked in (present | self.trained(table), present):
            found = self.read(table, asked, has_closure)
            self.prepare_state(found, table)
            if found.first_as_written:
                raise FirstAsWritten
            for reading in filter(None, (found.first, found.warm)):
                bound = self._tried(reading, optimizer, table)
                if bound is not None:
                    return bound
            self._by_mask = True  # what is done depends on which gradients exist
        raise UnsupportedStep("its numbers differ from those for which it was just recorded")

    def _check_kinds(self, table: ParameterTable) -> None:
        """Raise StateError for a parameter that has another shape or type than its state was made for."""
        for index, (name, p) in enumerate(zip(table.names, table.parameters, strict=True)):
            known = self._kinds.get(id(p))
            if known is not None and known != (p.shape, p.dtype) and table.state(index):
                raise StateError(
                    f"{name} is now {str(p.dtype).removeprefix('torch.')} of shape {tuple(p.shape)}, but its state was made "
                    f"for {str(known[1]).removeprefix('torch.')} of shape {tuple(known[0])}: make a new optimizer for it"
                )

    def trained(self, table: ParameterTable) -> frozenset[int]:
        """Return the parameters that may have a gradient in some step."""
        if self._by_mask:
            return frozenset()
        return frozenset(i for i, p in enumerate(table.parameters) if p.requires_grad)

    def _tried(self, reading: Reading, optimizer: Any, table: ParameterTable) -> BoundStep | None:
        """Bind a reading and compute its numbers; return None if it does not hold now."""
        bound = next((b for b in self._others if b.reading is reading and b.is_bound_to(optimizer)), None)
        try:
            if bound is None:
                bound = self.bind(reading, table)
            if not (bound.look() and self.fits(bound, reading.has_closure)):
                return None
            if self.unborn:
                self.unborn.begin_anew(self.session, bound.present)
            bound = self._computed(bound, optimizer, table)
        except (GuardFailed, StateMissing) as reason:
            log.debug("a known recording does not hold now: %r", reason)
            return None
        self._audit_numbers(bound, table)
        self.bound = bound
        return bound

    def _computed(self, bound: BoundStep, optimizer: Any, table: ParameterTable) -> BoundStep:
        """Compute the step's numbers, and bind the reading again for every interval that has to widen. Raises GuardFailed."""
        reading = bound.reading
        # each number leaves its interval at most once below and once above
        for _ in range(2 * sum(len(c.bounds) for c in reading.classes) + 1):
            try:
                bound.numbers.compute(optimizer, bound.parameters)
                return bound
            except OutOfBounds as out:
                self._widen(reading, out)
                bound = self.bind(reading, table)
                bound.look()
        raise UnsupportedStep("its numbers leave every interval")

    def _audit_numbers(self, bound: BoundStep, table: ParameterTable) -> None:
        """Audit the numbers of rules that were not audited before. Raises UnsupportedStep if they are wrong."""
        keys: set[Hashable] = {rule.key for rule in bound.rules.values()}
        keys |= {p.signature for c in bound.reading.classes if c.rule is None for p in c.members}
        if keys <= self._audited:
            return
        found = audit_numbers(bound.reading, table, self.session.storage, self.function, bound.present)
        found = Ranks.of(table).first_said(found)  # what one process finds concerns all
        if found:
            raise UnsupportedStep(found)
        self._audited |= keys

    def bind(self, reading: Reading, table: ParameterTable) -> BoundStep:
        """Bind a reading to the optimizer's tensors, after converting its state."""
        refuse_overlap(table)
        storage = self._storage_for(reading, table)
        with paused_gc():
            migrate_state(storage, table)
            for stale in (b for b in self._others if b.reading is reading):  # they hold tensors that can be used again
                stale.release()
            bound = BoundStep(reading, table, storage, self.function)
        self._kinds = {id(p): (p.shape, p.dtype) for p in table.parameters}
        self._others = [b for b in self._others if b.reading is not reading][-MOST_READINGS:]
        self._others.append(bound)
        return bound

    def _storage_for(self, reading: Reading, table: ParameterTable) -> Storage:
        """Return how state is stored, after deciding on slots for which that is open or does not suit the rule any more."""
        session, storage = self.session, self.session.storage
        found = StepReading(None, reading)
        if not all(suits(storage, table, i, s) for i, slots in slots_of(found, table).items() for s in slots):
            storage = self._choose(found, table)
            session.store(storage)
        return storage

    def _choose(self, found: StepReading, table: ParameterTable) -> Storage:
        """Choose how the slots of a reading are stored. Raises BudgetError and PlanError."""
        slots = slots_of(found, table)
        to_come = bytes_to_come(found.warm, table, slots)
        storage = self.choice.choose(slots, table, found.warm, to_come, found.warm.has_closure)
        for reading in filter(None, (found.first, found.warm)):
            self.choice.apply(reading)
        return storage

    def prepare_state(self, found: StepReading, table: ParameterTable) -> None:
        """Decide how new state is stored, convert what exists, and make what the next step would make.

        Raises BudgetError and PlanError; nothing has changed then.
        """
        session = self.session
        self._resolve_budget(table)
        storage = self._choose(found, table)
        session.store(storage)
        start_configurator(session)
        migrate_state(storage, table)
        self.unborn.add(begin_state(found.warm, table, storage), found)
        migrate_weights(storage, table)
        if found.warm.beginnings:
            found.warm.recording.constants = constants_of(table)

    def _resolve_budget(self, table: ParameterTable) -> None:
        """Find out the budget in bytes, if it depends on what devices have left, or on their number."""
        session, asked = self.session, self.session.request.memory_budget
        if asked is not None and session.request.budget is not None:
            session.request = replace(session.request, memory_budget=resolved_budget(asked, table))

    def foresee_state(self, has_closure: bool) -> None:
        """Decide how the state is stored that the next step makes although it can't be read, if that can be foreseen.

        It is decided anew once the state is there.
        """
        table = self.session.table()
        indices = [i for i in self.trained(table) if not is_sparse(table.parameters[i])]
        if self.session.storage.parameters or any(table.state(i) for i in indices):
            return
        try:
            self._resolve_budget(table)
            choice = StorageChoice(self.session, self.function)
            self.session.store(choice.foresee(indices, table, has_closure))
            self.choice.remember(choice)
            self.is_foreseen = True
        except (TrialFailed, BudgetError, PlanError) as reason:
            log.info("what the first step makes is compressed after it: %s", reason)

    def compress_found(self, has_closure: bool) -> None:
        """Compress the state that a step made whose rules are not known. Raises BudgetError and PlanError."""
        session, storage, table = self.session, self.session.storage, self.session.table()
        if is_settled(table, storage):
            return
        slots = find_slots(table)
        if not all(suits(storage, table, i, slot) for i, of in slots.items() for slot in of):
            self._resolve_budget(table)
            storage = self.choice.choose(slots, table, None, has_closure=has_closure)
            session.store(storage)
            keep_in_checkpoints(session)
        here = {i: {s.key: storage.of(i).slots[s.key] for s in of} for i, of in slots.items()}
        found = {i: replace(storage.of(i), slots=kept) for i, kept in here.items()}
        with paused_gc():
            migrate_state(replace(storage, parameters=found), table)

    def release(self) -> None:
        """Drop everything that is bound to tensors; the next step binds again."""
        for bound in self._others:
            bound.release()
        self._others, self.bound = [], None
        if self.parts is not None:
            self.parts.release()

    @property
    def rules(self) -> Mapping[int, UpdateRule]:
        """Parameter index -> update rule, as far as the step was read."""
        return self.readings[0].rules if self.readings else {}


def _is_part(some: Reading, of: Reading) -> bool:
    """Return whether the pieces of one reading are pieces of another, with the same numbers."""
    pieces = {p.parameters: (p.signature, p.constants) for p in of.recording.pieces}
    if any(pieces.get(p.parameters) != (p.signature, p.constants) for p in some.recording.pieces):
        return False
    return same_numbers(some.numbers, of.restricted(some.present).numbers)
