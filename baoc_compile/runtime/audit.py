"""Audits: does baoc's own step still do what the user's step does?

A recording audit records the step again from the optimizer's present state: it must be what was recorded before, as long as
its guards hold. It finds what no guard can see, such as a global that the step reads. The number audit runs the user's own
step and ours on copies of a few parameters, once, before ours touches the real ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import OtherBranch, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.passes.capture.group_numbers import group_numbers
from baoc_compile.passes.capture.record_step import record_step
from baoc_compile.passes.capture.surroundings import undisturbed
from baoc_compile.passes.rules.read_step import difference
from baoc_compile.passes.rules.reading import Reading
from baoc_compile.passes.trials import copies
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.state.state_tensor import StateTensor

log = logging.getLogger("baoc")

#: Recordings are audited after 2, 4, 8, ... steps up to this interval, and then at this interval.
LONGEST_INTERVAL = 500
#: How far the two may differ, relative to the largest value, before it is no rounding: a thousand units in the last place of
#: float32 are lost where a step subtracts nearly equal numbers. Types with fewer digits are allowed 8 units in theirs.
CLOSE = 1e-3
#: Larger parameters with a rule are not audited: their state never is in full precision, not even in a copy.
MOST_ELEMENTS_OF_A_RULE = 1 << 16
#: The share of the time that audits may take, from the fourth on.
MOST_TIME = 0.01


@dataclass
class Schedule:
    """When the next recording audit is due.

    due: the number of steps after which it is.
    seconds: what audits took so far.
    """

    due: int = 2
    seconds: float = 0.0
    _began: float = field(default_factory=time.perf_counter)
    _last: float = 0.0

    def is_due(self, count: int) -> bool:
        """Return whether an audit is due after `count` steps, and plan the next one."""
        if count < self.due:
            return False
        self.due = count + min(max(count, 2), LONGEST_INTERVAL)
        elapsed = time.perf_counter() - self._began
        return count <= 8 or self.seconds + self._last <= MOST_TIME * elapsed

    def took(self, seconds: float) -> None:
        """Note what an audit took."""
        self.seconds, self._last = self.seconds + seconds, seconds


def audit_recording(reading: Reading, table: ParameterTable, function: Callable[..., Any]) -> str:
    """Record the step from the optimizer's present state; return how it differs from `reading`, or an empty text."""
    try:
        (recording,) = record_step(table, function, reading.present, has_closure=reading.has_closure)
    except UnsupportedStep as reason:
        return str(reason)
    return difference(reading, recording, group_numbers(recording), table)


def audit_numbers(
    reading: Reading, table: ParameterTable, storage: Storage, function: Callable[..., Any], present: frozenset[int]
) -> str:
    """Run the user's step and ours on copies of one piece of each kind; return what differs, or an empty text."""
    chosen = _chosen(reading, table.local, present)
    if not chosen or reading.recording.reads_gradients:
        return ""
    try:
        theirs, before = _stepped(reading, table, function, chosen)
    except Exception as error:  # the step needs more than a few parameters
        log.debug("the numbers of this step can't be audited: %r", error)
        return ""
    try:
        ours = _stepped_by_us(reading, table, storage, function, chosen)
    except OtherBranch:
        return ""
    except Exception as error:
        return f"its recording can't be run ({type(error).__name__}: {error})"
    for i in chosen:
        what = _difference(i, before[i], theirs, ours, storage)
        if what:
            return f"{what} of {table.names[i]} is not what the step itself gives"
    return ""


def _stepped(
    reading: Reading, table: ParameterTable, function: Callable[..., Any], chosen: list[int]
) -> tuple[ParameterTable, dict[int, Tensor]]:
    """Run the user's step on copies; return them, and the parameters as they were before."""
    theirs = copies.copied(table, chosen, decoded=True)
    before = {i: theirs.parameters[i].detach().clone() for i in chosen}
    with torch.no_grad(), undisturbed(function, table.optimizer):
        function(theirs.optimizer, *([lambda: None] if reading.has_closure else []))
    return theirs, before


def _stepped_by_us(
    reading: Reading, table: ParameterTable, storage: Storage, function: Callable[..., Any], chosen: list[int]
) -> ParameterTable:
    """Run our step on copies, and return them."""
    ours = copies.copied(table, chosen, decoded=False)
    bound = BoundStep(reading.restricted(frozenset(chosen)), ours, storage, function)
    bound.look()
    bound.numbers.compute(ours.optimizer, bound.parameters)
    bound.run(lambda: ours)
    bound.numbers.commit(ours.optimizer)
    return ours


def _chosen(reading: Reading, table: ParameterTable, present: frozenset[int]) -> list[int]:
    """Return the parameters of the smallest piece of each kind that has elements and gradients, if it is not large.

    A prelude may need all parameters: then these are taken, unless they are many or large.
    """

    def size(parameters: Iterable[int]) -> int:
        return sum(table.parameters[i].numel() for i in parameters)

    if reading.recording.prelude:
        return sorted(present) if 0 < size(present) <= copies.MOST_ELEMENTS and present == reading.present else []
    found: list[int] = []
    for rule_class in reading.classes:
        able = [p.parameters for p in rule_class.members if present.issuperset(p.parameters)]
        most = copies.MOST_ELEMENTS if rule_class.rule is None else MOST_ELEMENTS_OF_A_RULE
        able = [of for of in able if 0 < size(of) <= most and all(table.parameters[i].numel() for i in of)]
        found += min(able, key=size, default=())
    return found


def _difference(i: int, before: Tensor, theirs: ParameterTable, ours: ParameterTable, storage: Storage) -> str:
    stored = storage.of(i)
    exact = all(c.mechanism in ("rounding", "weight") for c in stored.codecs.values())
    expected, found = (t.parameters[i].detach().float() for t in (theirs, ours))
    if exact:
        eps = _coarsest(theirs, i)
        moved = (expected - before.float()).abs().max()
        allowed = max(CLOSE, 8 * eps) * moved + 8 * eps * torch.maximum(
            before.float().abs().max(), expected.abs().max()
        )
        if bool(torch.isfinite(expected).all()) and not bool((expected - found).abs().max() <= allowed):
            return "the update"
    for key, codec in stored.codecs.items() if exact else ():
        value, entry = theirs.state(i).get(key), ours.state(i).get(key)
        if codec.mechanism != "rounding" or not isinstance(value, Tensor) or not isinstance(entry, Tensor):
            continue
        if not bool(torch.isfinite(value).all()):
            continue
        plain = entry.decode() if isinstance(entry, StateTensor) else entry
        close = max(CLOSE, 8 * _coarsest(theirs, i))
        error, allowed = (plain.float() - value.float()).abs().max(), close * value.float().abs().max()
        if isinstance(entry, StateTensor):
            allowed = allowed + 2 * _error_of(entry, value)
        if not bool(error <= allowed):
            return f"state {key!r}"
    return ""


def _coarsest(table: ParameterTable, index: int) -> float:
    """Return the relative spacing of the coarsest type that a parameter or its state has: the step rounds to it, too."""
    values = [table.parameters[index], *table.state(index).values()]
    return max(torch.finfo(v.dtype).eps for v in values if isinstance(v, Tensor) and v.is_floating_point())


def _error_of(entry: StateTensor, value: Tensor) -> Tensor:
    """Return the largest error with which the entry's codec stores these values, in a few draws of its rounding."""
    worst = torch.zeros(())
    drawn = entry
    for _ in range(4):
        drawn = drawn.like(torch.clone)
        drawn.store(value)
        worst = torch.maximum(worst, (drawn.decode().float() - value.float()).abs().max())
    return worst
