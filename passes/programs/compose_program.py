"""Rewrite: rule + configuration -> graphs: decode what is stored, run the rule, encode what must be kept.

Shared slots take a graph of their own, launched before the update, that averages their increments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import CLOCK_DTYPE, WEIGHT_KEY, Codec, Part
from baoc_compile.core.program_graph import Kind, Operand, OperandSource, ProgramGraph, Signature
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.dialect.trace_codec import encoded_parts, traced_decode, traced_encode, traced_words
from baoc_compile.passes.programs.build_graph import GraphBuilder
from baoc_compile.passes.rules.reduce_state import DECAY_OF, decay_name, reduce_state

#: Elements per group when no codec of the configuration forms groups.
FREE_WIDTH = 256


def compose_step(rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature) -> list[ProgramGraph]:
    """The programs of one step, in order: those that average shared slots, then the update.

    `configuration` gives a codec to every slot of `rule`, to every slot it creates, and possibly to the weight.
    """
    of_kind = {k: [key for key, c in configuration.items() if c.mechanism == k] for k in ("dropping", "sharing")}
    reduced = reduce_state(rule, of_kind["dropping"], of_kind["sharing"])
    return [compose_program(r, configuration, signature) for r in (*reduced.averages, reduced.update)]


def compose_program(rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature) -> ProgramGraph:
    """One program. A rule that returns decays averages; see `reduce_state`."""
    return _Composer(rule, configuration, signature, program_width(configuration.values())).compose()


def program_width(codecs: Iterable[Codec]) -> int:
    """The largest group, of which every other group size is a fraction. Raises ValueError if one is not."""
    sizes = sorted({codec.group_size for codec in codecs if codec.group_size})
    if any(sizes[-1] % size for size in sizes):
        raise ValueError(f"codecs with groups of {sizes} elements cannot share a program: none is a multiple of all")
    return sizes[-1] if sizes else FREE_WIDTH


def _group_index(size: int) -> str:
    return f"group_index_{size}"


class _Composer(GraphBuilder):
    def __init__(self, rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature, width: int):
        super().__init__(signature.compute_dtype, width)
        self.rule, self.configuration, self.signature = rule, configuration, signature
        self.operands: dict[str, Operand] = {}
        self.nodes: dict[str, fx.Node] = {}  # operand -> its placeholder
        self.written: dict[str, fx.Node] = {}  # operand -> its new value
        self.values: dict[str, fx.Node] = {}  # rule input -> its value
        self.decays: dict[str, fx.Node] = {}  # averaged operand -> its decay

    def compose(self) -> ProgramGraph:
        self._declare_operands()
        self.values = {i.name: self._read(i.name, i.kind, i.key) for i in self.rule.inputs}
        returned = self.inline(self.rule.gm.graph, self.values, as_compute=True)
        new = dict(zip(self.rule.outputs, returned, strict=True))
        for name, value in new.items():
            if decay_name(name) in new:
                self._average(name, value, new[decay_name(name)])
            elif not name.startswith(DECAY_OF):
                self._write(name, value)
        outputs, decays = tuple(self.written), list(self.decays)
        self.graph.output((*self.written.values(), *self.decays.values()))
        self.graph.eliminate_dead_code()
        used = {name for name, node in self.nodes.items() if node.users}
        operands = []
        for name, operand in self.operands.items():
            if name in used or name in self.written:
                operands.append(replace(operand, written=name in self.written, read=name in used))
            else:
                self.graph.erase_node(self.nodes[name])
        positions = {name: position for position, name in enumerate(decays)}
        return ProgramGraph(
            self.rule,
            dict(self.configuration),
            self.signature,
            self.graph,
            tuple(operands),
            outputs,
            self.width,
            positions,
        )

    def _operand(
        self,
        name: str,
        kind: Kind,
        dtype: torch.dtype,
        source: OperandSource,
        key: str = "",
        bits: int = 8,
        group_size: int = 0,
    ) -> None:
        node = self.graph.placeholder(name)
        node.meta = {"kind": "element" if kind == "shared" else kind, "dtype": dtype, "group_size": group_size}
        self.operands[name] = Operand(name, kind, dtype, source, key, bits=bits, group_size=group_size)
        self.nodes[name] = node

    def _declare_operands(self) -> None:
        signature = self.signature
        self._operand("param", "element", signature.param_dtype, "param")
        self._operand("grad", "element", signature.grad_dtype, "grad")
        for key, codec in self.configuration.items():
            for part in codec.stored_parts:
                name, source_key = f"{key}_{part.name}", f"{key}.{part.name}"
                size = codec.group_size or 0 if part.per == "group" else 0
                self._operand(name, part.per, part.dtype, "part", source_key, part.bits, size)
            if codec.stochastic:
                self._operand(f"{key}_clock", "scalar", CLOCK_DTYPE, "clock", key)
                self._operand(f"{key}_salt", "scalar", CLOCK_DTYPE, "salt", key)
        counter_dtypes = dict(signature.counter_dtypes)
        for rule_input in self.rule.inputs_of("counter"):
            self._operand(rule_input.name, "scalar", counter_dtypes[rule_input.name], "counter", rule_input.key)
        for rule_input in self.rule.inputs_of("scalar"):
            self._operand(rule_input.name, "scalar", torch.float64, "scalar", rule_input.name)
        if signature.has_update_scale:
            self._operand("update_scale", "scalar", torch.float64, "update_scale")
        self._operand("index", "element", torch.int32, "index")
        for size in sorted({codec.group_size or self.width for codec in self.configuration.values()}):
            self._operand(_group_index(size), "group", torch.int32, "group_index", group_size=size)

    def _read(self, name: str, kind: str, key: str) -> fx.Node:
        key = WEIGHT_KEY if kind == "param" else key
        if kind == "slot" or (kind == "param" and key in self.configuration):
            codec = self.configuration[key]
            parts = [self._part(key, part) for part in codec.parts]
            (value,) = self.inline_codec(codec, "decode", traced_decode, parts, key)
            return self.cast(value, self.compute_dtype, f"{key}_value")
        target = torch.float64 if kind in ("counter", "scalar") else self.compute_dtype
        return self.cast(self.nodes[name], target, f"{name}_value")

    def _part(self, key: str, part: Part) -> fx.Node:
        """A part's placeholder; that of the first part of a weight codec is the parameter."""
        return self.nodes[self._part_name(key, part)]

    def _part_name(self, key: str, part: Part) -> str:
        codec = self.configuration[key]
        return f"{key}_{part.name}" if part in codec.stored_parts else "param"

    def _average(self, key: str, increment: fx.Node, decay: fx.Node) -> None:
        """shared = decay * shared + mean of the increments."""
        for part in self.configuration[key].parts:
            name = f"{key}_{part.name}"
            self.written[name] = self.cast(increment, part.dtype, f"{key}_increment")
            self.decays[name] = decay

    def _write(self, name: str, value: fx.Node) -> None:
        key = next((i.key for i in self.rule.inputs if i.name == name and i.kind == "slot"), name)
        codec = self.configuration.get(key)
        if name == "param" and self.signature.has_update_scale:
            value = self._with_update_scale(value)
        if codec is None:
            self.written[name] = self.cast(value, self.operands[name].dtype, f"{name}_new")
            return
        stored_dtype = next(
            (p.dtype for p in codec.parts if p.name == "values" and not codec.stochastic), torch.float32
        )
        words: list[Any] = [0, 0]
        if codec.stochastic:
            size = codec.group_size or self.width
            inputs = [self.nodes[n] for n in (f"{key}_salt", f"{key}_clock", "index", _group_index(size))]
            *words, clock = self.inline_codec(codec, "words", lambda _, width: traced_words(width), inputs, key)
            self.written[f"{key}_clock"] = clock
        value = self.cast(value, stored_dtype, f"{key}_new")
        tables = [self._part(key, part) for part in codec.parts if part.per == "table"]
        stored = self.inline_codec(codec, "encode", traced_encode, [value, *words, *tables], key)
        for part, node in zip(encoded_parts(codec), stored, strict=True):
            self.written[self._part_name(key, part)] = node

    def _with_update_scale(self, value: fx.Node) -> fx.Node:
        """param + update_scale * (new - param)."""
        old = self.values["param"]
        for target, other in (
            (torch.ops.aten.sub.Tensor, old),
            (torch.ops.aten.mul.Tensor, self.nodes["update_scale"]),
            (torch.ops.aten.add.Tensor, old),
        ):
            meta = dict(value.meta)
            value = self.graph.call_function(target, (value, other))
            value.meta = meta
        return value
