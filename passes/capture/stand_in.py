"""Stand-in: an optimizer of the same class and state, without memory, on which its step is run to be recorded.

Parameters, gradients and state are tensors of the same shape and type on the meta device. Numbers are traced numbers.
0-dim tensors on the host keep their values. Everything else is a deep copy.
"""

from __future__ import annotations

import builtins
import copy
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.step_graph import InputRole, ParameterTable
from baoc_compile.passes.capture.expressions import Source
from baoc_compile.passes.capture.recorder import Recorder
from baoc_compile.passes.capture.recording import Beginning, Value, ValueGroup
from baoc_compile.passes.capture.traced_numbers import is_traced, plain_value, traced

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id

#: Attributes of an optimizer that are not part of its step: our own, hooks, and what schedulers and scalers leave there.
LEFT_OUT = frozenset(
    "state param_groups step _baoc_session __getstate__ _opt_called _zero_grad_profile_name _warned_capturable_if_run_uncaptured "
    "_step_supports_amp_scaling grad_scale found_inf profile_hook_step _step_count".split()
)
#: Options under which torch's optimizers compute the same in another way, or elsewhere.
FUSED = "fused"


def is_left_out(name: str) -> bool:
    """Return whether an attribute of this name is left out of stand-ins."""
    return name in LEFT_OUT or name.endswith("_hooks")


