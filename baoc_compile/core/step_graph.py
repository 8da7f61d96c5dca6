"""The traced optimizer step as a typed object: a flat graph in which every tensor has a role."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from baoc_compile.core.errors import StateError
from baoc_compile.core.names import identifier

RoleKind = Literal["param", "grad", "state", "scalar"]


@dataclass(frozen=True)
class InputRole:
    """What a graph input is to the optimizer.

    `parameter` indexes `ParameterTable.parameters`; -1 for scalars that belong to no parameter. `key` is the state key, or
    the name of a scalar.
    """

    kind: RoleKind
    parameter: int = -1
    key: str = ""


class ParameterTable:
    """The parameters of an optimizer in its own order (group after group, as in `state_dict`).

    optimizer: referred to weakly, so that whatever keeps a table does not keep an optimizer alive.
    parameters, names, groups: by index; `groups[i]` is the number of the parameter group.
    """

    def __init__(
        self,
        optimizer: Any,
        parameters: Sequence[torch.Tensor] = (),
        names: Sequence[str] = (),
        groups: Sequence[int] = (),
    ):
        self._optimizer = weakref.ref(optimizer)
        self.parameters, self.names, self.groups = list(parameters), list(names), list(groups)

    @classmethod
    def of(cls, optimizer: Any, model: torch.nn.Module | None = None) -> ParameterTable:
        """Names come from `model`, else from `param_groups[i]["param_names"]`, else are `group.position`."""
        named = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
        table = cls(optimizer)
        for group_index, group in enumerate(optimizer.param_groups):
            given = group.get("param_names") or []
            for position, parameter in enumerate(group["params"]):
                default = (
                    given[position] if position < len(given) else f"param_groups[{group_index}].params[{position}]"
                )
                table.parameters.append(parameter)
                table.names.append(named.get(id(parameter), default))
                table.groups.append(group_index)
        return table

    @property
    def optimizer(self) -> Any:
        """Raises StateError if nobody else holds on to the optimizer any more."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise StateError("the optimizer of this step is gone: keep a reference to it as long as you step it")
        return optimizer

    def state(self, index: int) -> dict[str, Any]:
        """The optimizer's own state of one parameter; empty if it has none yet."""
        return self.optimizer.state.get(self.parameters[index], {})

    def short_name(self, index: int) -> str:
        """An identifier; two parameters may have the same."""
        return identifier(self.names[index])


@dataclass
class StepGraph:
    """One traced step. `attributes`: of the graph's attributes those that belong to no parameter.

    `roles` covers every placeholder and `get_attr` node that is an optimizer input. `new_state` names the outputs
    that the caller will store as new state tensors. `arguments[i]` is the placeholder of call argument i.
    """

    table: ParameterTable
    graph: fx.Graph
    attributes: dict[str, Any]
    roles: dict[fx.Node, InputRole]
    new_state: dict[fx.Node, InputRole]
    arguments: list[fx.Node]

    @property
    def outputs(self) -> list[Any]:
        """The flat list of what the graph returns."""
        (returned,) = self.graph.output_node().args
        return list(returned) if isinstance(returned, (list, tuple)) else [returned]
