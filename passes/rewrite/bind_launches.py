"""Rewrite: bind every piece of a step to the tensors of its parameters: one launch for each program, and replays."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Rows, Sharing
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.program_graph import Operand
from baoc_compile.core.rule import RuleInput
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.launch.fused_update import BoundLaunch, Launch
from baoc_compile.passes.numbers.expressions import Expression
from baoc_compile.passes.programs.make_programs import Need, need_of, programs_of
from baoc_compile.passes.recorder.recording import Piece, Value
from baoc_compile.passes.rewrite.replay import Replay
from baoc_compile.passes.rules.extract_rules import RuleClass
from baoc_compile.state.entries import fresh, storage_tensors


@dataclass
class Bound:
    """A step bound to tensors.

    launches: the launches, in order.
    early: how many of them come before the late part of the prelude, for which they export numbers.
    replays: the pieces that are not elementwise.
    created: (parameter index, state key) -> the entry that a launch fills, to be put into the state after it.
    reduced: (parameter index, name) -> the mean or maximum that one launch stores for the next, a 0-dim float64 tensor.
    exported: what pieces export -> the 0-dim float64 tensor in which a launch stores it.
    rows: parameter index -> the launches over it and its row in each, with the scalars that they take.
    tensors: the 0-dim values of the prelude to which `Launch.varying` refers.
    """

    launches: list[BoundLaunch] = field(default_factory=list)
    early: int = 0
    replays: list[Replay] = field(default_factory=list)
    created: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    reduced: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    exported: dict[Value, Tensor] = field(default_factory=dict)
    rows: dict[int, list[tuple[BoundLaunch, int, dict[str, int]]]] = field(default_factory=lambda: defaultdict(list))
    tensors: list[Value] = field(default_factory=list)


def bind_launches(table: ParameterTable, storage: Storage, classes: list[RuleClass]) -> Bound:
    """Bind a step to the tensors that are in `optimizer.state` now. Migrate the state first.

    table: the optimizer's parameters.
    storage: how every slot is stored.
    classes: the pieces, with their rules.
    """
    bound, table = Bound(), table.local
    groups: dict[Need, list[Piece]] = defaultdict(list)
    for rule_class in classes:
        for piece in rule_class.members:
            if rule_class.rule is None:
                bound.replays.append(Replay(piece, rule_class.reason, table))
            else:
                groups[need_of(table, storage, rule_class.rule, piece)].append(piece)
    programs = list(zip(groups.items(), programs_of(groups), strict=True))
    for is_early in (True, False):
        for (need, pieces), made in programs:
            first = 1 + max((k for k, (graph, _) in enumerate(made) if graph.exports), default=-1)
            for graph, executable in made[:first] if is_early else made[first:]:
                _bind(bound, Launch(graph, executable), pieces, need, table, storage)
        bound.early = len(bound.launches) if is_early else bound.early
    return bound


def _bind(
    bound: Bound, launch: Launch, pieces: list[Piece], need: Need, table: ParameterTable, storage: Storage
) -> None:
    params: list[Tensor] = []
    state: list[Tensor] = []
    scalars: list[dict[str, int]] = []
    for piece in pieces:
        operands = _Operands(bound, launch, piece, need, table, storage)
        params.append(table.parameters[piece.parameters[0]])
        state += [operands.tensors[o.name] for o in launch.state_operands]
        scalars.append(operands.scalars)
    made = BoundLaunch(launch, params, state)
    bound.launches.append(made)
    for row, (piece, names) in enumerate(zip(pieces, scalars, strict=True)):
        bound.rows[piece.parameters[0]].append((made, row, names))


def size_of(rule_input: RuleInput, parameter: Tensor) -> float:
    """Return a parameter's number of elements, or of those in a row; those of the whole, if it is a DTensor."""
    return float(parameter.numel() if rule_input.origin == "numel" else Rows.of(parameter.shape).columns)


