"""The part of a recorder that knows the values of tensors: what there is before a step, and what calls make of it."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.passes.numbers.element_numbers import CHOICES, ElementNumber, is_of_elements
from baoc_compile.passes.numbers.expressions import NumberTrace
from baoc_compile.passes.numbers.traced_numbers import is_traced
from baoc_compile.passes.recorder.arguments import changed_by_view, flat
from baoc_compile.passes.recorder.meta_results import MetaResults
from baoc_compile.passes.recorder.number_recorder import HoldsElements, NumberRecorder
from baoc_compile.passes.recorder.readers import Readers
from baoc_compile.passes.recorder.recording import Call, Condition, Value, ValueGroup, origin_of, values_in
from baoc_compile.passes.recorder.shared_memory import SharedMemory
from baoc_compile.passes.recorder.torch_calls import REDUCTIONS, VIEWS

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


class ValueRecorder(NumberRecorder):
    """Base class of the recorder.

    calls: the calls, in order.
    conditions: on elements, under which the step makes these calls.
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
        self.conditions: list[Condition] = []
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

    def has_element(self, value: Any) -> bool:
        """Return whether an object is a tensor of one real element that the host does not know."""
        found = self.value_of(value) if isinstance(value, Tensor) and id(value) not in self.numbers else None
        return (
            found is not None and found.shape.numel() == 1 and not found.dtype.is_complex and found.dtype != torch.bool
        )

    # calls

    def _compute(self, name: str, function: Any = None, arguments: Sequence[Any] = ()) -> Any:
        """Record a call that makes a number of an element, or computes with such numbers; return the number.

        Return a tensor if there is one among the arguments: `max` of a tensor and a number may be the tensor.
        """
        if function is None:
            raise UnsupportedStep(f"it branches on the values of a tensor ({name})")
        call = Call(name, function, False, [self._argument(a) for a in arguments], {})
        given = next((a for a in arguments if isinstance(a, Tensor)), None) if name != "item" else None
        if given is not None and not given.is_floating_point():
            raise UnsupportedStep(f"it branches on the values of a tensor ({name})")
        shape, dtype = ((), torch.float64) if given is None else (given.shape, given.dtype)
        stand_in = torch.empty(shape, dtype=dtype, device="meta")
        made = self._finish(call, stand_in, self._group_of(call, arguments), self.device)
        if given is None:
            return ElementNumber(made)
        self.memory.add_view(made, given)
        return made

    def _argument(self, argument: Any) -> Any:
        """Return an argument as a call holds it."""
        if is_of_elements(argument):
            return self._read(argument.tensor)
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
            self._refuse_choice(value)
            self.readers.check_stale(value, self.current.get(self.memory.owner_of(tensor)))
        return value

    def _refuse_choice(self, value: Value) -> None:
        """Refuse what changes a tensor that `max` or `min` returned, or of which they returned it: it may be either."""
        call = origin_of(value).call
        if call is not None and call.name in CHOICES:
            raise UnsupportedStep("it changes a tensor that max() or min() returned, or may have")

    def _record(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Record a call on tensors with elements, and return its result."""
        if is_inplace and isinstance(args[0], Tensor) and id(args[0]) in self.numbers:
            raise HoldsElements(self.numbers[id(args[0])])
        call = Call(
            name, func, is_inplace, [self._argument(a) for a in args], {k: self._argument(v) for k, v in kwargs.items()}
        )
        given = next(a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor) and id(a) not in self.numbers)
        result = self._results.of(name, func, is_inplace, args, kwargs)
        if not is_inplace and any(result is a for a in args):  # a conversion to the type that it has
            return result
        operands = (*args, *kwargs.values())
        group = None if self._is_for_all(name, args, kwargs, result) else self._group_of(call, operands)
        if is_inplace and group is None and self._is_of_parameter(args[0]):
            raise UnsupportedStep("a number that several parameters share is changed by one of them")
        if is_inplace:
            self._refuse_choice(call.arguments[0])
            if group is None and self.readers.have_read(self.memory.owner_of(args[0])):
                group = self._group_of_reductions(call)
            group = self.readers.write(self.memory.owner_of(args[0]), group)
        if name in VIEWS and isinstance(args[0], Tensor):
            for shown in flat(result if isinstance(result, (list, tuple)) else [result]):
                self.memory.add_view(shown, args[0])
        return self._finish(call, result, group, self.devices.get(self.root_of(given), given.device))

    def _group_of(self, call: Call, operands: Sequence[Any]) -> ValueGroup | None:
        """Return the group of a call's operands, after joining those of all; None if they belong to no parameter."""
        values = values_in(call)
        groups = [v.group for v in values if v.group is not None]
        if not groups:
            return None
        first, *others = groups
        for group in others:
            first = first.join(group)
        if len(groups) < len(values):
            tensors = [a.tensor if is_of_elements(a) else a for a in flat(operands)]
            shared = [t for t in tensors if isinstance(t, Tensor) and not self._is_of_parameter(t)]
            self.readers.read(map(self.memory.owner_of, shared), first)
        return first

    def _group_of_reductions(self, call: Call) -> ValueGroup | None:
        """Return the group of the updates whose elements a call's numbers are made of, after joining them; None if of none."""
        groups = [v.call.group for v in values_in(call) if v.call is not None and v.call.group is not None]
        for group in groups[1:]:
            groups[0].join(group)
        return groups[0] if groups else None

    def _is_of_parameter(self, tensor: Any) -> bool:
        value = self.value_of(tensor)
        return value is not None and value.group is not None

    def _is_for_all(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> bool:
        """Return whether the call reduces tensors from before the step to one number, so that it can run before all updates."""
        operands = [a.tensor if is_of_elements(a) else a for a in flat((*args, *kwargs.values()))]
        tensors = [a for a in operands if isinstance(a, Tensor)]
        return (
            isinstance(result, Tensor)
            and result.ndim == 0
            and name in REDUCTIONS
            and all(
                self._initial.get(self.root_of(t)) is self.value_of(t) and not self.memory.is_view(t) for t in tensors
            )
        )

    def _finish(self, call: Call, result: Any, group: ValueGroup | None, device: torch.device) -> Any:
        """Enter a call and what it returns. The number that a reduction makes of a parameter's elements belongs to no group."""
        self.calls.append(call)
        call.group = group
        if call.name in REDUCTIONS and not call.is_inplace and isinstance(result, Tensor) and not result.ndim:
            group = None
        if call.is_inplace:
            target = call.arguments[0]
            value = Value(target.shape, target.dtype, None, call, group)
            tensor = result
            if self.memory.is_view(tensor) and group is not None:
                group.root().reason = group.root().reason or f"it writes through a view ({call.name})"
            role = origin_of(value).role
            if role is not None and role.kind == "scalar" and group is not None:
                group.root().reason = group.root().reason or f"it changes {role.key}"
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
        call.results, call.group = (value,), group
        self.calls.append(call)
        self.current[owner] = value
