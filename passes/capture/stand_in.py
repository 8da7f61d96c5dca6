"""Stand-in: an optimizer of the same class and state, without memory, on which its step is run to be recorded.

Parameters, gradients and state are tensors of the same shape and type on the meta device. Numbers are traced numbers.
0-dim tensors on the host keep their values. Everything else is a deep copy.
"""

from __future__ import annotations

import builtins
import copy
import enum
import pickle
import sys
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.step_graph import InputRole, ParameterTable
from baoc_compile.passes.capture.expressions import Attribute, Source
from baoc_compile.passes.capture.recorder import Recorder
from baoc_compile.passes.capture.recording import Beginning, Value, ValueGroup
from baoc_compile.passes.capture.torch_calls import words
from baoc_compile.passes.capture.traced_numbers import is_traced, plain_value, traced
from baoc_compile.state.state_tensor import StateTensor

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id

#: Attributes of an optimizer that are not part of its step: our own, hooks, and what schedulers and scalers leave there.
LEFT_OUT = words(
    "state param_groups step _baoc_session _baoc_key __getstate__ _opt_called _zero_grad_profile_name "
    "_warned_capturable_if_run_uncaptured _step_supports_amp_scaling grad_scale found_inf"
)
#: By what floats are nudged: enough to show even in two decimals, and exact, so that it can be undone.
NUDGE = 0.25
#: Options under which torch's optimizers compute the same in another way, or elsewhere.
FUSED, CAPTURABLE = "fused", "capturable"


def is_left_out(name: str) -> bool:
    """Return whether an attribute of this name is left out of stand-ins."""
    return name in LEFT_OUT or is_hooks(name)


def is_way_to_compute(optimizer: Any, key: Any) -> bool:
    """Return whether an option of a group only says how or where torch's own optimizers compute."""
    return key in (FUSED, CAPTURABLE) and type(optimizer).step.__module__.startswith("torch.optim")


def is_hooks(name: str) -> bool:
    """Return whether torch keeps an optimizer's hooks in an attribute of this name."""
    return name.startswith("_optimizer_") and name.endswith("_hooks")


class StandIn:
    """A stand-in of an optimizer, and what its parts stand for.

    table: the real optimizer's parameters.
    recorder: gets every stand-in.
    present: indices of the parameters that have a gradient.
    before: the stand-in of the step before, to be copied instead of the optimizer.
    nudge: a factor on every float outside of the state: a constant of the recording that changes with it is a number whose
        origin was lost.
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
    ):
        self.table, self.recorder, self.trace = table, recorder, recorder.trace
        self._elements, self._before, self._nudge = elements, before, nudge
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
        self.asked_ids += sys._getframe(2).f_code is not Tensor.__hash__.__code__
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
            if type(real) is torch.nn.Parameter
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
        if id(real) in self._in_state:
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
        if source.kind != "state" and tensor.is_floating_point():
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
            made = _Options(self._looked_at)
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
        if type(value) in (int, float) or is_traced(value):
            plain = plain_value(value) if kind == "state" else self._nudged(plain_value(value))
            number = traced(self.trace, self.trace.of_source(source, plain), plain)
            self.placed[source] = number
            return number
        if id(value) in self._of:
            self.placed[source] = self._of[id(value)]
            return self._of[id(value)]
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
            made = self._remember(value, _bare(value))
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

    def _nudged(self, value: Any) -> Any:
        return value * self._nudge if type(value) is float else value

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


class _Options(dict):
    """A parameter group that notes which of its keys are looked at."""

    def __init__(self, looked_at: set[Any]):
        super().__init__()
        self._looked_at = looked_at

    def __getitem__(self, key: Any) -> Any:
        self._looked_at.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self._looked_at.add(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._looked_at.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[Any]:
        self._looked_at.update(dict.keys(self))
        return super().__iter__()

    def items(self) -> Any:
        self._looked_at.update(dict.keys(self))
        return super().items()

    def keys(self) -> Any:
        self._looked_at.update(dict.keys(self))
        return super().keys()

    def values(self) -> Any:
        self._looked_at.update(dict.keys(self))
        return super().values()


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
            held.expression, held.source = (
                stand_in.trace.of_source(replace(source, is_tensor=True), value.item()),
                source,
            )
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


def is_of_weight(value: Any) -> bool:
    """Return whether a state entry is what a weight codec keeps, of which the user's step knows nothing."""
    return isinstance(value, StateTensor) and value.codec.mechanism == "weight"


