"""Rewrite: the traced step -> prelude, one `fused_update` node per program, and what has to run as traced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from baoc_compile.kernels.catalogue import codec_named, full_precision
from baoc_compile.kernels.fused_update import Launch
from baoc_compile.kernels.lower import lower
from baoc_compile.passes.adopt_state import fresh, storage_tensors
from baoc_compile.passes.compose_program import compose_step
from baoc_compile.passes.extract_rules import RuleClass, Slice, slice_component
from baoc_compile.passes.run_as_traced import AsTraced
from torch import Tensor, fx

from baoc_compile.codec import WEIGHT_KEY, Codec, Sharing
from baoc_compile.program import Executable, ProgramGraph, Signature
from baoc_compile.rule import UpdateRule
from baoc_compile.session import Session
from baoc_compile.state_tensor import StateTensor
from baoc_compile.step_graph import StepGraph


@dataclass
class Rewritten:
    """`gm` takes the traced step's arguments and returns its outputs. `bound`: inputs that it holds as attributes."""

    gm: fx.GraphModule
    launches: list[Launch]
    as_traced: list[AsTraced]
    bound: dict[fx.Node, Any] = field(default_factory=dict)


def rewrite_step(
    step: StepGraph, prelude: list[fx.Node], classes: list[RuleClass], session: Session, inner_backend: Any
) -> Rewritten:
    """Binds to the tensors that are in `optimizer.state` now: state must have been adopted before."""
    return _Rewriter(step, session, inner_backend).rewrite(prelude, classes)


