"""Rewrite: the traced step -> prelude, one `fused_update` node per program, and what has to run as traced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from baoc_compile.kernels.catalogue import full_precision
from baoc_compile.kernels.fused_update import Launch
from baoc_compile.kernels.lower import lower_all
from baoc_compile.passes.bind_operands import OperandBinder
from baoc_compile.passes.compose_program import compose_step
from baoc_compile.passes.extract_rules import RuleClass, Slice, slice_component
from baoc_compile.passes.run_as_traced import AsTraced
from torch import fx

from baoc_compile.codec import WEIGHT_KEY, Codec
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


class _Rewriter(OperandBinder):
    def __init__(self, step: StepGraph, session: Session, inner_backend: Any):
        super().__init__(step, session)
        self.inner_backend = inner_backend

    def rewrite(self, prelude: list[fx.Node], classes: list[RuleClass]) -> Rewritten:
        for node in self.step.arguments:
            self.nodes[node] = self.graph.placeholder(node.name)
        for node in prelude:
            for i in node.all_input_nodes:
                self.input(i)
            self.nodes[node] = self.graph.node_copy(node, lambda old: self.nodes[old])
        groups: dict[Any, list[tuple[RuleClass, Slice]]] = defaultdict(list)
        traced: list[AsTraced] = []
        for rule_class in classes:
            for piece in rule_class.members:
                if rule_class.rule is None:
                    traced.append(self._as_traced(rule_class, piece))
                else:
                    groups[self._program_key(rule_class.rule, piece)].append((rule_class, piece))
        lowered = programs([(rule, self._configuration(rule, m[0][1]), sig) for (rule, _, sig), m in groups.items()])
        launches = [
            self._call(Launch(graph, executable), [piece for _, piece in members])
            for members, made in zip(groups.values(), lowered, strict=True)
            for graph, executable in made
        ]
        self.graph.output(
            fx.map_arg(tuple(self.step.outputs), lambda n: self.results[n] if n in self.results else self.input(n))
        )
        gm = fx.GraphModule(self.root, self.graph, class_name="RewrittenStep")
        return Rewritten(gm, launches, traced, self.bound)

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
        signature = Signature(str(parameter.device), parameter.dtype, grad_dtype, counters, has_gain)
        configuration = self._configuration(rule, piece)
        return rule, tuple((key, codec.name) for key, codec in configuration.items()), signature

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
                live = self.live(node)
                inputs.append(self.attribute(live, self.attribute_name(role, node)))
                if node.op == "placeholder":
                    self.bound[node] = live
            else:
                inputs.append(self.input(node))
        call = self.graph.call_function(runner, (inputs,), name=f"as_traced_{names}")
        call.meta["baoc"] = runner
        for position, node in enumerate(piece.component.new_state):
            self.results[node] = self.graph.call_function(_item, (call, position))
        return runner


def _item(values: Any, position: int) -> Any:
    return values[position]


_PROGRAMS: dict[Any, list[tuple[ProgramGraph, Executable]]] = {}


def programs(
    wanted: Sequence[tuple[UpdateRule, Mapping[str, Codec], Signature]],
) -> list[list[tuple[ProgramGraph, Executable]]]:
    """For every (rule, configuration, dtypes) its programs in the order they are launched in: those that average shared
    slots, then the update. Composed and lowered once in a process."""
    keys = [
        (rule.key, tuple((k, c.name) for k, c in configuration.items()), signature)
        for rule, configuration, signature in wanted
    ]
    missing = {key: compose_step(*what) for key, what in zip(keys, wanted, strict=True) if key not in _PROGRAMS}
    executables = iter(lower_all([graph for graphs in missing.values() for graph in graphs]))
    for key, graphs in missing.items():
        _PROGRAMS[key] = [(graph, next(executables)) for graph in graphs]
    return [_PROGRAMS[key] for key in keys]
