"""Choice: how the slots of new parameters are stored, before anything is measured.

A named plan decides it. Under a budget, the plan is the uniform configuration of least expected harm that fits. If no
uniform configuration fits, it is a plan by block (`start_by_block.py`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from baoc_compile.core.budget import MemoryBudget
from baoc_compile.core.codec import Slot
from baoc_compile.core.errors import BudgetError, warn_once
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage, StoredParameter, StoredSlot
from baoc_compile.kernels.codecs.catalogue import AUTOMATIC, full_precision
from baoc_compile.passes.plan.start_by_block import start_by_block
from baoc_compile.state.entries import as_found, bytes_of
from baoc_compile.state.plan import Plan
from baoc_compile.state.request import Request
from baoc_compile.state.state_tensor import StateTensor

log = logging.getLogger("baoc")

SlotsOf = Mapping[int, tuple[Slot, ...]]  # by parameter index


def choose_storage(
    request: Request, storage: Storage, table: ParameterTable, slots_of: SlotsOf, bytes_to_come: int = 0
) -> Storage:
    """Return `storage` with a codec for every slot in `slots_of`. Decisions already made stay, where they still suit the slot.

    slots_of: the slots of every parameter that is stepped, by index.
    bytes_to_come: bytes of counters that do not exist yet; they count against the budget.

    Raises BudgetError that names the smallest budget that can be met, and PlanError.
    """
    if not storage.parameters:
        storage = replace(storage, seed=request.seed_in_force)
    if not request.is_explicit:
        storage = _with_loaded(storage, table, slots_of)
    new = {
        i: tuple(
            as_found(s, table.parameters[i], table.state(i).get(s.key))
            for s in slots
            if not suits(storage, table, i, s)
        )
        for i, slots in slots_of.items()
    }
    new = {i: slots for i, slots in new.items() if slots}
    if not new:
        return storage
    plan = request.plan or _Fit(request, storage, table, new, bytes_to_come).plan()
    chosen = replace(
        storage,
        default=plan.default,
        memory_budget=plan.memory_budget,
        certificate="" if storage.parameters else plan.certificate,
    )
    return chosen.with_parameters({i: _extended(storage, plan, table, i, slots) for i, slots in new.items()})


def suits(storage: Storage, table: ParameterTable, index: int, slot: Slot) -> bool:
    """Return whether it is decided how the slot is stored, and the codec may still store it: a rule may prove less later."""
    codec = storage.of(index).codecs.get(slot.key)
    return codec is not None and not codec.why_not(slot, table.parameters[index].shape)


def _extended(
    storage: Storage, plan: Plan, table: ParameterTable, index: int, slots: tuple[Slot, ...]
) -> StoredParameter:
    """Return how parameter `index` is stored once `plan` has decided on `slots`."""
    known = storage.parameters.get(index)
    if known is None:
        known = StoredParameter({}, plan.block_of(index))
    return replace(known, slots={**known.slots, **_stored(plan, table, index, slots)})


def _stored(plan: Plan, table: ParameterTable, index: int, slots: tuple[Slot, ...]) -> dict[str, StoredSlot]:
    """Return how `plan` stores these slots."""
    return {s.key: StoredSlot(*plan.codec(table, index, s)) for s in slots}


def _with_loaded(storage: Storage, table: ParameterTable, slots_of: SlotsOf) -> Storage:
    """Return `storage` with the codecs of state that is already compressed (a checkpoint).

    Only called where the user asked for nothing else.
    """
    changed = {}
    for index, slots in slots_of.items():
        state, known = table.state(index), storage.of(index)
        loaded = {
            s.key: StoredSlot(state[s.key].codec, "as loaded")
            for s in slots
            if s.key not in known.slots and isinstance(state.get(s.key), StateTensor)
        }
        if loaded:
            changed[index] = replace(known, slots={**known.slots, **loaded})
    return storage.with_parameters(changed) if changed else storage


#: What is taken where a percentage can't be reached: nothing that changes what the step computes, and 8 bits at least.
_GENTLE = {"fp32", "bf16", "8bit"}


def _size(rank: tuple[bool, float, int, int]) -> int:
    return rank[2]


@dataclass(frozen=True)
class _Fit:
    """The search for a plan within a budget.

    request: what the user asked for.
    storage: what was decided before.
    table: the optimizer's parameters.
    new: the slots to decide on, by parameter index.
    bytes_to_come: bytes of counters that do not exist yet.
    """

    request: Request
    storage: Storage
    table: ParameterTable
    new: SlotsOf
    bytes_to_come: int

    def plan(self) -> Plan:
        """Return the uniform plan of least expected harm that fits, then of fewest bytes; else a plan by block.

        Parameters that join later follow the plan of the others where it fits.
        """
        budget = self.request.budget
        assert budget is not None, "only a named plan has no budget"
        limit, fixed = self._limit(budget), self._settled_bytes() + self._counter_bytes()
        keys = sorted({slot.key for slots in self.new.values() for slot in slots if slot.weight_dtype is None})
        plans = [
            Plan({**dict(zip(keys, choice, strict=True)), "*": choice[-1] if choice else "fp32"})
            for choice in itertools.product(AUTOMATIC, repeat=len(keys))
        ]
        if self.storage.default is not None:
            plans.insert(0, Plan(self.storage.default))
        ranked = {}
        for order, plan in enumerate(plans):
            stored = {i: _stored(plan, self.table, i, slots) for i, slots in self.new.items()}
            harm = sum(max(s[k].codec.expected_harm for s in stored.values() if k in s) for k in keys)
            follows = self.storage.default is not None and order == 0
            ranked[not follows, harm, fixed + self._bytes(stored), order] = plan
        fitting = [rank for rank in ranked if rank[2] <= limit]
        if not fitting and not self.request.is_explicit:  # the default budget: come as close as possible
            smallest = min(rank[2] for rank in ranked)
            log.info("the default budget of %s is out of reach; the smallest plan takes %d", budget.text, smallest)
            fitting = [rank for rank in ranked if rank[2] == smallest]
        if fitting:
            return replace(ranked[min(fitting)], memory_budget=budget.text)
        base = replace(plans[0], memory_budget=budget.text)
        fixed += self._weight_bytes(base)
        try:
            return start_by_block(base, self.table, self.new, fixed, limit, self.request.planner.allow)
        except BudgetError as error:
            if budget.unit != "%":
                raise
            rank = min((rank for rank, plan in ranked.items() if _GENTLE.issuperset(plan.default.values())), key=_size)
            share = (rank[2] - self._counter_bytes()) / self._full_and_numel()[0]
            warn_once(
                f"memory_budget: {budget.text} is out of reach for this optimizer ({error}). Its state is stored in 8 bits "
                f"where it may be, which takes {rank[2]} bytes or {share:.0%} of full precision"
            )
            return replace(ranked[rank], memory_budget=budget.text)

    def _limit(self, budget: MemoryBudget) -> int:
        """Return the budget in bytes.

        A percentage refers to all slots, old and new, in full precision.
        """
        return budget.in_bytes(*self._full_and_numel(), self._counter_bytes())

    def _full_and_numel(self) -> tuple[int, int]:
        """Return the bytes of all slots in full precision, and the elements of their parameters."""
        full, numel = 0, 0
        for index in {*self.new, *self.storage.parameters}:
            parameter = self.table.parameters[index]
            planned = [s for s in self.new.get(index, ()) if s.weight_dtype is None]
            count = len(planned) + len(self.storage.of(index).slots)
            full += full_precision(parameter.dtype).storage_bytes(parameter.shape) * count
            numel += parameter.numel()
        return full, numel

    def _settled_bytes(self) -> int:
        """Return the bytes of the slots that were decided before."""
        return self._bytes({i: stored.slots for i, stored in self.storage.parameters.items()})

    def _bytes(self, slots_of: Mapping[int, Mapping[str, StoredSlot]]) -> int:
        """Return the bytes of these slots."""
        return sum(
            slot.codec.storage_bytes(self.table.parameters[i].shape)
            for i, slots in slots_of.items()
            for slot in slots.values()
        )

    def _counter_bytes(self) -> int:
        """Return the bytes of state that is not in slots, existing or to come."""
        total = self.bytes_to_come
        for index in range(len(self.table.parameters)):
            slots = {s.key for s in self.new.get(index, ())} | self.storage.of(index).slots.keys()
            total += sum(bytes_of(value) for key, value in self.table.state(index).items() if key not in slots)
        return total

    def _weight_bytes(self, plan: Plan) -> int:
        """Return the bytes of weight codecs, which no budget chooses."""
        weights = {i: tuple(s for s in slots if s.weight_dtype is not None) for i, slots in self.new.items()}
        return self._bytes({i: _stored(plan, self.table, i, slots) for i, slots in weights.items()})