class _Operands:
    """The operands of one piece, which are added to its launch.

    tensors: operand name -> tensor, for the state.
    scalars: operand name -> position among the piece's scalars, for numbers that the host computes.
    """

    def __init__(self, bound: Bound, launch: Launch, piece: Piece, need: Need, table: ParameterTable, storage: Storage):
        self.bound, self.piece, self.storage, self.table = bound, piece, storage, table
        self.index = piece.parameters[0]
        self.parameter, self.state = table.parameters[self.index], table.state(self.index)
        self.whole = table.wholes[self.index]
        self.tensors: dict[str, Tensor] = {}
        self.scalars: dict[str, int] = {}
        self.numbers: dict[str, float] = {}
        self.numbers_made = launch.graph.rule.numbers
        self.varying: dict[str, int] = {}
        self.sharing: dict[str, Sharing] = {}
        created = {key: self._created(key, need.configuration[key]) for key in launch.graph.rule.created}
        for operand in launch.graph.operands:
            self._add(operand, launch.graph.configuration, created)
        stored = storage.of(self.index)
        launch.parameters.append(table.names[self.index])
        launch.indices.append(self.index)
        launch.blocks.append(stored.block)
        launch.shapes.append(self.parameter.shape)
        launch.first_lanes.append(table.first_lane(self.index))
        launch.numbers.append(self.numbers)
        launch.varying.append(self.varying)
        launch.sharing.append(self.sharing)

    def _add(self, operand: Operand, configuration: Mapping[str, Codec], created: Mapping[str, Tensor]) -> None:
        slot, part, rule_input = operand.slot, operand.part, operand.input
        entry = created.get(slot, self.state.get(slot)) if operand.source in ("part", "clock", "salt") else None
        if part is not None:
            assert entry is not None
            codec = configuration[slot]
            self.tensors[operand.name] = storage_tensors(entry, codec)[part.name]
            if operand.per == "shared":
                self.sharing[operand.name] = codec.sharing(part, self.parameter.shape)
        elif operand.source == "clock":
            self.tensors[operand.name] = entry.parts["clock"]  # type: ignore[union-attr]
        elif operand.source == "salt":
            self.numbers[operand.name] = float(entry.salt)  # type: ignore[union-attr]
        elif operand.source == "counter" and rule_input is not None:
            is_made = operand.name in self.numbers_made
            self.tensors[operand.name] = (
                self._number(rule_input.key, operand.dtype) if is_made else self.state[rule_input.key]
            )
        elif operand.source == "exported" and rule_input is not None:
            value = self.piece.exported[int(rule_input.name.rpartition("_")[2])]
            made = torch.zeros((), dtype=torch.float64, device=self.parameter.device)
            self.tensors[operand.name] = self.bound.exported[value] = made
        elif operand.source == "reduced" and rule_input is not None:
            sharing = rule_input.sharing(self.parameter.shape)
            self.tensors[operand.name] = self._reduced(rule_input, sharing.cycle)
            if operand.per == "shared":
                self.sharing[operand.name] = sharing
        elif operand.source == "lines" and rule_input is not None:
            self.tensors[operand.name] = self.state[rule_input.key]
            self.sharing[operand.name] = rule_input.sharing(self.parameter.shape)
        elif rule_input is not None and rule_input.origin in ("numel", "columns"):
            self.numbers[operand.name] = size_of(rule_input, self.whole)
        elif rule_input is not None and rule_input.origin == "constants":
            self.numbers[operand.name] = self.piece.constants[rule_input.position]
        elif rule_input is not None and rule_input.origin == "scalars":
            scalar = self.piece.scalars[rule_input.position]
            if isinstance(scalar, Expression):
                self.scalars[operand.name] = rule_input.position
                self.numbers[operand.name] = float(scalar.value)
            else:
                if scalar not in self.bound.tensors:
                    self.bound.tensors.append(scalar)
                self.varying[operand.name] = self.bound.tensors.index(scalar)

    def _reduced(self, rule_input: RuleInput, count: int) -> Tensor:
        """Return where a launch stores what another one reads."""
        place, device = (self.index, rule_input.name), self.parameter.device
        made = torch.zeros((count,) if rule_input.origin else (), dtype=torch.float64, device=device)
        return self.bound.reduced.setdefault(place, made)

    def _number(self, key: str, dtype: torch.dtype) -> Tensor:
        """Return the 0-dim tensor that a step fills, and that becomes state after it, unless it is that already."""
        old: Any = self.state.get(key)
        own = sum(tensor is old for tensor in self.tensors.values())
        is_free = isinstance(old, Tensor) and sys.getrefcount(old) <= 3 + own  # the dictionary, `old`, the argument
        if is_free and (old.dtype, old.shape, old.device) == (dtype, (), self.parameter.device):
            return old
        made = torch.zeros((), dtype=dtype, device=self.parameter.device)
        return self.bound.created.setdefault((self.index, key), made)

    def _created(self, key: str, codec: Codec) -> Tensor:
        """Return the entry that the launch will fill, and that becomes state after it."""
        place = (self.index, key)
        if place not in self.bound.created:
            value = next(v for role, v in self.piece.created if role.key == key)
            first_lane = self.table.first_lane(self.index)
            entry = fresh(self.parameter, value.dtype, 0.0, codec, key, self.storage.seed, first_lane)
            self.bound.created[place] = entry
        return self.bound.created[place]
