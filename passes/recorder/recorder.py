"""Recorder: a mode that sees every call of torch while a step runs on stand-ins, and writes it down.

Tensors with elements are on the meta device, where nothing is computed. 0-dim tensors on the host are numbers: they
keep their values, and their calls become expressions.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.torch_private import FOREACH
from baoc_compile.passes.numbers.expressions import NumberTrace
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value
from baoc_compile.passes.recorder.arguments import are_numbers, changed_by_view, flat, is_meta, reader
from baoc_compile.passes.recorder.meta_results import MetaResults
from baoc_compile.passes.recorder.number_recorder import HoldsElements, NumberRecorder, plain
from baoc_compile.passes.recorder.readers import Readers
from baoc_compile.passes.recorder.recording import Call, Value, ValueGroup
from baoc_compile.passes.recorder.shared_memory import SharedMemory
from baoc_compile.passes.recorder.torch_calls import (
    ALIASES,
    BRANCHES,
    ESCAPES,
    METADATA,
    RANDOM,
    REDUCTIONS,
    TENSOR_FORMS,
    VIEWS,
    is_ignored,
    list_of_one,
    named,
    single_function,
    words,
)

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


#: Calls that make more than a number of 0-dim tensors.
MAKES_ELEMENTS = words("stack cat expand repeat new_zeros new_ones new_full new_empty")


class Recorder(NumberRecorder):
    """Mode that records the calls of torch made inside it.

    calls: the calls, in order.
    current: id of a tensor -> its present value.
    dropped: calls that the recording does not need.
    made: id of a tensor that a call made -> its first value.
    refusal: the first reason why the step can't be recorded.
    device: the device of the parameters.
    devices: id of a stand-in -> the device of the tensor that it stands for.
    """

    def __init__(self, trace: NumberTrace, device: torch.device):
        super().__init__(trace)
        self.device = device
        self.calls: list[Call] = []
        self.current: dict[int, Value] = {}
        self.devices: dict[int, torch.device] = {}
        self.made: dict[int, Value] = {}
        self.dropped: set[Call] = set()
        self.refusal: UnsupportedStep | None = None
        self._initial: dict[int, Value] = {}  # id of a stand-in -> its value before the step
        self.memory = SharedMemory()
        self.readers = Readers()
        self._results = MetaResults()

    # what there is before the step

    def enter(self, tensor: Tensor, value: Value, device: torch.device) -> None:
        """Let `value` be the present value of a stand-in."""
        self.current[id(tensor)] = self._initial[id(tensor)] = value
        self.devices[id(tensor)] = device
        self._kept.append(tensor)

    def root_of(self, tensor: Tensor) -> int:
        """Return the id of the tensor whose elements this one shows: its own, unless it is an alias."""
        return self.memory.root_of(tensor)

    def value_of(self, tensor: Tensor) -> Value | None:
        """Return the present value of a tensor; None if no call and no input made it."""
        return self.current.get(self.root_of(tensor))

    def is_unchanged(self, tensor: Tensor) -> bool:
        """Return whether a stand-in has the value from before the step."""
        return self._initial.get(id(tensor)) is self.current.get(id(tensor))

    def is_from_before(self, identity: int) -> bool:
        """Return whether the tensor of this id existed before the step."""
        return identity in self._initial

    # the calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._call(func, args, dict(kwargs or {}))
        except UnsupportedStep as reason:
            self.refusal = self.refusal or reason  # the step may catch it
            raise

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name, is_inplace, is_property = named(func)
        if is_property:
            return self._property(name, func, args)
        if is_meta(kwargs.get("device")):  # stand-ins were asked for their device in C++
            kwargs["device"] = self.device
        if name in METADATA or is_ignored(name):
            return func(*map(plain_value, args), **kwargs)
        if name in ESCAPES:
            raise UnsupportedStep(f"it looks at the memory of a tensor ({name})")
        if name in RANDOM:
            raise UnsupportedStep(f"it draws random numbers ({name})")
        if name.startswith(FOREACH):
            return self._foreach(name, func, args, kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        nested = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))]
        tensors += [a for group in nested for a in group if isinstance(a, Tensor)]
        if not tensors:
            return self._factory(name, func, args, kwargs)
        if name not in MAKES_ELEMENTS and all(id(t) in self.numbers for t in tensors):
            return self._numbers_call(name, func, is_inplace, args, kwargs)
        if name in BRANCHES:
            raise UnsupportedStep(f"it branches on the values of a tensor ({name})")
        if "out" in kwargs:
            out = kwargs.pop("out")
            result = self._call(func, args, kwargs)
            if out is None:
                return result
            return self._record("copy", Tensor.copy_, True, (out, result), {})
        if name in ALIASES:
            return self._shown(func(*args, **kwargs), args[0])
        return self._record(name, func, is_inplace, args, kwargs)

    def _property(self, name: str, func: Any, args: Sequence[Any]) -> Any:
        tensor, is_set = args[0], func.__name__ == "__set__"
        if name == "data":
            if id(tensor) in self.numbers:
                raise UnsupportedStep("it uses `.data` of a 0-dim tensor")
            if not is_set:
                return self._shown(func(tensor), tensor)
            return self._set_data(tensor, args[1])
        if is_set:
            raise UnsupportedStep(f"it sets `.{name}` of a tensor")
        device = self.devices.get(self.root_of(tensor))
        if device is not None and name in ("device", "is_cuda", "is_cpu", "is_meta"):
            return {"device": device, "is_meta": False}.get(name, device.type == name.removeprefix("is_"))
        if name in VIEWS:
            return self._record(name, reader(name), False, args, {})
        return func(*args)

    def _set_data(self, tensor: Tensor, source: Tensor) -> None:
        """Record `tensor.data = source` as a copy: from now on the two show the same elements."""
        if tensor.shape != source.shape or tensor.dtype != source.dtype:
            raise UnsupportedStep("it gives a tensor `.data` of another shape or type")
        is_kept = id(source) in self._initial or self.memory.shows(source) or id(source) in self.numbers
        if is_kept or self.memory.is_shared(tensor):
            raise UnsupportedStep("it exchanges the memory of tensors (`.data = ...`)")
        self._record("copy", Tensor.copy_, True, (tensor, source), {})
        self.memory.add_alias(source, tensor)

    def _shown(self, shown: Tensor, tensor: Tensor) -> Tensor:
        """Let `shown` be an alias of `tensor`."""
        if shown is not tensor:
            if id(tensor) in self.numbers:
                self.numbers[id(shown)] = self.numbers[id(tensor)]
            self.memory.add_alias(shown, tensor)
        return shown

    def _foreach(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Record a list operation as one call for each tensor."""
        function, is_inplace = single_function(name)
        single, _, _ = named(function)
        count = len(next(a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))))

        def item(argument: Any, i: int) -> Any:
            if isinstance(argument, (list, tuple)):
                return argument[i]
            many = isinstance(argument, Tensor) and argument.ndim and id(argument) not in self.numbers
            return self._record("getitem", Tensor.__getitem__, False, (argument, i), {}) if many else argument

        lists = frozenset(k for k, a in (*enumerate(args), *kwargs.items()) if isinstance(a, (list, tuple)))
        results = []
        for i in range(count):
            these = [item(a, i) for a in args]
            named_ones = {k: item(a, i) for k, a in kwargs.items()}
            first = these[0]
            if isinstance(first, Tensor) and id(first) in self.numbers:
                results.append(self._numbers_call(single, function, is_inplace, these, named_ones))
                continue
            is_small = isinstance(first, Tensor) and first.is_floating_point() and first.dtype.itemsize < 4
            is_rounded = is_small and single in TENSOR_FORMS
            called = list_of_one(func, lists, is_inplace) if is_rounded else function
            results.append(self._record(single, called, is_inplace, these, named_ones))
        return None if is_inplace else results

    def _factory(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Make a tensor from numbers: a number if it is 0-dim on the host, else a stand-in."""
        found = func(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})
        if not isinstance(found, Tensor):
            return found
        if found.ndim == 0 and found.device.type == "cpu" and name not in ("empty", "empty_strided"):
            return self.made_of_numbers(found, (*args, *kwargs.values()))
        is_of_numbers = name in ("tensor", "as_tensor") and are_numbers(args[0] if args else kwargs.get("data"))
        is_opaque = type(func) is FunctionType or name in ("tensor", "as_tensor", "from_numpy")
        if is_opaque and not is_of_numbers:
            raise UnsupportedStep(f"it makes a tensor of numbers ({name})")
        device = found.device
        stand_in = torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device="meta")
        kwargs = {k: v for k, v in kwargs.items() if k != "device"}
        call = Call(
            name, func, False, [self._argument(a) for a in args], {k: self._argument(v) for k, v in kwargs.items()}
        )
        call.options["device"] = device
        return self._finish(call, stand_in, None, device)

    def _numbers_call(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Record a call on 0-dim tensors of the host, and perhaps on others."""
        if any(isinstance(a, Tensor) and id(a) not in self.numbers for a in (*args, *kwargs.values())):
            if is_inplace:
                raise HoldsElements(self.numbers[id(args[0])])
            return self._record(name, func, False, args, kwargs)
        if name in ALIASES:
            return self._shown(func(*args, **kwargs), args[0])
        return self.on_numbers(name, func, is_inplace, args, kwargs)

    def _argument(self, argument: Any) -> Any:
        """Return an argument as a call holds it."""
        if isinstance(argument, Tensor):
            if id(argument) in self.numbers:
                return self.number_of(argument)
            return self._read(argument)
        if is_traced(argument):
            return argument.expression
        if isinstance(argument, (list, tuple)):
            return type(argument)(map(self._argument, argument)) if type(argument) in (list, tuple) else argument
        return argument

    def _read(self, tensor: Tensor) -> Value:
        value = self.value_of(tensor)
        if value is None:
            raise UnsupportedStep("it uses a tensor that is neither a parameter, nor a gradient, nor state")
        if self.memory.is_stale(tensor):
            self.readers.check_stale(value, self.current.get(self.memory.owner_of(tensor)))
        return value

    def _record(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Record a call on tensors with elements, and return its result."""
        if is_inplace and isinstance(args[0], Tensor) and id(args[0]) in self.numbers:
            raise HoldsElements(self.numbers[id(args[0])])
        call = Call(
            name, func, is_inplace, [self._argument(a) for a in args], {k: self._argument(v) for k, v in kwargs.items()}
        )
        values = [a for a in flat((*call.arguments, *call.options.values())) if isinstance(a, Value)]
        given = next(a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor) and id(a) not in self.numbers)
        result = self._results.of(name, func, is_inplace, args, kwargs)
        if not is_inplace and any(result is a for a in args):  # a conversion to the type that it has
            return result
        group: ValueGroup | None = None
        grouped = [v for v in values if v.group is not None]
        if grouped and not self._is_for_all(name, args, kwargs, result):
            group = grouped[0].group
            for value in grouped[1:]:
                group = group.join(value.group)  # type: ignore[union-attr, arg-type]
        if is_inplace and group is None and self._is_of_parameter(args[0]):
            raise UnsupportedStep("a number that several parameters share is changed by one of them")
        if is_inplace:
            group = self.readers.write(self.memory.owner_of(args[0]), group)
        if group is not None and len(grouped) < len(values):
            tensors = [a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
            self.readers.read([self.memory.owner_of(t) for t in tensors if not self._is_of_parameter(t)], group)
        if name in VIEWS and isinstance(args[0], Tensor):
            for shown in flat(result if isinstance(result, (list, tuple)) else [result]):
                self.memory.add_view(shown, args[0])
        return self._finish(call, result, group, self.devices.get(self.root_of(given), given.device))

    def _is_of_parameter(self, tensor: Any) -> bool:
        value = self.value_of(tensor)
        return value is not None and value.group is not None

    def _is_for_all(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> bool:
        """Return whether the call reduces tensors from before the step to one number, so that it can run before all updates."""
        tensors = [a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
        return (
            isinstance(result, Tensor)
            and result.ndim == 0
            and name in REDUCTIONS
            and all(
                self._initial.get(self.root_of(t)) is self.value_of(t) and not self.memory.is_view(t) for t in tensors
            )
        )

    def _finish(self, call: Call, result: Any, group: ValueGroup | None, device: torch.device) -> Any:
        self.calls.append(call)
        if call.is_inplace:
            target = call.arguments[0]
            value = Value(target.shape, target.dtype, None, call, group)
            tensor = result
            if self.memory.is_view(tensor) and group is not None:
                group.root().reason = group.root().reason or f"it writes through a view ({call.name})"
            root = self.memory.write(tensor)
            self.current[self.root_of(tensor)] = value
            call.results = (value,)
            if root != self.root_of(tensor) and root in self.current:
                self._change_owner(root, value, group)
            return result
        call.is_sequence = isinstance(result, (list, tuple))
        found = list(result) if call.is_sequence else [result]
        if not all(isinstance(r, Tensor) for r in found):
            raise UnsupportedStep(f"it uses {call.name}, which gives more than tensors")
        values = []
        for tensor in found:
            value = Value(tensor.shape, tensor.dtype, None, call, group)
            self.current[id(tensor)] = self.made[id(tensor)] = value
            self.devices[id(tensor)] = device
            self._kept.append(tensor)
            values.append(value)
        call.results = tuple(values)
        return result

    def _change_owner(self, owner: int, view: Value, group: ValueGroup | None) -> None:
        """Give the tensor of which a view was written a new value."""
        call = Call("changed_by_view", changed_by_view, True, [self.current[owner], view], {})
        value = Value(self.current[owner].shape, self.current[owner].dtype, None, call, group)
        call.results = (value,)
        self.calls.append(call)
        self.current[owner] = value
