"""Discover which state an optimizer creates for a parameter, its first values, and the update rule.

A miniature of the optimizer (same class, same hyperparameters, one parameter of a few elements) takes one step from
empty state, and a dictionary records the first value assigned to each entry. A second miniature starts from these
values and takes the same step. Only if both end in the same state may the state be filled in before training starts.
The second step is recorded operation by operation and read like a traced step.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import Slot
from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.step_graph import InputRole, ParameterTable, StepGraph
from baoc_compile.core.torch_private import hooks_of
from baoc_compile.kernels.dialect.recorder import CallRecorder
from baoc_compile.passes.capture.split_components import split_components
from baoc_compile.passes.capture.unbatch_foreach import unbatch_foreach
from baoc_compile.passes.rules.extract_rules import extract_rules
from baoc_compile.state.state_tensor import StateTensor


@dataclass(frozen=True)
class Filled:
    """A tensor of the parameter's shape with every element equal.

    value: the value of every element.
    dtype: the tensor's type.
    """

    value: float
    dtype: torch.dtype


@dataclass
class StateSchema:
    """The state of one parameter, as discovered.

    first: state key -> first value: `Filled`, or the entry itself (a counter, a Python number). None if a step from
        these values differs from a step from empty state, so that they must not be filled in.
    rule: the update rule; None if the step is not elementwise.
    reason: why there is no rule; may be empty.
    """

    first: dict[str, Any] | None
    rule: UpdateRule | None
    reason: str = ""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots that need a codec: the rule's, or every filled tensor of a step that is not elementwise."""
        if self.rule is not None:
            negative = {k for k, v in (self.first or {}).items() if isinstance(v, Filled) and v.value < 0.0}
            return tuple(replace(s, nonnegative=False) if s.key in negative else s for s in self.rule.slots)
        entries = (self.first or {}).items()
        return tuple(Slot(key) for key, entry in entries if isinstance(entry, Filled) and isinstance(key, str))


def discover_state(table: ParameterTable) -> list[StateSchema]:
    """Return one schema for each parameter; those of one group, rank, type and device share one.

    Raises UnsupportedStep if the miniature's step fails.
    """
    found: dict[Any, StateSchema] = {}
    schemas = []
    for index, parameter in enumerate(table.parameters):
        group = table.groups[index]
        shape = tuple(3 + i for i in range(parameter.ndim)) or (3,)  # several elements, all sizes different
        kind = (group, shape, parameter.dtype, parameter.device)
        if kind not in found:
            found[kind] = _discover(table.optimizer, group, shape, parameter, table.state(index))
        schemas.append(found[kind])
    return schemas


class _FirstAssignments(dict):
    """A state dictionary that keeps a copy of the first value of every key."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        self.first.setdefault(key, value.clone() if isinstance(value, Tensor) else value)
        super().__setitem__(key, value)


def _discover(
    optimizer: Any, group: int, shape: tuple[int, ...], parameter: Tensor, present: dict[str, Any]
) -> StateSchema:
    """`present`: the parameter's state. A step that needs it, since the constructor made it, is tried from its like."""
    generator = torch.Generator().manual_seed(0)
    value, grad = (
        torch.randn(shape, generator=generator).to(dtype=parameter.dtype, device=parameter.device) for _ in range(2)
    )
    try:
        empty, tried = _miniature(optimizer, group, value, grad, defaultdict(_FirstAssignments))
        try:
            _step(empty)
        except Exception:
            if not present:
                raise
            if not parameter.ndim:  # a counter of several elements would be none
                shape, value, grad = (), value[0], grad[0]
            empty, tried = _miniature(optimizer, group, value, grad, defaultdict(_FirstAssignments))
            for key, entry in _first_values(present, tuple(parameter.shape)).items():
                empty.state[tried][key] = _materialize(entry, value)
            _step(empty)
        recorded = empty.state.get(tried, _FirstAssignments())
        if not isinstance(recorded, _FirstAssignments):  # the step made the dictionary itself
            return StateSchema(None, None)
        first = _first_values(recorded.first, shape)
        odd = [k for k, v in first.items() if isinstance(v, Tensor) and v.ndim]
        if odd:
            reason = f"only state of the parameter's own shape can be compressed, and {odd[0]!r} has another one"
            return StateSchema(None, None, reason)
        state = {key: _materialize(entry, value) for key, entry in first.items()}
        before = dict(state)
        filled, again = _miniature(optimizer, group, value, grad, defaultdict(dict))
        if state:
            filled.state[again] = state
        with CallRecorder() as recorder:
            _step(filled)
    except Exception as error:
        raise UnsupportedStep(
            f"{type(optimizer).__name__}.step() cannot be tried on a small parameter ({type(error).__name__}: {error}); "
            'state can\'t be filled in ahead. Use torch.compile(step, backend="baoc") without prepare()'
        ) from error
    same = torch.equal(tried.detach(), again.detach()) and _same_state(recorded, filled.state.get(again, {}))
    rule, reason = _read_rule(recorder, filled, again, grad, before)
    return StateSchema(first if same else None, rule, reason)


