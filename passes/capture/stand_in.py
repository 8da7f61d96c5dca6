"""Stand-in: an optimizer of the same class and state, without memory, on which its step is run to be recorded.

Parameters, gradients and state are tensors of the same shape and type on the meta device; those of DTensors have the shape of
the whole, so that what is recorded is the update of the whole. Numbers are traced numbers.
0-dim tensors on the host keep their values. Everything else is a deep copy.
"""

from __future__ import annotations

import builtins
import copy
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import InputRole, ParameterTable
from baoc_compile.core.torch_private import code_of_caller, is_distributed, is_wrapper, of_class
from baoc_compile.passes.capture.leaves import (
    FUSED,
    bare,
    constants_of,
    has_attributes,
    is_constant,
    is_hooks,
    is_left_out,
    is_of_weight,
    is_way_to_compute,
    leaves_at,
    snapshot,
)
from baoc_compile.passes.capture.refuse_overlap import refuse_overlap_of_others
from baoc_compile.passes.capture.stand_in_containers import StandInGroup, StandInState, StateEntries
from baoc_compile.passes.numbers.element_numbers import is_of_elements
from baoc_compile.passes.numbers.expressions import Attribute, Source
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value, traced
from baoc_compile.passes.recorder.recorder import Recorder
from baoc_compile.passes.recorder.recording import Value, ValueGroup

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id

#: By what floats are nudged: enough to show even in two decimals, and exact, so that it can be undone.
NUDGE = 0.25


