"""The parameters of an optimizer, and what a tensor is to it."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from baoc_compile.core.errors import StateError
from baoc_compile.core.names import identifier
from baoc_compile.core.shard import LocalEntries, Shard, local_of, whole_of
from baoc_compile.core.torch_private import group_of_replicas

RoleKind = Literal["param", "grad", "state", "nested", "scalar"]


@dataclass(frozen=True)
class InputRole:
    """What a tensor from before a step is to the optimizer.

    kind: "param", "grad", "state", "nested" for tensors in containers of state, or "scalar".
    parameter: index in `ParameterTable.parameters`; -1 for scalars that belong to no parameter.
    key: the state key, the path of keys of a nested tensor, or the name of a scalar.
    source: where a nested tensor or a scalar is kept.
    """

    kind: RoleKind
    parameter: int = -1
    key: Any = ""
    source: Any = None


class ParameterTable:
    """The parameters of an optimizer in its own order: group after group, as in `state_dict`.

    What decides and what records takes the optimizer's own parameters; what binds, converts and launches takes `local`.

    optimizer: held weakly, so that a table does not keep an optimizer alive.
    parameters: the parameters, by index.
    wholes: the same; for a table of local tensors, the optimizer's own parameters.
    names: their names, by index.
    groups: the number of each parameter's group, by index.
    replicas: the group of the processes that hold the same parameters (DistributedDataParallel); None if none is known.
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
        self.wholes = self.parameters
        self.replicas: Any = None

    @classmethod
    def of(cls, optimizer: Any, model: torch.nn.Module | None = None) -> ParameterTable:
        """Return the table of an optimizer.

        A name comes from `model`, else from the group's `param_names`, else it is "param_groups[i].params[j]".
        """
        named = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
        table = cls(optimizer)
        table.replicas = group_of_replicas(model)
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

    def some(self, indices: Sequence[int]) -> ParameterTable:
        """Return the table of some of the parameters, which are numbered anew."""
        parameters, names, groups = self.parameters, self.names, self.groups
        chosen = [parameters[i] for i in indices], [names[i] for i in indices], [groups[i] for i in indices]
        return ParameterTable(self.optimizer, *chosen)

    @property
    def optimizer(self) -> Any:
        """The optimizer. Raises StateError if it has been freed."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise StateError("the optimizer of this step is gone: keep a reference to it as long as you step it")
        return optimizer

    @property
    def local(self) -> ParameterTable:
        """The table of what this process holds: local tensors in place of DTensors, among parameters and state."""
        parameters = [local_of(whole) for whole in self.wholes]
        if all(local is whole for local, whole in zip(parameters, self.wholes, strict=True)):
            return self
        table = ParameterTable(self.optimizer, parameters, self.names, self.groups)
        table.wholes = self.wholes
        return table

    def state(self, index: int) -> MutableMapping[Any, Any]:
        """Return the optimizer's own state of one parameter; empty if there is none yet.

        In a table of local tensors, it is seen entry by entry as this process holds it.
        """
        whole = self.wholes[index]
        entries = self.optimizer.state.get(whole, {})
        return entries if whole is self.parameters[index] else LocalEntries(whole, entries)

    def first_lane(self, index: int) -> int:
        """Return the number of the first lane that this process holds of a parameter, among those of the whole."""
        return Shard.of(self.wholes[index]).first_lane

    def put(self, index: int, key: Any, value: Any) -> None:
        """Give the optimizer's state of one parameter an entry."""
        whole, state = self.wholes[index], self.optimizer.state
        if whole not in state:
            state[whole] = {}
        state[whole][key] = whole_of(whole, value)

    def short_name(self, index: int) -> str:
        """Return the parameter's name as an identifier, which need not be unique."""
        return identifier(self.names[index])