def _miniature(optimizer: Any, group: int, value: Tensor, grad: Tensor, state: Any) -> tuple[Any, Tensor]:
    """Copy the optimizer with one small parameter in one of its groups; the copy shares nothing that a step changes."""
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = grad
    small = object.__new__(type(optimizer))  # copy.copy would lose attributes: torch copies only state and groups
    small.__dict__ |= {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(optimizer).items()}
    small.state = state
    options = {
        k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.param_groups[group].items() if k != "params"
    }
    if "foreach" in options:
        options["foreach"] = False
    small.param_groups = [{**options, "params": [parameter]}]
    for name, hooks in hooks_of(optimizer).items():
        setattr(small, name, type(hooks)())
    return small, parameter


def _step(optimizer: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        type(optimizer).step(optimizer)


def _first_values(assigned: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Replace tensors of the parameter's shape by the one number that they hold.

    A tensor that holds several numbers (a copied gradient), or is stored by a codec, becomes 0.
    """
    first: dict[str, Any] = {}
    for key, value in assigned.items():
        if isinstance(value, StateTensor):
            first[key] = Filled(0.0, value.dtype)
        elif isinstance(value, Tensor) and tuple(value.shape) == shape:
            flat = value.detach().reshape(-1)
            first[key] = Filled(float(flat[0]) if bool((flat == flat[0]).all()) else 0.0, value.dtype)
        else:
            first[key] = value
    return first


def _materialize(entry: Any, like: Tensor) -> Any:
    if isinstance(entry, Filled):
        return torch.full_like(like, entry.value, dtype=entry.dtype)
    return entry.clone() if isinstance(entry, Tensor) else copy.deepcopy(entry)


def _same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in a
    )


def _read_rule(
    recorder: CallRecorder, optimizer: Any, parameter: Tensor, grad: Tensor, before: dict[str, Any]
) -> tuple[UpdateRule | None, str]:
    """Return the rule of a recorded step, or the reason why there is none. `before`: the state before the step."""
    table = ParameterTable.of(optimizer)
    known = {id(parameter): InputRole("param", 0), id(grad): InputRole("grad", 0)}
    known |= {id(v): InputRole("state", 0, k) for k, v in before.items() if isinstance(v, Tensor)}
    replaced = {
        recorder.nodes[id(v)]: InputRole("state", 0, k)
        for k, v in table.state(0).items()
        if isinstance(v, Tensor) and v is not before.get(k) and id(v) in recorder.nodes
    }
    placeholders = [n for n in recorder.graph.nodes if n.op == "placeholder"]
    first = next((n for n in recorder.graph.nodes if n.op != "placeholder"), None)
    for node in placeholders:
        if first is not None:
            first.prepend(node)
    recorder.graph.output(tuple(replaced))
    flat = unbatch_foreach(fx.GraphModule(torch.nn.Module(), recorder.graph))
    roles = {
        flat.inputs[node]: known.get(id(node.meta["example_value"]), InputRole("scalar", key=node.name))
        for node in placeholders
    }
    step = StepGraph(
        table,
        flat.graph,
        {},
        roles,
        {flat.returned[node]: role for node, role in replaced.items()},
        [],
    )
    try:
        classes = extract_rules(step, split_components(step).components)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return (
        (classes[0].rule, classes[0].reason)
        if len(classes) == 1
        else (None, f"{len(classes)} update rules for one parameter")
    )
