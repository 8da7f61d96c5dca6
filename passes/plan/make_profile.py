"""Profiles: from blocks, candidates and sampled gradients to the bytes, time and risk of every candidate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from baoc_compile.core.block import Block
from baoc_compile.core.codec import Codec
from baoc_compile.core.configuration import Configuration
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.profile import BlockCandidate, BlockStatistics, Profile
from baoc_compile.core.program_graph import Signature
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.storage import Storage
from baoc_compile.passes.plan.list_candidates import list_candidates
from baoc_compile.passes.programs.measure_time import HOST_NS_PER_TENSOR, TimeModel
from baoc_compile.passes.risk.assess_risk import GATED, Risk
from baoc_compile.passes.risk.block_statistics import block_statistics
from baoc_compile.passes.risk.gradient_stream import GradientStream
from baoc_compile.passes.risk.measure_risk import last_resort, measure_risk
from baoc_compile.passes.risk.proxy_risk import proxy_risk
from baoc_compile.state.entries import as_found, whole_bytes

#: Nats per unit of expected harm, for a block that is the whole model. It only orders candidates that were not sampled.
NATS_PER_HARM = 1e-3


@dataclass(frozen=True)
class Planned:
    """What may be planned.

    storage: how each slot is stored now.
    table: the optimizer's parameters.
    rules: parameter index -> update rule.
    """

    storage: Storage
    table: ParameterTable
    rules: Mapping[int, UpdateRule]

    def current(self, i: int) -> dict[str, Codec]:
        """Return the codecs of parameter i's slots, by state key."""
        codecs = self.storage.of(i).codecs
        return {slot.key: codecs[slot.key] for slot in self.rules[i].slots}

    def must_agree(self) -> dict[int, object]:
        """Return, by parameter index, what the parameters of one block must have in common besides their role."""
        return {i: self._common(i) for i in range(len(self.table.parameters))}

    def _common(self, i: int) -> object:
        parameter = self.table.parameters[i]
        stored = tuple(c.name for c in self.current(i).values()) if i in self.rules else ("as traced", i)
        rule = self.rules[i].key if i in self.rules else ""
        return rule, parameter.dtype, str(parameter.device), tuple(parameter.shape), self.table.groups[i], stored


def make_profile(
    planned: Planned,
    blocks: Sequence[Block],
    streams: Mapping[int, GradientStream],
    *,
    seed: int,
    measure_time: bool,
    risk: str = "shadow",
    allow: frozenset[str] = frozenset(),
) -> Profile:
    """Make the profile of `blocks`.

    planned: rules, and how state is stored now.
    blocks: the blocks to plan for.
    streams: parameter index -> samples; without any, `Codec.expected_harm` alone orders the candidates.
    seed: keys the stochastic rounding of shadow runs.
    measure_time: whether to time candidates that were never timed on this device; otherwise their times are estimated.
    risk: "shadow" for shadow runs, or "proxy" for BAOC-style sums of metrics (our reconstruction).
    allow: what a plan may do although another one meets the budget; see `PlannerOptions`.
    """
    started = time.perf_counter()
    return _Maker(planned, blocks, streams, seed, measure_time, risk, allow).make(started)


