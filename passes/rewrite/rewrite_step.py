"""Rewrite: turn the flat step into a prelude, one `fused_update` node per program, and fallbacks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from baoc_compile.core.step_graph import StepGraph
from baoc_compile.core.storage import Storage
from baoc_compile.kernels.launch.fused_update import Launch
from baoc_compile.passes.programs.make_programs import Need, need_of, programs_of
from baoc_compile.passes.rewrite.bind_operands import OperandBinder
from baoc_compile.passes.rewrite.run_fallback import Fallback
from baoc_compile.passes.rules.extract_rules import RuleClass, Slice, slice_component


@dataclass
class Rewritten:
    """A rewritten step.

    gm: takes the traced step's arguments and returns its outputs.
    launches: the launches, in order.
    fallbacks: the pieces that are not elementwise.
    bound: placeholder of the flat step -> the tensor that `gm` holds in its place.
    """

    gm: fx.GraphModule
    launches: list[Launch]
    fallbacks: list[Fallback]
    bound: dict[fx.Node, Any] = field(default_factory=dict)


def rewrite_step(
    step: StepGraph, prelude: list[fx.Node], classes: list[RuleClass], storage: Storage, inner_backend: Any
) -> Rewritten:
    """Rewrite a step over the tensors that are in `optimizer.state` now. Migrate the state first.

    step: the flat step.
    prelude: the prelude's calls.
    classes: the classes of components, with their rules.
    storage: how every slot is stored.
    inner_backend: the backend that compiles the fallbacks.
    """
    return _Rewriter(step, storage, inner_backend).rewrite(prelude, classes)


class _Rewriter(OperandBinder):
    def __init__(self, step: StepGraph, storage: Storage, inner_backend: Any):
        super().__init__(step, storage)
        self.inner_backend = inner_backend

    def rewrite(self, prelude: list[fx.Node], classes: list[RuleClass]) -> Rewritten:
        for node in self.step.arguments:
            self.nodes[node] = self.graph.placeholder(node.name)
        for node in prelude:
            for i in node.all_input_nodes:
                self.input(i)
            self.nodes[node] = self.graph.node_copy(node, lambda old: self.nodes[old])
        groups: dict[Need, list[Slice]] = defaultdict(list)
        traced: list[Fallback] = []
        for rule_class in classes:
            for piece in rule_class.members:
                if rule_class.rule is None:
                    traced.append(self._fallback(rule_class, piece))
                else:
                    groups[need_of(self.step, self.storage, rule_class.rule, piece)].append(piece)
        launches = [
            self._call(Launch(graph, executable), pieces)
            for pieces, made in zip(groups.values(), programs_of(groups), strict=True)
            for graph, executable in made
        ]
        self.graph.output(
            fx.map_arg(tuple(self.step.outputs), lambda n: self.results[n] if n in self.results else self.input(n))
        )
        gm = fx.GraphModule(self.root, self.graph, class_name="RewrittenStep")
        return Rewritten(gm, launches, traced, self.bound)

    def _call(self, launch: Launch, pieces: list[Slice]) -> Launch:
        params: list[Any] = []
        grads: list[Any] = []
        state: list[Any] = []
        scalars: dict[Any, int] = {}
        for piece in pieces:
            operands = self.bind(launch, piece, scalars)
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

    # Fallbacks

    def _fallback(self, rule_class: RuleClass, piece: Slice) -> Fallback:
        """Add a call that runs a piece as traced, between decoding and encoding its state."""
        piece = slice_component(self.step, piece.component, in_program_order=True)
        names = "_".join(self.step.table.short_name(i) for i in piece.component.parameters[:2])
        runner = Fallback(piece, rule_class.reason, names, self.inner_backend)
        inputs = []
        for node in piece.inputs:
            role = self.step.roles.get(node)
            if role is not None and role.kind in ("param", "state"):
                live = self.live(node)
                inputs.append(self.attribute(live, self.attribute_name(role, node)))
                if node.op == "placeholder":
                    self.bound[node] = live
            else:
                inputs.append(self.input(node))
        call = self.graph.call_function(runner, (inputs,), name=f"fallback_{names}")
        call.meta["baoc"] = runner
        for position, node in enumerate(piece.component.new_state):
            self.results[node] = self.graph.call_function(_item, (call, position))
        return runner


def _item(values: Any, position: int) -> Any:
    return values[position]
