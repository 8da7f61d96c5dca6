"""A step bound to an optimizer's tensors and numbers: what it checks before every step, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.errors import OtherBranch
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.launch.held_objects import Dictionaries, Lists
from baoc_compile.kernels.launch.survey import Parameters, SomeParameters
from baoc_compile.passes.capture.leaves import constant_of, constants_of, is_constant, is_left_out, leaves_of
from baoc_compile.passes.capture.surroundings import Surroundings
from baoc_compile.passes.migrate.refresh_codebooks import CodebookRefresh
from baoc_compile.passes.migrate.unite_means import means_of
from baoc_compile.passes.migrate.watched_weights import WatchedWeights
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.recorder.recording import Value, origin_of, values_in
from baoc_compile.passes.rewrite.bind_launches import bind_launches, size_of
from baoc_compile.passes.rewrite.bind_numbers import BoundNumbers
from baoc_compile.passes.rewrite.places import put, put_shared
from baoc_compile.passes.rewrite.replay import tensor_of
from baoc_compile.passes.rewrite.run_calls import run_calls
from baoc_compile.passes.rules.reading import Reading
from baoc_compile.state.entries import anchor_state, state_tensors


class BoundStep:
    """One reading of a step, bound to the tensors that the optimizer has now.

    reading: the step.
    only: the parameters that it steps; of the others it knows nothing. None for all that the reading has.
    wholes: the optimizer's parameters.
    bound: its launches and replays.
    parameters: where parameters and gradients are, as far as this process holds them.
    rules: parameter index -> rule, for parameters whose update is elementwise.
    """

    def __init__(
        self,
        reading: Reading,
        table: ParameterTable,
        storage: Storage,
        function: Callable[..., Any],
        only: Sequence[int] | None = None,
    ):
        self.reading, self.storage, self._function = reading, storage, function
        anchor_state(table)
        self.wholes, local = table.wholes, table.local
        self.bound = bind_launches(table, storage, reading.classes)
        self.numbers = BoundNumbers(reading.numbers, reading.classes, self.bound, table)
        means = {launch: means_of(table, launch) for launch in self.bound.launches if launch.launch.graph.decays}
        #: Launches that average over parts of rows -> these averages.
        self.means = {launch: of for launch, of in means.items() if of}
        here = local.parameters
        dtypes = [p.dtype if p.grad is None else p.grad.dtype for p in here]
        self.parameters = Parameters(here, dtypes) if only is None else SomeParameters(here, dtypes, only)
        self.parameters.look()
        self.covered = np.array([i in reading.present for i in range(len(table.parameters))])
        self._all_covered = bool(self.covered.all())
        held = table if only is None else table.some(only)
        self.codebooks = CodebookRefresh(state_tensors(held))
        self.weights = WatchedWeights(held)
        self._pieces = {piece.parameters[0]: piece for piece in reading.recording.pieces}
        self.rules = reading.rules
        recording, late = reading.recording, set(map(id, reading.recording.late))
        self._early_calls = [call for call in recording.prelude if id(call) not in late]
        self._read_by_prelude = dict.fromkeys(v for v in values_in(recording.prelude) if v.call is None)
        changed = dict.fromkeys(origin_of(call.results[0]) for call in recording.prelude if call.is_inplace)
        self._changed_by_prelude = [v for v in changed if v.call is None] if recording.conditions else []
        self._values: dict[Any, Any] = {}
        self._layouts = [_layout(p) for p in local.parameters]
        self._is_stale = False
        self._hold(table, held)

    # what is checked before every step

    def _hold(self, table: ParameterTable, held: ParameterTable) -> None:
        """Remember what the optimizer holds, and the state of the parameters in `held`."""
        optimizer = table.optimizer
        self._groups = list(optimizer.param_groups)
        self._params = [group["params"] for group in self._groups]
        self._lists = Lists([optimizer.param_groups, *self._params])
        states = [optimizer.state[p] for p in held.parameters if p in optimizer.state]
        counting = [s for s in states if any(type(v) in (int, float) for v in s.values())]
        #: State with Python numbers, which change all the time: for each key, its tensors.
        self._counting = counting
        self._sizes = [len(s) for s in counting]
        keys = {key for s in counting for key, value in s.items() if isinstance(value, Tensor)}
        self._columns = [(key, [s.get(key) for s in counting]) for key in keys]
        known = {id(s) for s in counting}
        plain = [s for s in states if id(s) not in known]
        self._dictionaries, self._options = Dictionaries([optimizer.state, *plain]), Dictionaries(self._groups)
        self._places = {id(s): position for position, s in enumerate(plain, 1)}
        self._held_groups = [dict(group) for group in self._groups]
        self._attributes, self._size = _attributes(optimizer), len(vars(optimizer))
        writes_constants = any(not isinstance(w.value, (Expression, Value)) for w in self.reading.recording.writes)
        #: Whether flags and the like may change at every step, so that all is compared every time.
        self._is_careful = writes_constants or any(_holds_containers(s) for s in states) or _has_containers(optimizer)
        self._constants = constants_of(table) if self._is_careful else {}
        self._surroundings = Surroundings(self._function, optimizer)
        self._surrounded = self._surroundings.values()

    def is_bound_to(self, optimizer: Any) -> bool:
        """Return whether the optimizer still holds the parameters, state and options that the step is bound to."""
        if self._is_stale:
            return False
        is_same = (
            optimizer.param_groups is self._lists.lists[0] and optimizer.state is self._dictionaries.dictionaries[0]
        )
        if not is_same or self._lists.changed() or self._dictionaries.changed():
            return False
        changed = self._options.changed()
        for position in changed:
            group, held = self._groups[position], self._held_groups[position]
            if not _same_kind(held, group):
                return False
            self._held_groups[position] = dict(group)
            self._options.hold_again(position)
        if self._counting and [len(s) for s in self._counting] != self._sizes:
            return False
        if any(not all(map(is_, [s.get(key) for s in self._counting], held)) for key, held in self._columns):
            return False
        own = vars(optimizer)
        if len(own) != self._size or any(own.get(name) is not value for name, value in self._attributes.items()):
            attributes = _attributes(optimizer)
            if not _same_kind(self._attributes, attributes):
                return False
            self._attributes, self._size = attributes, len(own)
        if self._surroundings.values() != self._surrounded:
            return False
        if not self._is_careful:
            return True
        now = {source: constant_of(value) for source, value in leaves_of(optimizer, self.wholes)}
        return now == self._constants

    def look(self) -> bool:
        """Look at parameters and gradients. Return whether the step can run on them as they are."""
        parameters = self.parameters
        parameters.look()
        if parameters.moved and [_layout(p) for p in self.parameters.tensors] != self._layouts:
            self._is_stale = True  # for good: the launches have the old layouts
        if self._is_stale:
            return False
        return not parameters.any_odd and (self._all_covered or not (parameters.present & ~self.covered).any())

    @property
    def present(self) -> frozenset[int]:
        """The parameters that have a gradient."""
        return frozenset(np.flatnonzero(self.parameters.present).tolist())

    # a step

    def run(self, table: Callable[[], ParameterTable]) -> None:
        """Run the step, after its numbers were computed.

        table: returns the optimizer's parameters, for steps that are not all launches.

        Raises OtherBranch, before anything has changed.
        """
        self.weights.check()
        self.codebooks.tick()
        values: dict[Any, Any] = {}
        recording = self.reading.recording
        changed: list[tuple[Tensor, Tensor]] = []
        if recording.prelude or self.bound.tensors or recording.conditions:
            changed = self._run_prelude(table().local, values)
        self._values = values
        early, launches = self.bound.launches[: self.bound.early], self.bound.launches[self.bound.early :]
        if early:
            known = [_as_tensor(values.get(value, 0.0)) for value in self.bound.tensors]
            for launch in early:
                launch(self.parameters, known)
            values |= {v: made.to(v.dtype, copy=True) for v, made in self.bound.exported.items()}
            with torch.no_grad():
                run_calls(recording.late, values)
        if any(bool(values[condition.value]) is not condition.expected for condition in recording.conditions):
            raise OtherBranch
        for real, copy in changed:
            real.detach().copy_(copy)
        tensors = [_as_tensor(values[value]) for value in self.bound.tensors]
        for launch in launches:
            launch(self.parameters, tensors)
            if launch in self.means:
                self.means[launch].unite()
        made = dict(self.bound.created)
        if self.bound.replays:
            here, of = self.present, table().local
            for replay in self.bound.replays:
                if here.issuperset(replay.indices):
                    made |= replay(of, values)
        written = self._write_elements(table, values)
        if made:
            here, of = self.present, table()
            for (index, key), tensor in made.items():
                if index in here:
                    of.put(index, key, tensor)
        self._hold_replaced(table, {*made, *written})
        self.weights.note()

    def _hold_replaced(self, table: Callable[[], ParameterTable], replaced: Collection[tuple[int, Any]]) -> None:
        """Remember the state that this step has replaced: (parameter index, key). What launches take is bound anew instead."""
        replaced = [place for place in replaced if place[0] not in self.bound.rows]
        if not replaced:
            return
        for index in {index for index, _ in replaced}:
            position = self._places.get(id(table().state(index)))
            if position is not None:
                self._dictionaries.hold_again(position)
        keys = {key for _, key in replaced}
        self._columns = [
            (key, [s.get(key) for s in self._counting] if key in keys else held) for key, held in self._columns
        ]

    def _write_elements(self, table: Callable[[], ParameterTable], values: dict[Any, Any]) -> list[tuple[int, Any]]:
        """Write numbers of elements to where the optimizer keeps them; not those of updates that take no part.

        Return (parameter index, key) of what was written to state.
        """
        written = []
        for write in self.reading.numbers.element_writes:
            if write.value not in values:
                continue
            if write.source.parameter < 0:
                put_shared(table().optimizer, write, values[write.value])
            else:
                put(table().state(write.source.parameter), write, values[write.value])
                written.append((write.source.parameter, write.source.path[0]))
        return written

    @torch.no_grad()
    def _run_prelude(self, table: ParameterTable, values: dict[Any, Any]) -> list[tuple[Tensor, Tensor]]:
        """Run the early part of the prelude.

        If the step may yet turn out to be another one, it changes copies. Return (tensor, copy) for these.
        """
        values |= self.numbers.of_prelude
        for value in (*self._read_by_prelude, *self.bound.tensors):
            if value.call is None and value not in values:
                real = tensor_of(value, table)
                values[value] = real.decode() if hasattr(real, "decode") and hasattr(real, "parts") else real
        changed = []
        for value in self._changed_by_prelude:
            real, values[value] = values[value], values[value].clone()
            changed.append((real, values[value]))
        run_calls(self._early_calls, values)
        return changed

    def numbers_of(self, index: int) -> dict[str, float]:
        """Return the scalars of a parameter's rule in this step, by input name."""
        rule, piece = self.rules[index], self._pieces[index]
        numbers = self.numbers.of(index)
        found = {}
        for i in rule.inputs_of("scalar"):
            if i.origin == "constants":
                found[i.name] = piece.constants[i.position]
            elif i.origin in ("numel", "columns"):
                found[i.name] = size_of(i, self.wholes[index])
            elif i.position in numbers:
                found[i.name] = float(numbers[i.position])
            else:
                found[i.name] = float(self._values[piece.scalars[i.position]])
        return found

    @contextmanager
    def observed(self, observe: Callable[..., None]) -> Iterator[None]:
        """Call `observe(launch, present)` before every launch within this context."""
        for launch in self.bound.launches:
            launch.observe = observe
        try:
            yield
        finally:
            for launch in self.bound.launches:
                launch.observe = None

    def release(self) -> None:
        """Drop all tensors; the step can't run afterwards."""
        for launch in self.bound.launches:
            launch.release()
        self._is_stale = True
        self.bound.created.clear()
        self._dictionaries, self._columns, self._counting, self._held_groups = Dictionaries([]), [], [], []
        self.means = {}
        self._values, self.codebooks, self.weights.states = {}, CodebookRefresh([]), []