class StandIn:
    """A stand-in of an optimizer, and what its parts stand for.

    table: the real optimizer's parameters.
    recorder: gets every stand-in.
    present: indices of the parameters that have a gradient.
    before: the stand-in of the step before, to be copied instead of the optimizer.
    nudge: a factor on every float outside of the state: a constant of the recording that changes with it is a number whose
        origin was lost.
    fixed: floats that are not nudged.
    elements: (parameter index, state key) of 0-dim state on the host that has elements rather than numbers.

    optimizer: the bare object on which the step is run.
    parameters: the stand-ins of the parameters, by index.
    placed: source -> the stand-in, number or other object that was put there.
    constants: see `constants_of`.
    """

    _real: Mapping[int, int] = MappingProxyType({})  # until there is one
    asked_ids = 0

    def __init__(
        self,
        table: ParameterTable,
        recorder: Recorder,
        present: frozenset[int],
        elements: frozenset[tuple[int, Any]],
        before: StandIn | None = None,
        nudge: float = 1.0,
        fixed: frozenset[Source] = frozenset(),
    ):
        self.table, self.recorder, self.trace = table, recorder, recorder.trace
        self._elements, self._before, self._nudge, self._fixed = elements, before, nudge, fixed
        self._real_ids = {id(p) for p in table.parameters}
        self._in_state: set[int] = set()
        self.keeps_ids = False  # whether a table by the ids of parameters was copied
        self.asked_ids = 0  # how often the step asked for one
        #: What opaque objects looked like before the step.
        self.snapshots: dict[Source, Any] = {}
        #: What is copied: the real optimizer, or the stand-in as its step left it.
        self.original = table if before is None else before.as_table()
        self.constants = constants_of(self.original)
        self._index = {id(p): i for i, p in enumerate(self.original.parameters)}
        self._of: dict[int, Any] = {}  # id of a real object -> its copy
        self._real = {}  # id of a stand-in parameter -> id of the real one
        self._at: dict[int, int] = {}  # id of a stand-in parameter -> its index
        self.placed: dict[Source, Any] = {}
        self._kept: list[Any] = []
        self.groups_of: list[ValueGroup] = []
        self._looked_at: set[Any] = set()
        self.parameters = [self._parameter(i, i in present) for i in range(len(table.parameters))]
        self.optimizer = self._optimizer(self.original.optimizer)

    def as_table(self) -> ParameterTable:
        """Return the stand-in's parameters, and its optimizer."""
        return ParameterTable(self.optimizer, self.parameters, self.table.names, self.table.groups)

    def real_id(self, value: Any) -> int:
        """Return the id of the parameter that a stand-in stands for; any other object's own."""
        self.asked_ids += code_of_caller(2) is not Tensor.__hash__.__code__
        return self._real.get(id(value), id(value))

    @property
    def options(self) -> frozenset[Any]:
        """The keys of parameter groups that the step has looked at."""
        return frozenset(self._looked_at)

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
            if type(real) is torch.nn.Parameter or is_distributed(real)
            else _like(real, tensor)
        )
        vars(parameter).update(vars(real))
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
        if id(real) in self._in_state or id(real) in self._of:
            raise UnsupportedStep(f"its state {key!r} is one tensor for several parameters or keys")
        self._in_state.add(id(real))
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
        if source.kind != "state" and tensor.is_floating_point() and replace(source, is_tensor=True) not in self._fixed:
            tensor *= self._nudge
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
            made = StandInGroup(self._looked_at)
            for key, value in dict.items(group):
                if key == "params":
                    made[key] = [self._of[id(p)] for p in value]
                elif is_way_to_compute(real, key):
                    needs_gpu = key == FUSED or self.recorder.device.type == "cpu"
                    made[key] = value and False if needs_gpu else value
                else:
                    made[key] = self._copied(value, "group", (g, key))
            groups.append(made)
        attributes["param_groups"] = groups
        attributes["state"] = self._state(real.state)
        for name, value in vars(real).items():
            if is_hooks(name):
                attributes[name] = type(value)()
            elif not is_left_out(name):
                attributes[name] = self._copied(value, "attribute", (name,))
        return optimizer

    def _state(self, real: Any) -> Any:
        state: Any = StandInState(self)
        if self._before is None:
            refuse_overlap_of_others(self.table)
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
                if is_of_weight(value):
                    continue
                if isinstance(value, Tensor):
                    dict.__setitem__(made, key, self._state_tensor(index, key, value))
                else:
                    dict.__setitem__(made, key, self._copied(value, "state", (key,), index))
            dict.__setitem__(state, self._of[id(parameter)], made)
        return state

    def _copied(self, value: Any, kind: Any, path: tuple[Any, ...], parameter: int = -1) -> Any:
        """Return a copy of a number, a container or another object."""
        source = Source(kind, path, parameter)
        if self._before is not None:
            value = self._before.known(source, value)
        if type(value) in (int, float) or is_traced(value):
            plain = plain_value(value) if kind == "state" or source in self._fixed else self._nudged(plain_value(value))
            number = traced(self.trace, self.trace.of_source(source, plain), plain)
            self.placed[source] = number
            return number
        if id(value) in self._of:
            return self._placed_again(self._of[id(value)], kind, path, parameter)
        if isinstance(value, Tensor):
            return self._other_tensor(value, source)
        if is_constant(value) or isinstance(value, torch.nn.Module):
            self.placed[source] = value
            return value
        if isinstance(value, MethodType):
            self.placed[source] = MethodType(
                value.__func__, self._copied(value.__self__, kind, (*path, Attribute("__self__")), parameter)
            )
            return self.placed[source]
        if type(value) in (dict, OrderedDict, defaultdict):
            made: Any = defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
            self._remember(value, made)
            for key, entry in value.items():
                at = ("parameter", self._index[id(key)]) if id(key) in self._index else key
                self.keeps_ids |= type(key) is int and key in self._real_ids
                made[self._of.get(id(key), key)] = self._copied(entry, kind, (*path, at), parameter)
            return made
        if type(value) is list:
            made = self._remember(value, [])
            made += [self._copied(entry, kind, (*path, i), parameter) for i, entry in enumerate(value)]
            return made
        if type(value) is tuple:
            return tuple(self._copied(entry, kind, (*path, i), parameter) for i, entry in enumerate(value))
        if has_attributes(value):
            made = self._remember(value, bare(value))
            for name, entry in vars(value).items():
                vars(made)[name] = self._copied(entry, kind, (*path, Attribute(name)), parameter)
            return made
        if isinstance(value, torch.optim.Optimizer):
            raise UnsupportedStep(f"it steps another optimizer ({type(value).__name__})")
        if isinstance(value, (weakref.WeakKeyDictionary, weakref.WeakSet, weakref.WeakValueDictionary)) and len(value):
            raise UnsupportedStep(f"its attribute {path[0]!r} refers weakly to what a stand-in has no copy of")
        try:
            made = self._remember(value, copy.deepcopy(value, dict(self._of)))
            self.snapshots[source] = snapshot(made)
        except Exception as reason:
            raise UnsupportedStep(f"its attribute {path[0]!r} can't be copied ({reason})") from reason
        self.placed[source] = made
        return made

    def _placed_again(self, made: Any, kind: Any, path: tuple[Any, ...], parameter: int) -> Any:
        """Put the copy of an object that the optimizer keeps in several places, such as a group and the defaults."""
        for source, leaf in leaves_at(made, kind, path, parameter, self._at):
            is_parameter = isinstance(leaf, tuple) and leaf[:1] == ("parameter",)
            self.placed[source] = self.parameters[leaf[1]] if is_parameter else leaf
        return made

    def known(self, source: Source, value: Any) -> Any:
        """Return a value that the step has left, or of a number of elements, which is not known, the number before it."""
        old = self.placed.get(source)
        is_element = isinstance(value, Tensor) and isinstance(old, Tensor) and id(old) in self.recorder.numbers
        return old if is_of_elements(value) or (is_element and id(value) not in self.recorder.numbers) else value

    def _nudged(self, value: Any) -> Any:
        return value * self._nudge if type(value) is float else value

    def _remember(self, value: Any, made: Any) -> Any:
        self._of[id(value)] = made
        self._kept.append((value, made))
        return made

    def _other_tensor(self, real: Tensor, source: Source) -> Tensor:
        """Return the stand-in of a tensor in a group, an attribute, or a container of state."""
        if id(real) in self._in_state:
            raise UnsupportedStep(f"its tensor {source} is state under another key, too")
        if is_host_number(real):
            return self._remember(real, self._host_number(real, source))
        if is_distributed(real):
            raise UnsupportedStep(f"its tensor {source} is a DTensor, and no state of one parameter")
        tensor = _meta(real)
        role, group = InputRole("scalar", key=str(source), source=source), None
        if source.kind == "state":
            role, group = InputRole("nested", source.parameter, source.path, source), self.groups_of[source.parameter]
            group.reason = group.reason or "it keeps state inside of lists or dictionaries"
        self.recorder.enter(tensor, Value(real.shape, real.dtype, role, None, group), self._device_of(real))
        self.placed[source] = tensor
        return self._remember(real, tensor)


def is_host_number(tensor: Tensor) -> bool:
    """Return whether a tensor is a number that the host can read at once."""
    return tensor.ndim == 0 and tensor.device.type == "cpu" and not is_distributed(tensor)


def _like(real: Tensor, tensor: Tensor) -> Tensor:
    """Return a stand-in of the same class."""
    if type(real) is Tensor:
        return tensor.requires_grad_(real.requires_grad)
    if is_wrapper(real):
        raise UnsupportedStep(f"one of its parameters is a {type(real).__name__}, whose memory is not its own")
    return of_class(type(real), tensor, real.requires_grad)


def _meta(real: Tensor) -> Tensor:
    if real.layout != torch.strided:
        raise UnsupportedStep(f"one of its tensors is {str(real.layout).removeprefix('torch.')}")
    strides = real.stride()
    return torch.empty_strided(real.shape, strides, dtype=real.dtype, device="meta")
