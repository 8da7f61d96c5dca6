"""Rewrite: compose a rule and a configuration into graphs that decode the state, run the rule and encode the new state.

Shared slots add graphs of their own, launched before the update, that average their increments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import CLOCK_DTYPE, Codec, Part, weight_entry
from baoc_compile.core.names import identifier
from baoc_compile.core.program_graph import Operand, OperandPer, ProgramGraph, Signature
from baoc_compile.core.rule import REDUCTIONS, RuleInput, RuleOutput, UpdateRule
from baoc_compile.kernels.dialect.nodes import ValueMeta, meta_of, set_meta
from baoc_compile.kernels.dialect.trace_codec import encoded_parts, traced_decode, traced_encode, traced_words
from baoc_compile.passes.programs.build_graph import GraphBuilder
from baoc_compile.passes.rules.split_reductions import launched_rules

Place = tuple[str, str, str]


def compose_step(rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature) -> list[ProgramGraph]:
    """Compose the programs of one step, in order: those that average shared slots, those that reduce, then the update.

    rule: the update rule.
    configuration: the codec of every slot of `rule`, of every slot that it creates, and possibly of the weight.
    signature: the types and the device.

    Raises NoRecurrence for a dropped or shared slot without a recurrence.
    """
    of_kind = {k: [key for key, c in configuration.items() if c.mechanism == k] for k in ("dropping", "sharing")}
    launched = launched_rules(rule, of_kind["dropping"], of_kind["sharing"])
    return [compose_program(r, configuration, signature) for r in launched]


def compose_program(rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature) -> ProgramGraph:
    """Compose one program: an average or a reduction if the rule is one (see `reduce_state`), else an update."""
    return _Composer(rule, configuration, signature).compose()


class _Composer(GraphBuilder):
    """A builder that composes one program. It finds operands by their `place`; their names carry no meaning.

    operands: operand name -> operand.
    nodes: place -> placeholder.
    written: operand name -> its new value.
    values: name of a rule input -> its value.
    decays: name of an averaged operand -> its decay.
    new: output of the rule -> its value.
    """

    def __init__(self, rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature):
        super().__init__(signature.compute_dtype)
        self.rule, self.configuration, self.signature = rule, configuration, signature
        self.weight = weight_entry(configuration)
        self.operands: dict[str, Operand] = {}
        self.nodes: dict[Place, fx.Node] = {}
        self.written: dict[str, fx.Node] = {}
        self.values: dict[str, fx.Node] = {}
        self.decays: dict[str, fx.Node] = {}
        self.new: dict[RuleOutput, fx.Node] = {}

    def compose(self) -> ProgramGraph:
        self._declare_operands()
        self.values = {i.name: self._read(i) for i in self.rule.inputs}
        returned = self.inline(self.rule.gm.graph, self.values, as_compute=True)
        self.new = new = dict(zip(self.rule.outputs, returned, strict=True))
        for output, value in new.items():
            if output.kind in REDUCTIONS:
                self.written[output.name] = value
            elif output.kind == "number":
                self.written[output.name] = self.cast(value, self.operands[output.name].dtype, f"{output.name}_new")
            elif output.kind == "exported":
                self.written[output.name] = self.cast(value, torch.float64, f"{output.name}_new")
            elif output.kind == "increment":
                self._average(output.key, value, new[RuleOutput("decay", key=output.key)])
            elif output.kind != "decay":
                self._write(output, value)
        outputs, decays = tuple(self.written), list(self.decays)
        self.graph.output((*self.written.values(), *self.decays.values()))
        self.graph.eliminate_dead_code()
        operands = []
        for name, node in zip(self.operands, self.nodes.values(), strict=True):
            is_read, is_written = bool(node.users), name in self.written
            if is_read or is_written:
                fold = "average" if name in self.decays else self.operands[name].fold
                operands.append(replace(self.operands[name], written=is_written, read=is_read, fold=fold))
            else:
                self.graph.erase_node(node)
        positions = {name: position for position, name in enumerate(decays)}
        return ProgramGraph(
            self.rule,
            dict(self.configuration),
            self.signature,
            self.graph,
            tuple(operands),
            outputs,
            positions,
        )

    def _declare_operands(self) -> None:
        """Add a placeholder for every operand. The rule's inputs keep their names; the others get unused names."""
        signature, taken = self.signature, {"param", "grad", *(i.name for i in self.rule.inputs)}

        def declare(operand: Operand) -> None:
            node = self.graph.placeholder(operand.name)
            per = "element" if operand.per == "shared" else operand.per
            set_meta(node, ValueMeta(per, operand.dtype))
            taken.add(operand.name)
            self.operands[operand.name], self.nodes[operand.place] = operand, node

        def free(name: str) -> str:
            return identifier(name, taken)

        declare(Operand("param", "element", signature.param_dtype, "param"))
        declare(Operand("grad", "element", signature.grad_dtype, "grad"))
        for key, codec in self.configuration.items():
            for part in codec.stored_parts:
                declare(Operand(free(f"{key}_{part.name}"), part.per, part.dtype, "part", key, part))
            if codec.stochastic:
                declare(Operand(free(f"{key}_clock"), "scalar", CLOCK_DTYPE, "clock", key))
                declare(Operand(free(f"{key}_salt"), "scalar", CLOCK_DTYPE, "salt", key))
        counter_dtypes = dict(signature.counter_dtypes)
        for counter in self.rule.inputs_of("counter"):
            declare(Operand(counter.name, "scalar", counter_dtypes[counter.name], "counter", input=counter))
        for lines in self.rule.inputs_of("lines"):
            fold = "mean" if any(o.name == lines.name for o in self.rule.outputs) else ""
            declare(Operand(lines.name, "shared", counter_dtypes[lines.name], "lines", input=lines, fold=fold))
        for scalar in self.rule.inputs_of("scalar"):
            declare(Operand(scalar.name, "scalar", torch.float64, "scalar", input=scalar))
        for reduced in self.rule.inputs_of("reduced"):
            per: OperandPer = "shared" if reduced.origin else "scalar"
            declare(Operand(reduced.name, per, torch.float64, "reduced", input=reduced))
        for output in self.rule.outputs:
            if output.kind == "number":
                of = RuleInput(output.name, "counter", output.key)
                declare(Operand(output.name, "scalar", counter_dtypes[output.name], "counter", input=of))
            elif output.kind == "exported":
                of = RuleInput(output.name, "scalar")
                declare(Operand(output.name, "scalar", torch.float64, "exported", input=of))
            elif output.kind in REDUCTIONS and output.name not in self.operands:
                of_lines, _, fold = output.kind.rpartition(" ")
                of = RuleInput(output.name, "reduced", origin=of_lines)  # type: ignore[arg-type]
                declare(Operand(output.name, "shared", torch.float64, "reduced", input=of, fold=fold))
        declare(Operand(free("index"), "element", torch.int32, "index"))
        declare(Operand(free("group_index"), "group", torch.int32, "group_index"))

    def _read(self, rule_input: RuleInput) -> fx.Node:
        """Return the value of a rule's input, decoded and in the type that the rule computes in."""
        key = self.weight if rule_input.kind == "param" else rule_input.key if rule_input.kind == "slot" else None
        if key is not None:
            codec = self.configuration[key]
            parts = [self.nodes[self._place(key, part)] for part in codec.parts]
            (value,) = self.inline_codec(codec, "decode", traced_decode(codec), parts, key)
            value = self.cast(value, self.compute_dtype, f"{identifier(key)}_value")
            return self._moved(value, torch.ops.aten.add.Tensor, self._weight()) if codec.follows_weight else value
        is_named = rule_input.kind in ("counter", "lines", "scalar", "reduced")
        node = self.nodes[rule_input.kind, rule_input.name if is_named else "", ""]
        is_number = rule_input.kind in ("counter", "scalar") or (rule_input.kind == "reduced" and not rule_input.origin)
        return self.cast(node, torch.float64 if is_number else self.compute_dtype, f"{rule_input.name}_value")

    def _weight(self) -> fx.Node:
        """Return the parameter's old value, of a parameter without a weight codec."""
        return self.cast(self.nodes["param", "", ""], self.compute_dtype, "param_value")

    def _new_weight(self) -> fx.Node:
        """Return the parameter's new value, of a parameter without a weight codec."""
        return self.new.get(RuleOutput("new", "param"), self._weight())

    def _moved(self, value: fx.Node, target: Any, other: fx.Node) -> fx.Node:
        return set_meta(self.graph.call_function(target, (value, other)), meta_of(value))

    def _place(self, key: str, part: Part) -> Place:
        """Return the place of a slot's part; a part that the codec does not store is the parameter itself."""
        return ("part", key, part.name) if part in self.configuration[key].stored_parts else ("param", "", "")

    def _average(self, key: str, increment: fx.Node, decay: fx.Node) -> None:
        """Write shared = decay * shared + mean of the increments."""
        for part in self.configuration[key].parts:
            name = self._name(("part", key, part.name))
            self.written[name] = self.cast(increment, part.dtype, f"{identifier(key)}_increment")
            self.decays[name] = decay

    def _write(self, output: RuleOutput, value: fx.Node) -> None:
        """Write an output of the rule, encoded if it is a slot or has a weight codec."""
        replaced = next((i for i in self.rule.inputs if output.kind == "new" and i.name == output.name), None)
        key = output.key if replaced is None else replaced.key if replaced.kind == "slot" else None
        if replaced is not None and replaced.kind == "param":
            key = self.weight
        if key is None:
            self.written[output.name] = self.cast(value, self.operands[output.name].dtype, f"{output.name}_new")
            return
        codec, name = self.configuration[key], identifier(key)
        stored_dtype = next(
            (p.dtype for p in codec.parts if p.name == "values" and not codec.stochastic), torch.float32
        )
        words: list[Any] = [0, 0]
        if codec.stochastic:
            places = ("salt", key, ""), ("clock", key, ""), ("index", "", ""), ("group_index", "", "")
            inputs = [self.nodes[place] for place in places]
            *words, clock = self.inline_codec(codec, "words", traced_words(), inputs, key)
            self.written[self._name(("clock", key, ""))] = clock
        if codec.follows_weight:
            value = self._moved(value, torch.ops.aten.sub.Tensor, self._new_weight())
        value = self.cast(value, stored_dtype, f"{name}_new")
        codebooks = [self.nodes[self._place(key, part)] for part in codec.parts if part.per == "codebook"]
        stored = self.inline_codec(codec, "encode", traced_encode(codec), [value, *words, *codebooks], key)
        for part, node in zip(encoded_parts(codec), stored, strict=True):
            self.written[self._name(self._place(key, part))] = node

    def _name(self, place: Place) -> str:
        return str(self.nodes[place].target)