class _Rewriter:
    def __init__(self, step: StepGraph, session: Session, inner_backend: Any):
        self.step, self.session, self.inner_backend = step, session, inner_backend
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.nodes: dict[fx.Node, Any] = {}  # of the flat graph -> of the rewritten one
        self.attributes: dict[int, fx.Node] = {}
        self.bound: dict[fx.Node, Any] = {}
        self.results: dict[fx.Node, Any] = {}  # returned nodes that pieces produce

    def rewrite(self, prelude: list[fx.Node], classes: list[RuleClass]) -> Rewritten:
        for node in self.step.arguments:
            self.nodes[node] = self.graph.placeholder(node.name)
        for node in prelude:
            for i in node.all_input_nodes:
                self._input(i)
            self.nodes[node] = self.graph.node_copy(node, lambda old: self.nodes[old])
        groups: dict[Any, list[tuple[RuleClass, Slice]]] = defaultdict(list)
        traced: list[AsTraced] = []
        for rule_class in classes:
            for piece in rule_class.members:
                if rule_class.rule is None:
                    traced.append(self._as_traced(rule_class, piece))
                else:
                    groups[self._program_key(rule_class.rule, piece)].append((rule_class, piece))
        launches = [launch for key, members in groups.items() for launch in self._launch(key, members)]
        self.graph.output(
            fx.map_arg(tuple(self.step.outputs), lambda n: self.results[n] if n in self.results else self._input(n))
        )
        gm = fx.GraphModule(self.root, self.graph, class_name="RewrittenStep")
        return Rewritten(gm, launches, traced, self.bound)

    # inputs

    def _live(self, node: fx.Node) -> Any:
        """The tensor behind an input that belongs to a parameter."""
        role = self.step.roles[node]
        if role.kind == "param":
            return self.step.table.parameters[role.parameter]
        return self.step.table.state(role.parameter).get(role.key)

    def _input(self, node: fx.Node) -> Any:
        """The rewritten graph's node for an input: an argument for gradients and scalars, an attribute for what lives on."""
        if node in self.nodes:
            return self.nodes[node]
        if node.op == "get_attr":
            role = self.step.roles[node]
            value = self._live(node) if role.kind in ("param", "state") else getattr(self.step.gm, str(node.target))
            self.nodes[node] = self._attribute(value, self._attribute_name(role, node))
        return self.nodes[node]

    def _attribute_name(self, role: Any, node: fx.Node) -> str:
        if role.parameter < 0:
            return node.name
        return "_".join(filter(None, (self.step.table.short_name(role.parameter), role.key)))

    def _attribute(self, value: Any, name: str) -> fx.Node:
        if id(value) not in self.attributes:
            name = f"p_{name}" if not name[:1].isalpha() else name
            while hasattr(self.root, name):
                name += "_"
            object.__setattr__(self.root, name, value)
            self.attributes[id(value)] = self.graph.get_attr(name)
        return self.attributes[id(value)]

    # programs

    def _configuration(self, rule: UpdateRule, piece: Slice) -> dict[str, Codec]:
        parameter = self.step.table.parameters[piece.component.parameters[0]]
        decisions = self.session.decisions.get(parameter, {})
        exact = full_precision(parameter.dtype)
        decided = {slot.key: decisions[slot.key].codec for slot in rule.slots}
        weight = self.step.table.state(piece.component.parameters[0]).get(WEIGHT_KEY)
        if isinstance(weight, StateTensor) and weight.codec.kind == "weight":
            decided[WEIGHT_KEY] = weight.codec
        return decided | {key: exact for key in rule.created}

    def _program_key(self, rule: UpdateRule, piece: Slice) -> Any:
        parameter = self.step.table.parameters[piece.component.parameters[0]]
        grads = [n for n in piece.inputs if self.step.roles.get(n) and self.step.roles[n].kind == "grad"]
        grad_dtype = grads[0].meta["example_value"].dtype if grads else parameter.dtype
        state = self.step.table.state(piece.component.parameters[0])
        counters = tuple((i.name, state[i.key].dtype) for i in rule.inputs_of("counter"))
        has_gain = self.session.gain(parameter) != 1.0
        signature = Signature(parameter.device.type, parameter.dtype, grad_dtype, counters, has_gain)
        configuration = self._configuration(rule, piece)
        return rule, tuple((key, codec.name) for key, codec in configuration.items()), signature

    def _launch(self, key: Any, members: list[tuple[RuleClass, Slice]]) -> list[Launch]:
        """The launches of one configuration, in order: those that average shared slots, then the update."""
        rule, _, signature = key
        return [
            self._call(Launch(graph, executable), [piece for _, piece in members])
            for graph, executable in programs(rule, self._configuration(rule, members[0][1]), signature)
        ]

    def _call(self, launch: Launch, pieces: list[Slice]) -> Launch:
        params: list[Any] = []
        grads: list[Any] = []
        state: list[Any] = []
        scalars: dict[Any, int] = {}
        for piece in pieces:
            operands = self._bind(launch, piece, scalars)
            params.append(operands["param"])
            grads += [operands["grad"]] if "grad" in operands else []
            state += [operands[o.name] for o in launch.state_operands]
        verb = "average" if launch.graph.averages else "update"
        node = self.graph.call_function(
            torch.ops.baoc.fused_update.default,
            (launch.key, params, grads, state, list(scalars)),
            name=f"{verb}_{launch.graph.rule.key}",
        )
        node.meta["baoc"] = launch
        return launch

    def _bind(self, launch: Launch, piece: Slice, scalars: dict[Any, int]) -> dict[str, Any]:
        """Operand name -> node, for one parameter; its numbers go into the launch."""
        graph, rule, index = launch.graph, launch.graph.rule, piece.component.parameters[0]
        name, parameter = self.step.table.short_name(index), self.step.table.parameters[index]
        live_state = self.step.table.state(index)
        nodes: dict[str, Any] = {"param": self._attribute(parameter, name)}
        numbers: dict[str, float] = {}
        varying: dict[str, int] = {}
        sharing: dict[str, Sharing] = {}
        for node in piece.inputs:  # arguments that this step will look up by itself
            role = self.step.roles.get(node)
            if role is not None and role.kind in ("param", "state") and node.op == "placeholder":
                self.bound[node] = self._live(node)
            if role is not None and role.kind == "grad":
                nodes["grad"] = self._input(node)
        created = {key: self._created(piece, key, parameter, graph.configuration[key]) for key in rule.created}
        by_position = {f"input {i}": node for i, node in enumerate(piece.inputs)}
        constants = {f"constant {i}": value for i, value in enumerate(piece.constants)}
        keys = {i.name: i.key for i in rule.inputs}
        for operand in graph.operands:
            key = operand.key
            if operand.source == "part" and key.rsplit(".", 1)[0] in created:
                nodes[operand.name] = created[key.rsplit(".", 1)[0]]
            elif operand.source == "part":
                slot, part = key.rsplit(".", 1)
                codec = graph.configuration[slot]
                tensor = storage_tensors(live_state[slot], codec)[part]
                nodes[operand.name] = self._attribute(tensor, f"{name}_{slot}_{part}")
                if operand.kind == "shared":
                    described = next(p for p in codec.parts if p.name == part)
                    sharing[operand.name] = codec.sharing(described, parameter.shape)
            elif operand.source == "clock":
                nodes[operand.name] = self._attribute(live_state[key].parts["clock"], f"{name}_{key}_clock")
            elif operand.source == "salt":
                numbers[operand.name] = float(live_state[key].salt)
            elif operand.source == "gain":
                numbers[operand.name] = self.session.gain(parameter)
            elif operand.source == "counter":
                nodes[operand.name] = self._attribute(live_state[key], f"{name}_{key}")
            elif operand.source == "scalar" and keys[operand.name] in constants:
                numbers[operand.name] = constants[keys[operand.name]]
            elif operand.source == "scalar":
                scalar = self._scalar(by_position[keys[operand.name]])
                varying[operand.name] = scalars.setdefault(scalar, len(scalars))
        for node, role in piece.component.new_state.items():
            if role.key not in rule.created and not graph.averages:
                self.results[node] = self._attribute(live_state[role.key], f"{name}_{role.key}")
        launch.parameters.append(self.step.table.names[index])
        launch.shapes.append(parameter.shape)
        launch.numbers.append(numbers)
        launch.varying.append(varying)
        launch.sharing.append(sharing)
        return nodes

    def _created(self, piece: Slice, key: str, parameter: Tensor, codec: Codec) -> fx.Node:
        """State that this step makes: allocated by the rewritten graph, in full precision until its slot is decided."""
        node, _ = next(item for item in piece.component.new_state.items() if item[1].key == key)
        dtype = node.meta["example_value"].dtype
        like = self._attribute(parameter, self.step.table.short_name(piece.component.parameters[0]))
        entry = self.graph.call_function(
            new_entry, (like, dtype, codec.name, key, self.session.seed), name=f"new_{key}"
        )
        self.results[node] = entry
        return self.graph.call_function(stored_values, (entry,))

    def _scalar(self, node: fx.Node) -> fx.Node:
        """A 0-dim tensor for a scalar argument, a number that the prelude computed, or a traced number."""
        found = self._input(node)
        example = node.meta.get("example_value")
        if isinstance(example, Tensor):
            return found
        if ("as tensor", node) not in self.nodes:
            self.nodes["as tensor", node] = self.graph.call_function(
                torch.scalar_tensor, (found,), {"dtype": torch.float64}
            )
        return self.nodes["as tensor", node]

    # what is not elementwise

    def _as_traced(self, rule_class: RuleClass, piece: Slice) -> AsTraced:
        """Runs a piece as it was traced, between decoding and encoding its state."""
        piece = slice_component(self.step, piece.component, in_program_order=True)
        names = "_".join(self.step.table.short_name(i) for i in piece.component.parameters[:2])
        runner = AsTraced(piece, rule_class.reason, names, self.inner_backend)
        inputs = []
        for node in piece.inputs:
            role = self.step.roles.get(node)
            if role is not None and role.kind in ("param", "state"):
                live = self._live(node)
                inputs.append(self._attribute(live, self._attribute_name(role, node)))
                if node.op == "placeholder":
                    self.bound[node] = live
            else:
                inputs.append(self._input(node))
        call = self.graph.call_function(runner, (inputs,), name=f"as_traced_{names}")
        call.meta["baoc"] = runner
        for position, node in enumerate(piece.component.new_state):
            self.results[node] = self.graph.call_function(_item, (call, position))
        return runner


def new_entry(parameter: Tensor, dtype: torch.dtype, codec: str, key: str, seed: int) -> Tensor:
    """State that a step creates, to be written by it."""
    return fresh(parameter, dtype, 0.0, codec_named(codec), key, seed)


def stored_values(entry: Tensor) -> Tensor:
    """The full-precision storage of a new entry."""
    return entry.parts["values"] if isinstance(entry, StateTensor) else entry


def _item(values: Any, position: int) -> Any:
    return values[position]


_PROGRAMS: dict[Any, list[tuple[ProgramGraph, Executable]]] = {}


def programs(
    rule: UpdateRule, configuration: Mapping[str, Codec], signature: Signature
) -> list[tuple[ProgramGraph, Executable]]:
    """Composed and lowered once per (rule, configuration, dtypes) in a process."""
    key = (rule.key, tuple((k, c.name) for k, c in configuration.items()), signature)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = [(graph, lower(graph)) for graph in compose_step(rule, configuration, signature)]
    return _PROGRAMS[key]
