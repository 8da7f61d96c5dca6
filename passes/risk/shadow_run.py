"""Shadow runs: the updates that a configuration would have made of the sampled gradients.

Torch interprets the program of a (rule, configuration) over the sampled elements; it is the same graph that is
compiled. Every step starts from the weights that full precision has at that step, so that updates can be compared; where a
slot is stored as its difference to the weights, it starts from the configuration's own. State is the configuration's own from
the first step on. Shared slots take the recorded, exact means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import CLOCK_DTYPE, GROUP_SIZE, Codec, Random
from baoc_compile.core.program_graph import Operand, ProgramGraph, Signature
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.kernels.codecs.counter_hash import element_words, fold_index, group_words, slot_salt, step_key
from baoc_compile.kernels.dialect.trace_codec import encoded_parts, exact_encode, with_exact_roots
from baoc_compile.passes.programs.compose_program import Place, compose_step
from baoc_compile.passes.risk.gradient_stream import GradientStream


@dataclass(frozen=True)
class Samples:
    """The concatenated streams of parameters that step alike: S elements in all.

    rule: the rule of all these parameters.
    streams: one stream per parameter.
    """

    rule: UpdateRule
    streams: Sequence[GradientStream]

    @staticmethod
    def alike(
        streams: Mapping[int, GradientStream], rules: Mapping[int, UpdateRule]
    ) -> list[dict[int, GradientStream]]:
        """Group the streams of parameters that share rule, counters and numbers, and so can run at once."""
        groups: dict[object, dict[int, GradientStream]] = {}
        for i, stream in streams.items():
            numbers = tuple(tuple(sorted(n.items())) for n in stream.numbers)
            key = rules[i], tuple(stream.rules), tuple(stream.counters.items()), numbers
            groups.setdefault(key, {})[i] = stream
        return list(groups.values())

    @property
    def param(self) -> Tensor:
        """`[S]`: the weights when sampling began."""
        return torch.cat([s.param for s in self.streams])

    @property
    def grads(self) -> Tensor:
        """`[steps, S]`: the gradients."""
        return torch.stack([torch.cat([*g]) for g in zip(*(s.grads for s in self.streams), strict=True)])

    def slot(self, key: str) -> Tensor:
        """Return `[S]`, the slot `key` when sampling began."""
        return torch.cat([s.slots[key] for s in self.streams])


class ShadowRun:
    """One configuration, run from the state at which sampling began.

    samples: the elements to run on.
    codecs: state key -> codec.
    seed: keys the stochastic rounding.
    """

    def __init__(self, samples: Samples, codecs: Mapping[str, Codec], seed: int):
        self.samples, self.codecs = samples, codecs
        first, rule = samples.streams[0], samples.rule
        counters = tuple((i.name, torch.float32) for i in rule.inputs if i.kind in ("counter", "lines"))
        self._signature = Signature("cpu", torch.float32, torch.float32, counters)
        self._programs: dict[UpdateRule, list[tuple[ProgramGraph, Any, list[Place]]]] = {}
        self.lanes = fold_index(torch.arange(len(samples.param))).view(-1, GROUP_SIZE)
        self.salts: dict[str, Tensor] = {}  # by slot
        #: The stored tensors, by `Operand.place`.
        self.stored: dict[tuple[str, str, str], Tensor] = {
            ("counter", i.name, ""): torch.tensor(first.counters[i.name]) for i in rule.inputs_of("counter")
        }
        for i in rule.inputs_of("lines"):
            self.stored["lines", i.name, ""] = self._spread([s.lines[i.name] for s in samples.streams])
        self._own_weights = any(codec.follows_weight for codec in codecs.values())
        self._param = samples.param
        for key, codec in codecs.items():
            self._start(key, codec, slot_salt(seed, key))

    def _programs_of(self, t: int) -> list[tuple[ProgramGraph, Any, list[Place]]]:
        """Return the programs of step t but averages, with what interprets them and the places of what they return."""
        rules = self.samples.streams[0].rules
        rule = rules[t] if rules else self.samples.rule
        if rule not in self._programs:
            self._programs[rule] = []
            for graph in compose_step(rule, self.codecs, self._signature):
                places = {o.name: o.place for o in graph.operands}
                if not graph.decays:
                    made = graph, with_exact_roots(graph.graph), [places[name] for name in graph.outputs]
                    self._programs[rule].append(made)
        return self._programs[rule]

    def _start(self, key: str, codec: Codec, salt: int) -> None:
        """Store the slot with its codec, as it was when sampling began."""
        if codec.mechanism == "sharing":
            for part in codec.parts:
                means = [s.shared[key].start[_mean_name(codec, part.name)] for s in self.samples.streams]
                self.stored["part", key, part.name] = self._spread(means)
            return
        if codec.mechanism == "dropping":
            return
        clock = torch.zeros((), dtype=CLOCK_DTYPE)
        self.salts[key] = torch.tensor(salt, dtype=CLOCK_DTYPE)
        word_key = step_key(self.salts[key], clock)
        random = Random(element_words(word_key, self.lanes), group_words(word_key, self.lanes[:, :1]))
        codebooks = {p.name: codec.initial(p, torch.Size(), clock.device) for p in codec.parts if p.per == "codebook"}
        value = self.samples.slot(key) - (self.samples.param if codec.follows_weight else 0.0)
        encoded = exact_encode(codec, value.view(-1, GROUP_SIZE), random, codebooks)
        for part in encoded_parts(codec):
            shape = (-1, 1) if part.per == "group" else self.lanes.shape
            self.stored["part", key, part.name] = encoded[part.name].view(shape)
        self.stored |= {("part", key, name): codebook for name, codebook in codebooks.items()}
        self.stored["clock", key, ""] = clock + 1

    def _spread(self, means: Sequence[Tensor]) -> Tensor:
        """Spread each stream's means over its elements."""
        return torch.cat([m.expand(len(s.index)) for m, s in zip(means, self.samples.streams, strict=True)]).view(
            self.lanes.shape
        )

    @torch.no_grad()
    def step(self, t: int, param: Tensor, grad: Tensor) -> Tensor:
        """Return the update of step t, `[S]`: new weights less `param`."""
        numbers = self.samples.streams[0].numbers[t]
        for key, codec in self.codecs.items():
            if codec.mechanism == "sharing":
                self._average(t, key, codec)
        param = self._param if self._own_weights else param
        given = {"param": param.view(self.lanes.shape), "grad": grad.view(self.lanes.shape)}
        for graph, interpret, outputs in self._programs_of(t):
            values = [self._value(o, given, numbers) if o.read else None for o in graph.operands]
            new = dict(zip(outputs, interpret(*values), strict=True))
            if graph.folds:
                folds = {o.place: o.fold for o in graph.operands if o.fold}
                new = {place: self._folded(value, folds[place], place) for place, value in new.items()}
            self.stored |= new
        self._param = self.stored.pop(("param", "", "")).expand_as(given["param"]).reshape(-1)
        return self._param - param

    def _folded(self, value: Tensor, fold: str, place: Place) -> Tensor:
        """Return the mean or the maximum over each stream's elements, which stand for its parameter's, spread over them.

        Lines stay as they are: all elements of one have its value.
        """
        if place[0] == "lines":
            return value.expand(self.lanes.shape)
        sizes = [len(s.index) for s in self.samples.streams]
        parts = value.expand(self.lanes.shape).reshape(-1).double().split(sizes)
        return self._spread([part.max() if fold == "most" else part.mean() for part in parts])

    def _average(self, t: int, key: str, codec: Codec) -> None:
        """Update the means of a shared slot with the increments of step t."""
        for part in codec.parts:
            place = "part", key, part.name
            increments = [s.shared[key] for s in self.samples.streams]
            added = self._spread([i.added[t][_mean_name(codec, part.name)] for i in increments])
            self.stored[place] = increments[0].decays[t] * self.stored[place] + added

    def _value(self, operand: Operand, given: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Tensor:
        if operand.source == "index":
            return self.lanes
        if operand.source == "group_index":
            return self.lanes[:, :1]
        if operand.source == "salt":
            return self.salts[operand.slot]
        if operand.source == "scalar":
            return torch.tensor(numbers[operand.name], dtype=torch.float64)
        return given[operand.source] if operand.source in given else self.stored[operand.place]


def _mean_name(codec: Codec, part: str) -> str:
    """Return which recorded means a part of a sharing codec holds.

    "row" -> rows, "column" -> columns, "tensor" -> mean.
    """
    return part if part != "values" else {"row": "rows", "column": "columns", "tensor": "mean"}[codec.name]


def reference_run(samples: Samples, seed: int) -> tuple[Tensor, Tensor]:
    """Return the weights before each step and the updates, both `[steps, S]`, in full precision.

    The last gradient has no update.
    """
    full = {slot.key: full_precision(torch.float32) for slot in samples.rule.slots}
    run, grads = ShadowRun(samples, full, seed), samples.grads
    weights, updates = [samples.param], []
    for t in range(len(grads) - 1):
        updates.append(run.step(t, weights[-1], grads[t]))
        weights.append(weights[-1] + updates[-1])
    return torch.stack(weights[:-1]), torch.stack(updates)


def shadow_updates(samples: Samples, codecs: Mapping[str, Codec], weights: Tensor, seed: int) -> Tensor:
    """Return the updates of a configuration, `[steps, S]`, each from the weights of the reference."""
    run, grads = ShadowRun(samples, codecs, seed), samples.grads
    return torch.stack([run.step(t, weights[t], grads[t]) for t in range(len(weights))])
