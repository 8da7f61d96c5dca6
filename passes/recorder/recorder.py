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
from baoc_compile.core.names import words
from baoc_compile.core.torch_private import FOREACH
from baoc_compile.passes.numbers.element_numbers import compute, is_of_elements, look
from baoc_compile.passes.numbers.traced_numbers import plain_value
from baoc_compile.passes.recorder.arguments import are_numbers, flat, is_meta, reader
from baoc_compile.passes.recorder.number_recorder import HoldsElements, plain
from baoc_compile.passes.recorder.recording import Call, Condition
from baoc_compile.passes.recorder.stack_recorder import StackRecorder
from baoc_compile.passes.recorder.torch_calls import (
    ALIASES,
    BRANCHES,
    ESCAPES,
    METADATA,
    RANDOM,
    TENSOR_FORMS,
    VIEWS,
    is_ignored,
    list_of_one,
    named,
    single_function,
)

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


#: Calls that make more than a number of 0-dim tensors.
MAKES_ELEMENTS = words("stack cat expand repeat new_zeros new_ones new_full new_empty")


class Recorder(StackRecorder):
    """Mode that records the calls of torch made inside it; see `ValueRecorder`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._call(func, args, dict(kwargs or {}))
        except UnsupportedStep as reason:
            self.refusal = self.refusal or reason  # the step may catch it
            raise

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in (compute, look):
            return self._compute(*args)
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
        if name == "item" and self.has_element(args[0]) and args[0].is_floating_point():  # an int has other methods
            return self._compute(name, func, args)
        result = self.on_stacks(name, func, is_inplace, args, kwargs)
        if result is not NotImplemented:
            return result
        for tensor in tensors:
            self.value_of(tensor)  # makes stacks
        if name == "to_bool" and self._is_equation(args[0]):
            return self._expected(args[0])
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

    def _is_equation(self, tensor: Tensor) -> bool:
        """Return whether a tensor says whether one element equals something."""
        value = self.value_of(tensor)
        call = None if value is None else value.call
        return (
            call is not None and call.name in ("eq", "ne") and tensor.numel() == 1 and not self.memory.is_stale(tensor)
        )

    def _expected(self, equation: Tensor) -> bool:
        """Note a condition on elements, which are not known here: two numbers are expected to differ."""
        value = self._read(equation)
        assert value.call is not None
        self.conditions.append(Condition(value, value.call.name == "ne"))
        return value.call.name == "ne"

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
            if isinstance(argument, Tensor) and id(argument) in self.stacks:
                return self.stacks[id(argument)].parts[i]
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
        if any(map(is_of_elements, flat((*args, *kwargs.values())))):
            raise UnsupportedStep(f"it makes a tensor of numbers of elements ({name})")
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
        operands = (*args, *kwargs.values())
        if any(map(is_of_elements, operands)):
            raise UnsupportedStep(f"it computes with tensors on the host and numbers of elements ({name})")
        if any(isinstance(a, Tensor) and id(a) not in self.numbers for a in operands):
            if is_inplace:
                raise HoldsElements(self.numbers[id(args[0])])
            return self._record(name, func, False, args, kwargs)
        if name in ALIASES:
            return self._shown(func(*args, **kwargs), args[0])
        return self.on_numbers(name, func, is_inplace, args, kwargs)