def _as_tensor(value: Any) -> Tensor:
    """Return what the prelude made, a tensor or a Python number, as a tensor."""
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _layout(parameter: Tensor) -> Any:
    return parameter.shape, parameter.stride(), parameter.dtype, parameter.device


def _attributes(optimizer: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(optimizer).items() if not is_left_out(name)}


def _holds_containers(entries: dict[Any, Any]) -> bool:
    """Return whether state holds more than tensors and numbers."""
    return any(not isinstance(v, Tensor) and type(v) not in (int, float) for v in entries.values())


def _has_containers(optimizer: Any) -> bool:
    """Return whether attributes or options hold what can change without being replaced."""
    held = [v for k, v in _attributes(optimizer).items() if k != "defaults"]
    held += [v for group in optimizer.param_groups for k, v in group.items() if k != "params"]
    return any(
        not is_constant(v) and type(v) not in (int, float) and not isinstance(v, Tensor) and not _is_flat(v)
        for v in held
    )


def _is_flat(value: Any) -> bool:
    """Return whether a value is a tuple of numbers and constants."""
    return type(value) is tuple and all(is_constant(v) or type(v) in (int, float) for v in value)


def _same_kind(held: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether two dictionaries differ in nothing but numbers."""
    if held.keys() != now.keys():
        return False
    return all(now[key] is value or _kind(value) == _kind(now[key]) for key, value in held.items())


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value)
    return tuple(map(constant_of, value)) if _is_flat(value) else constant_of(value)