def is_host_number(tensor: Tensor) -> bool:
    """Return whether a tensor is a number that the host can read at once."""
    return tensor.ndim == 0 and tensor.device.type == "cpu"


def _like(real: Tensor, tensor: Tensor) -> Tensor:
    """Return a stand-in of the same class."""
    if type(real) is Tensor:
        return tensor.requires_grad_(real.requires_grad)
    if is_wrapper(real):
        raise UnsupportedStep(f"one of its parameters is a {type(real).__name__}, whose memory is not its own")
    return torch.Tensor._make_subclass(type(real), tensor, real.requires_grad)


def is_wrapper(tensor: Tensor) -> bool:
    """Return whether a tensor is of a class, such as DTensor, whose elements are elsewhere."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _meta(real: Tensor) -> Tensor:
    if real.layout != torch.strided:
        raise UnsupportedStep(f"one of its tensors is {str(real.layout).removeprefix('torch.')}")
    strides = real.stride()
    return torch.empty_strided(real.shape, strides, dtype=real.dtype, device="meta")


def leaves_of(optimizer: Any, parameters: Sequence[Tensor]) -> Iterator[tuple[Source, Any]]:
    """Yield (source, value) of everything that an optimizer keeps besides its parameters, containers taken apart."""
    index_of = {id(p): i for i, p in enumerate(parameters)}
    for g, group in enumerate(optimizer.param_groups):
        for key, value in dict.items(group):
            if key != "params" and not is_way_to_compute(optimizer, key):
                yield from _leaves(value, "group", (g, key), -1, index_of)
    for parameter, entries in optimizer.state.items():
        index = index_of.get(id(parameter), -1)
        if index >= 0 or not isinstance(parameter, Tensor):
            path = () if index >= 0 else ("state", parameter)
            yield from _leaves(entries, "state" if index >= 0 else "attribute", path, index, index_of)
    for name, value in vars(optimizer).items():
        if not is_left_out(name):
            yield from _leaves(value, "attribute", (name,), -1, index_of)


def _bare(value: Any) -> Any:
    """Return an object of the same class without attributes."""
    return SimpleNamespace() if type(value) is SimpleNamespace else object.__new__(type(value))


def has_attributes(value: Any) -> bool:
    """Return whether a value is a plain object that is nothing but its attributes."""
    made_by = getattr(type(value), "__new__", None)
    is_plain = (
        made_by is object.__new__ and type(value).__module__ != "builtins" and not hasattr(type(value), "__slots__")
    )
    is_plain = is_plain or type(value) is SimpleNamespace
    odd = (
        torch.optim.Optimizer,
        torch.nn.Module,
        weakref.WeakKeyDictionary,
        weakref.WeakSet,
        weakref.WeakValueDictionary,
    )
    return is_plain and hasattr(value, "__dict__") and not isinstance(value, (*odd, enum.Enum))


def is_constant(value: Any) -> bool:
    """Return whether a value is an immutable object that a stand-in may share."""
    return value is None or isinstance(
        value,
        (
            bool,
            str,
            bytes,
            type,
            enum.Enum,
            torch.dtype,
            torch.device,
            torch.Size,
            FunctionType,
            BuiltinFunctionType,
            ModuleType,
        ),
    )


def snapshot(value: Any) -> Any:
    """Return what an opaque object looks like, to be compared. Raises if it can't be told."""
    return pickle.dumps(value)


def _leaves(
    value: Any, kind: Any, path: tuple[Any, ...], parameter: int, index_of: dict[int, int]
) -> Iterator[tuple[Source, Any]]:
    if id(value) in index_of:
        yield Source(kind, path, parameter), ("parameter", index_of[id(value)])
    elif type(value) in _CONTAINERS:
        entries = dict.items(value) if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            if not is_of_weight(entry):
                at = ("parameter", index_of[id(key)]) if id(key) in index_of else key
                yield from _leaves(entry, kind, (*path, at), parameter, index_of)
    elif has_attributes(value):
        for name, entry in vars(value).items():
            yield from _leaves(entry, kind, (*path, Attribute(name)), parameter, index_of)
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
    if isinstance(value, MethodType):
        return "method", value.__func__
    if is_constant(value) or isinstance(value, (tuple, torch.nn.Module)):
        return type(value), value
    try:
        return type(value), snapshot(value)
    except Exception:  # nothing is known of it but its type
        return type(value)


_CONTAINERS = {dict, OrderedDict, defaultdict, list, tuple, StateEntries, _State}