class StandIn:
    """A stand-in of an optimizer, and what its parts stand for.

    table: the real optimizer's parameters.
    recorder: gets every stand-in.
    present: indices of the parameters that have a gradient.
    before: the stand-in of the step before, to be copied instead of the optimizer.
    elements: (parameter index, state key) of 0-dim state on the host that has elements rather than numbers.

    optimizer: the bare object on which the step is run.
    parameters: the stand-ins of the parameters, by index.
    placed: source -> the stand-in, number or other object that was put there.
    constants: see `constants_of`.
    """

    def __init__(
        self,
        table: ParameterTable,
        recorder: Recorder,
        present: frozenset[int],
        elements: frozenset[tuple[int, Any]],
        before: StandIn | None = None,
    ):
        self.table, self.recorder, self.trace = table, recorder, recorder.trace
        self._elements, self._before = elements, before
        #: What is copied: the real optimizer, or the stand-in as its step left it.
        self.original = table if before is None else before.as_table()
        self.constants = constants_of(self.original)
        self._index = {id(p): i for i, p in enumerate(self.original.parameters)}
        self._of: dict[int, Any] = {}  # id of a real object -> its copy
        self._real: dict[int, int] = {}  # id of a stand-in parameter -> id of the real one
        self._at: dict[int, int] = {}  # id of a stand-in parameter -> its index
        self.placed: dict[Source, Any] = {}
        self._kept: list[Any] = []
        self.groups_of: list[ValueGroup] = []
        self.parameters = [self._parameter(i, i in present) for i in range(len(table.parameters))]
        self.optimizer = self._optimizer(self.original.optimizer)

    def as_table(self) -> ParameterTable:
        """Return the stand-in's parameters, and its optimizer."""
        return ParameterTable(self.optimizer, self.parameters, self.table.names, self.table.groups)

    def real_id(self, value: Any) -> int:
        """Return the id of the parameter that a stand-in stands for; any other object's own."""
        return self._real.get(id(value), id(value))

    def index_of(self, parameter: Any) -> int | None:
        """Return the index of a stand-in parameter; None for any other object."""
        return self._at.get(id(parameter))

    # tensors

    def _parameter(self, index: int, is_present: bool) -> Tensor:
        real, device = self.original.parameters[index], self.table.parameters[index].device
        group = ValueGroup({index})
        self.groups_of.append(group)
        tensor = _meta(real)
        parameter = (
            torch.nn.Parameter(tensor, requires_grad=real.requires_grad)
            if isinstance(real, torch.nn.Parameter)
            else tensor.requires_grad_(real.requires_grad)
        )
        self.recorder.enter(parameter, Value(real.shape, real.dtype, InputRole("param", index), None, group), device)
        if is_present:
            grad = _meta(real if real.grad is None else real.grad)
            parameter.grad = grad
            self.recorder.enter(grad, Value(grad.shape, grad.dtype, InputRole("grad", index), None, group), device)
        self._of[id(real)] = parameter
        self._at[id(parameter)] = index
        self._real[id(parameter)] = id(self.table.parameters[index])
        return parameter

    def _state_tensor(self, index: int, key: Any, real: Tensor) -> Tensor:
        source = Source("state", (key,), index)
        if is_host_number(real) and (index, key) not in self._elements:
            return self._host_number(real, source)
        tensor = _meta(real)
        value = Value(real.shape, real.dtype, InputRole("state", index, key), None, self.groups_of[index])
        self.recorder.enter(tensor, value, self._device_of(real))
        self.placed[source] = tensor
        return tensor

    def _device_of(self, tensor: Tensor) -> torch.device:
        """Return the device of the real tensor."""
        return tensor.device if self._before is None else self._before.recorder.devices.get(id(tensor), tensor.device)

    def _host_number(self, real: Tensor, source: Source) -> Tensor:
        tensor = real.detach().clone()
        self.recorder.enter_number(tensor, self.trace.of_source(replace(source, is_tensor=True), tensor.item()), source)
        self.placed[source] = tensor
        self._kept.append(tensor)
        return tensor

    # the optimizer

    def _optimizer(self, real: Any) -> Any:
        optimizer = object.__new__(type(real))
        attributes = vars(optimizer)
        self._of[id(real)] = optimizer
        groups = []
        for g, group in enumerate(real.param_groups):
            made: dict[str, Any] = {}
            for key, value in group.items():
                if key == "params":
                    made[key] = [self._of[id(p)] for p in value]
                elif key == FUSED:
                    made[key] = value and False
                else:
                    made[key] = self._copied(value, "group", (g, key))
            groups.append(made)
        attributes["param_groups"] = groups
        attributes["state"] = self._state(real.state)
        for name, value in vars(real).items():
            if name.endswith("_hooks"):
                attributes[name] = type(value)()
            elif not is_left_out(name):
                attributes[name] = self._copied(value, "attribute", (name,))
        return optimizer

    def _state(self, real: Any) -> Any:
        state: Any = _State(self)
        for parameter, entries in real.items():
            index = self._index.get(id(parameter))
            if index is None:
                if isinstance(parameter, Tensor):
                    continue  # a parameter that was removed
                state[parameter] = self._copied(entries, "attribute", ("state", parameter))
                continue
            if not isinstance(entries, dict):
                raise UnsupportedStep(f"the state of {self.table.names[index]} is no dictionary")
            made = StateEntries(index, self)
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    dict.__setitem__(made, key, self._state_tensor(index, key, value))
                else:
                    dict.__setitem__(made, key, self._copied(value, "state", (key,), index))
            dict.__setitem__(state, self._of[id(parameter)], made)
        return state

    def _copied(self, value: Any, kind: Any, path: tuple[Any, ...], parameter: int = -1) -> Any:
        """Return a copy of a number, a container or another object."""
        if id(value) in self._of:
            return self._of[id(value)]
        source = Source(kind, path, parameter)
        if type(value) in (int, float) or is_traced(value):
            number = traced(self.trace, self.trace.of_source(source, plain_value(value)), plain_value(value))
            self.placed[source] = number
            return number
        if isinstance(value, Tensor):
            return self._other_tensor(value, source)
        if value is None or isinstance(value, (bool, str, bytes, type, torch.dtype, torch.device, torch.Size)):
            self.placed[source] = value
            return value
        if isinstance(value, (FunctionType, BuiltinFunctionType, ModuleType)):
            self.placed[source] = value
            return value
        if isinstance(value, MethodType):
            bound = MethodType(value.__func__, self._copied(value.__self__, kind, (*path, "__self__"), parameter))
            self.placed[source] = bound
            return bound
        if type(value) in (dict, OrderedDict, defaultdict):
            made: Any = defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
            self._remember(value, made)
            for key, entry in value.items():
                at = ("parameter", self._index[id(key)]) if id(key) in self._index else key
                made[self._of.get(id(key), key)] = self._copied(entry, kind, (*path, at), parameter)
            return made
        if type(value) is list:
            made = self._remember(value, [])
            made += [self._copied(entry, kind, (*path, i), parameter) for i, entry in enumerate(value)]
            return made
        if type(value) is tuple:
            return tuple(self._copied(entry, kind, (*path, i), parameter) for i, entry in enumerate(value))
        if isinstance(value, torch.optim.Optimizer):
            raise UnsupportedStep(f"it steps another optimizer ({type(value).__name__})")
        try:
            made = self._remember(value, copy.deepcopy(value, dict(self._of)))
            self.placed[source] = made
            return made
        except Exception as reason:
            raise UnsupportedStep(f"its attribute {path[0]!r} can't be copied ({reason})") from reason

    def _remember(self, value: Any, made: Any) -> Any:
        self._of[id(value)] = made
        self._kept.append((value, made))
        return made

    def _other_tensor(self, real: Tensor, source: Source) -> Tensor:
        """Return the stand-in of a tensor in a group or an attribute."""
        if is_host_number(real):
            return self._remember(real, self._host_number(real, source))
        tensor = _meta(real)
        role = InputRole("scalar", key=str(source), source=source)
        self.recorder.enter(tensor, Value(real.shape, real.dtype, role), self._device_of(real))
        self.placed[source] = tensor
        return self._remember(real, tensor)