class _Maker:
    """The making of one profile."""

    def __init__(
        self,
        planned: Planned,
        blocks: Sequence[Block],
        streams: Mapping[int, GradientStream],
        seed: int,
        measure_time: bool,
        risk: str,
        allow: frozenset[str],
    ):
        self.planned, self.streams, self.seed, self.risk, self.allow = planned, streams, seed, risk, allow
        self.table, self.rules = planned.table, planned.rules
        self.measure_time = measure_time
        self.blocks = [b for b in blocks if b.parameters[0] in planned.rules and self._numel(b)]
        self.configurations = [self._configurations(b) for b in self.blocks]
        device = self.table.parameters[0].device if self.table.parameters else torch.device("cpu")
        self.times = TimeModel(device, elements=max(1, sum(map(self._numel, self.blocks))))

    def _numel(self, block: Block) -> int:
        return sum(self.table.parameters[i].numel() for i in block.parameters)

    def _configurations(self, block: Block) -> list[Configuration]:
        i = block.parameters[0]
        parameter = self.table.parameters[i]
        state = self.table.state(i)
        slots = [as_found(slot, parameter, state.get(slot.key)) for slot in self.rules[i].slots]
        return list_candidates(slots, parameter.shape, parameter.dtype, self.planned.current(i))

    def make(self, started: float) -> Profile:
        risks, factor = measure_risk(self.blocks, self.configurations, self.streams, self.rules, self.seed, self.allow)
        statistics = tuple(
            block_statistics([self.streams[i] for i in b.parameters if i in self.streams]) for b in self.blocks
        )
        candidates = tuple(
            tuple(self._candidate(b, c, risks.get((k, c.label)), statistics[k]) for c in self.configurations[k])
            for k, b in enumerate(self.blocks)
        )
        current = tuple(
            next(j for j, c in enumerate(cs) if dict(c.codecs) == _names(self.planned.current(b.parameters[0])))
            for b, cs in zip(self.blocks, candidates, strict=True)
        )
        planned_bytes = sum(cs[j].size_bytes for cs, j in zip(candidates, current, strict=True))
        fixed = whole_bytes(self.table.optimizer) - planned_bytes
        full = [self._full(k) for k in range(len(self.blocks))]
        loads = [load for b, c in zip(self.blocks, full, strict=True) for load in [self._load(b, c)]]
        return Profile(
            blocks=tuple(self.blocks),
            statistics=statistics,
            candidates=candidates,
            current=current,
            names=tuple(self.table.names),
            shapes=tuple(tuple(p.shape) for p in self.table.parameters),
            fixed_bytes=fixed,
            fixed_ns=self.times.predict([]) + HOST_NS_PER_TENSOR * len(self.table.parameters),
            full_bytes=fixed + sum(self._size_bytes(b, c) for b, c in zip(self.blocks, full, strict=True)),
            full_ns=self.times.predict(loads),
            curvature=factor,
            steps=max((len(s.grads) - 1 for s in self.streams.values()), default=0),
            sampled_elements=sum(len(s.index) for s in self.streams.values()),
            sampled_bytes=sum(s.nbytes for s in self.streams.values()),
            seconds=time.perf_counter() - started,
            time_is_measured=self.measure_time,
        )

    # one candidate

    def _candidate(
        self, block: Block, configuration: Configuration, risk: Risk | None, statistics: BlockStatistics
    ) -> BlockCandidate:
        """Return one candidate with its bytes, time and risk."""
        share = self._numel(block) / max(1, sum(map(self._numel, self.blocks)))
        is_full = configuration.expected_harm == 0.0
        if is_full:
            risk = Risk(0.0, 0.0, 0.0, relative_error=0.0)
        elif risk is None or self.risk == "proxy":
            expected = NATS_PER_HARM * share * configuration.expected_harm
            if risk is not None:
                expected = share * proxy_risk(statistics, configuration.codecs)
            gate = last_resort(configuration.codecs, self.allow)
            risk = Risk(expected, expected, expected + (GATED if gate else 0.0), gate=gate)
        cost, elements, tensors = self._load(block, configuration)
        return BlockCandidate(
            codecs=_names(configuration.codecs),
            size_bytes=self._size_bytes(block, configuration),
            time_ns=cost.ns_per_element * elements + cost.ns_per_tensor * tensors,
            launch_ns=cost.ns_per_launch,
            programs=cost.programs,
            predicted=risk.predicted,
            error=risk.error,
            risk=risk.risk,
            interaction=risk.interaction,
            relative_error=risk.relative_error,
            excluded=risk.excluded,
            gate=risk.gate,
        )

    def _size_bytes(self, block: Block, configuration: Configuration) -> int:
        """Return the bytes of the state of all parameters of the block, which have one shape."""
        shape = self.table.parameters[block.parameters[0]].shape
        return configuration.storage_bytes(shape) * len(block.parameters)

    def _load(self, block: Block, configuration: Configuration) -> tuple:
        """Return the cost of the configuration's programs, and the block's numbers of elements and tensors."""
        i = block.parameters[0]
        parameter, state = self.table.parameters[i], self.table.state(i)
        counters = tuple((c.name, state[c.key].dtype) for c in self.rules[i].inputs if c.kind in ("counter", "lines"))
        grad = parameter.grad.dtype if parameter.grad is not None else parameter.dtype
        signature = Signature(str(parameter.device), parameter.dtype, grad, counters)
        cost = self.times.cost(self.rules[i], configuration.codecs, signature, measure=self.measure_time)
        return cost, self._numel(block), len(block.parameters)

    def _full(self, k: int) -> Configuration:
        return next(c for c in self.configurations[k] if c.expected_harm == 0.0)


def _names(codecs: Mapping[str, Codec]) -> dict[str, str]:
    return {key: codec.name for key, codec in codecs.items()}
