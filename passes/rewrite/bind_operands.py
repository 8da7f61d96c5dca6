"""Rewrite: bind the operands of a launch to nodes of the rewritten graph.

Parameters and state become attributes of the new graph. Gradients and changing numbers stay arguments. Fixed numbers
are kept in the launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import Codec, Sharing
from baoc_compile.core.names import identifier
from baoc_compile.core.step_graph import StepGraph
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.passes.rules.extract_rules import Slice
from baoc_compile.state.entries import fresh, storage_tensors
from baoc_compile.state.state_tensor import StateTensor


class OperandBinder:
    """A builder of the rewritten graph, which binds operands to its nodes.

    step: the flat step.
    storage: how every slot is stored.
    graph: the rewritten graph.
    root: the module that holds its attributes.
    nodes: node of the flat graph -> node of the rewritten one.
    attributes: id of a tensor -> the node of its attribute.
    taken: names that a new attribute must not get.
    bound: placeholder of the flat graph -> the tensor that the rewritten graph holds in its place.
    results: returned node of the flat graph -> its node in the rewritten one.
    """

    def __init__(self, step: StepGraph, storage: Storage):
        self.step, self.storage = step, storage
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.nodes: dict[Any, Any] = {}
        self.attributes: dict[int, fx.Node] = {}
        self.taken = {*dir(self.root), *dir(fx.GraphModule)}
        self.bound: dict[fx.Node, Any] = {}
        self.results: dict[fx.Node, Any] = {}

    def live(self, node: fx.Node) -> Any:
        """Return the current tensor of an input that is a parameter or its state."""
        role = self.step.roles[node]
        if role.kind == "param":
            return self.step.table.parameters[role.parameter]
        return self.step.table.state(role.parameter).get(role.key)

    def input(self, node: fx.Node) -> Any:
        """Return the node of an input in the rewritten graph: its argument, or an attribute."""
        if node in self.nodes:
            return self.nodes[node]
        if node.op == "get_attr":
            role = self.step.roles[node]
            value = self.live(node) if role.kind in ("param", "state") else self.step.attributes[str(node.target)]
            self.nodes[node] = self.attribute(value, self.attribute_name(role, node))
        return self.nodes[node]

    def attribute_name(self, role: Any, node: fx.Node) -> str:
        """Return the preferred name for the attribute of an input."""
        if role.parameter < 0:
            return node.name
        return f"{self.step.table.short_name(role.parameter)}_{role.key}"

    def attribute(self, value: Any, name: str) -> fx.Node:
        """Return the attribute that holds `value`; a new one is named after `name`, made a unique identifier."""
        if id(value) not in self.attributes:
            name = identifier(name, self.taken)
            self.taken.add(name)
            object.__setattr__(self.root, name, value)
            self.attributes[id(value)] = self.graph.get_attr(name)
        return self.attributes[id(value)]

    def bind(self, launch: Launch, piece: Slice, scalars: dict[Any, int]) -> dict[str, Any]:
        """Return the node of every operand of one slice, by operand name, and add the slice to the launch.

        launch: gets the slice's parameter and numbers.
        piece: the slice.
        scalars: changing number -> its position in the launch's list; gets the slice's numbers.
        """
        graph, rule, index = launch.graph, launch.graph.rule, piece.component.parameters[0]
        name, parameter = self.step.table.short_name(index), self.step.table.parameters[index]
        live_state = self.step.table.state(index)
        nodes: dict[str, Any] = {"param": self.attribute(parameter, name)}
        numbers: dict[str, float] = {}
        varying: dict[str, int] = {}
        sharing: dict[str, Sharing] = {}
        for node in piece.inputs:  # parameters and state that the rewritten step holds itself
            role = self.step.roles.get(node)
            if role is not None and role.kind in ("param", "state") and node.op == "placeholder":
                self.bound[node] = self.live(node)
            if role is not None and role.kind == "grad":
                nodes["grad"] = self.input(node)
        created = {key: self._created(piece, key, parameter, graph.configuration[key]) for key in rule.created}
        for operand in graph.operands:
            slot, part, rule_input = operand.slot, operand.part, operand.input
            if part is not None and slot in created:
                nodes[operand.name] = created[slot]
            elif part is not None:
                codec = graph.configuration[slot]
                tensor = storage_tensors(live_state[slot], codec)[part.name]
                nodes[operand.name] = self.attribute(tensor, f"{name}_{slot}_{part.name}")
                if operand.per == "shared":
                    sharing[operand.name] = codec.sharing(part, parameter.shape)
            elif operand.source == "clock":
                nodes[operand.name] = self.attribute(live_state[slot].parts["clock"], f"{name}_{slot}_clock")
            elif operand.source == "salt":
                numbers[operand.name] = float(live_state[slot].salt)
            elif operand.source == "update_scale":
                numbers[operand.name] = self.storage.of(index).update_scale
            elif operand.source == "counter" and rule_input is not None:
                nodes[operand.name] = self.attribute(live_state[rule_input.key], f"{name}_{rule_input.key}")
            elif rule_input is not None and rule_input.origin == "constant":
                numbers[operand.name] = piece.constants[rule_input.position]
            elif rule_input is not None:
                scalar = self._scalar(piece.inputs[rule_input.position])
                varying[operand.name] = scalars.setdefault(scalar, len(scalars))
        for node, role in piece.component.new_state.items():
            if role.key not in rule.created and not graph.averages:
                self.results[node] = self.attribute(live_state[role.key], f"{name}_{role.key}")
        launch.parameters.append(self.step.table.names[index])
        launch.indices.append(index)
        launch.blocks.append(self.storage.of(index).block)
        launch.shapes.append(parameter.shape)
        launch.numbers.append(numbers)
        launch.varying.append(varying)
        launch.sharing.append(sharing)
        return nodes

    def _created(self, piece: Slice, key: str, parameter: Tensor, codec: Codec) -> fx.Node:
        """Add nodes that allocate the state that this step creates, in full precision until its slot has a codec."""
        node, _ = next(item for item in piece.component.new_state.items() if item[1].key == key)
        dtype = node.meta["example_value"].dtype
        like = self.attribute(parameter, self.step.table.short_name(piece.component.parameters[0]))
        entry = self.graph.call_function(
            new_entry, (like, dtype, codec.name, key, self.storage.seed), name=f"new_{identifier(key)}"
        )
        self.results[node] = entry
        return self.graph.call_function(stored_values, (entry,))

    def _scalar(self, node: fx.Node) -> fx.Node:
        """Return a 0-dim tensor for a scalar: an argument, a number from the prelude, or a traced number."""
        found = self.input(node)
        example = node.meta.get("example_value")
        if isinstance(example, Tensor):
            return found
        if ("as tensor", node) not in self.nodes:
            self.nodes["as tensor", node] = self.graph.call_function(
                torch.scalar_tensor, (found,), {"dtype": torch.float64}
            )
        return self.nodes["as tensor", node]


def new_entry(parameter: Tensor, dtype: torch.dtype, codec: str, key: str, seed: int) -> Tensor:
    """Allocate a state entry that the step will write."""
    return fresh(parameter, dtype, 0.0, codec_named(codec), key, seed)


def stored_values(entry: Tensor) -> Tensor:
    """Return the tensor that stores the full-precision values of a new entry."""
    return entry.parts["values"] if isinstance(entry, StateTensor) else entry