class StateEntries(dict):
    """The state of one stand-in parameter.

    first: what the step assigned first to each key that it made: a tensor, or a `Beginning`. What the step reads of a
        number from then on is the entry, not the number that it assigned: later steps read it in the same way.
    """

    def __init__(self, index: int, stand_in: StandIn):
        super().__init__()
        self.first: dict[Any, Any] = {}
        self._index, self._stand_in = index, weakref.ref(stand_in)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key not in self:
            value = self._enter(key, value)
        super().__setitem__(key, value)

    def _enter(self, key: Any, value: Any) -> Any:
        stand_in = self._stand_in()
        assert stand_in is not None
        source = Source("state", (key,), self._index)
        held = stand_in.recorder.numbers.get(id(value)) if isinstance(value, Tensor) else None
        if held is not None:
            given = held.expression if held.expression is not None else value.item()
            self.first[key] = Beginning("number", given, value.dtype)
            held.expression, held.source = stand_in.trace.of_source(
                replace(source, is_tensor=True), value.item()
            ), source
            return value
        self.first[key] = value
        if type(value) in (int, float) or is_traced(value):
            self.first[key] = Beginning("number", value.expression if is_traced(value) else value)
            return traced(stand_in.trace, stand_in.trace.of_source(source, plain_value(value)), plain_value(value))
        if not isinstance(value, Tensor):
            self.first[key] = Beginning("number", value)
        return value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *given: Any, **named: Any) -> None:
        for key, value in dict(*given, **named).items():
            self[key] = value


class _State(defaultdict):
    """The state of a stand-in: parameter -> `StateEntries`."""

    def __init__(self, stand_in: StandIn):
        super().__init__()
        self._stand_in = weakref.ref(stand_in)

    def __missing__(self, parameter: Any) -> Any:
        stand_in = self._stand_in()
        assert stand_in is not None
        index = stand_in.index_of(parameter)
        if index is None:
            raise UnsupportedStep("it keeps state under a key that is no parameter")
        made = StateEntries(index, stand_in)
        dict.__setitem__(self, parameter, made)
        return made

    def __setitem__(self, parameter: Any, entries: Any) -> None:
        if isinstance(parameter, Tensor) and type(entries) is dict:
            dict.pop(self, parameter, None)
            self[parameter].update(entries)
        else:
            super().__setitem__(parameter, entries)


def is_host_number(tensor: Tensor) -> bool:
    """Return whether a tensor is a number that the host can read at once."""
    return tensor.ndim == 0 and tensor.device.type == "cpu"


def _meta(real: Tensor) -> Tensor:
    if real.layout != torch.strided:
        raise UnsupportedStep(f"one of its tensors is {str(real.layout).removeprefix('torch.')}")
    strides = real.stride()
    return torch.empty_strided(real.shape, strides, dtype=real.dtype, device="meta")


def leaves_of(optimizer: Any, parameters: Sequence[Tensor]) -> Iterator[tuple[Source, Any]]:
    """Yield (source, value) of everything that an optimizer keeps besides its parameters, containers taken apart."""
    index_of = {id(p): i for i, p in enumerate(parameters)}
    for g, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key not in ("params", FUSED):
                yield from _leaves(value, "group", (g, key), -1, index_of)
    for parameter, entries in optimizer.state.items():
        index = index_of.get(id(parameter), -1)
        if index >= 0 or not isinstance(parameter, Tensor):
            path = () if index >= 0 else ("state", parameter)
            yield from _leaves(entries, "state" if index >= 0 else "attribute", path, index, index_of)
    for name, value in vars(optimizer).items():
        if not is_left_out(name):
            yield from _leaves(value, "attribute", (name,), -1, index_of)


def _leaves(
    value: Any, kind: Any, path: tuple[Any, ...], parameter: int, index_of: dict[int, int]
) -> Iterator[tuple[Source, Any]]:
    if isinstance(value, (dict, list, tuple)) and type(value) in _CONTAINERS:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            key = ("parameter", index_of[id(key)]) if id(key) in index_of else key
            yield from _leaves(entry, kind, (*path, key), parameter, index_of)
    elif id(value) in index_of:
        yield Source(kind, path, parameter), ("parameter", index_of[id(value)])
    else:
        yield Source(kind, path, parameter), value


def constants_of(table: ParameterTable) -> dict[Source, Any]:
    """Return what a step may look at besides the values of numbers and tensors.

    These are all other objects, the types of numbers, the shapes and types of tensors, and what exists at all.
    """
    return {source: constant_of(value) for source, value in leaves_of(table.optimizer, table.parameters)}


def constant_of(value: Any) -> Any:
    """Return what a step may look at in a value besides its number or its elements."""
    if is_traced(value):
        return type(plain_value(value))
    if type(value) in (int, float):
        return type(value)
    if isinstance(value, Tensor):
        return "tensor", value.shape, value.dtype
    if value is None or isinstance(value, (bool, str, bytes, tuple, type, torch.dtype, torch.device)):
        return type(value), value
    return type(value)


_CONTAINERS = {dict, OrderedDict, defaultdict, list, tuple, StateEntries, _State}
