"""The part of a recorder that keeps stacks of single elements apart: what is done to them is done to each element.

A step that stacks the norms of all parameters, computes with the stack and takes it apart again would otherwise join the
updates of all parameters. A stack is made only where a call needs it as a whole, such as a sum over it.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.names import words
from baoc_compile.passes.recorder.arguments import flat
from baoc_compile.passes.recorder.recording import Call, Value
from baoc_compile.passes.recorder.value_recorder import ValueRecorder

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id

#: Calls that compute every element of their result of the same element of their arguments.
ELEMENTWISE = words(
    "add sub rsub mul div rdiv neg abs sqrt rsqrt reciprocal square exp log pow clamp clamp_min clamp_max maximum minimum "
    "where eq ne lt le gt ge bitwise_and bitwise_or bitwise_not logical_and logical_or logical_not isfinite isnan sign"
)


@dataclass(eq=False)
class Stack:
    """A stack of stand-ins of one element each.

    tensor: the stand-in of the stack.
    parts: those of its elements.
    is_owner: whether `parts` are the stack's own: in-place calls on them change the stack, and the other way round.
    is_shown: whether the step has got the parts.
    """

    tensor: Tensor
    parts: list[Tensor]
    is_owner: bool
    is_shown: bool = False


class StackRecorder(ValueRecorder):
    """Base class of the recorder.

    stacks: id of a stand-in -> the stack that it is, as long as that need not be made.
    has_stacked: whether there were any: what is stacked may depend on which gradients exist.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.stacks: dict[int, Stack] = {}
        self.has_stacked = False
        self._borrowed: set[int] = set()  # ids of tensors that stacks refer to without owning them
        self._made_of_shown: set[int] = set()  # ids of tensors that would show each other's changes, but do not

    def value_of(self, tensor: Tensor) -> Value | None:
        """Return the present value of a tensor, after making it if it is a stack."""
        if id(tensor) in self.stacks:
            self._make(self.stacks.pop(id(tensor)))
        return super().value_of(tensor)

    def on_stacks(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Record a call that makes a stack, or works on each of its elements; return `NotImplemented` for any other."""
        tensors = [a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
        stacks = [self.stacks[id(t)] for t in tensors if id(t) in self.stacks]
        if not stacks:
            return self._stack(args[0]) if name == "stack" and len(args) == 1 and not kwargs else NotImplemented
        count = len(stacks[0].parts)
        if name == "unbind" and args[1:] in ((), (0,)) and not kwargs:
            return tuple(self._shown_parts(stacks[0]))
        if name == "getitem" and type(args[1]) is int and -count <= args[1] < count:
            return self._shown_parts(stacks[0])[args[1]]
        others = [t for t in tensors if id(t) not in self.stacks]
        dtypes = {s.tensor.dtype for s in stacks}  # a single element of another type counts less beside a stack
        is_alike = dtypes == {torch.bool} or all(t.dtype in dtypes for t in others)
        is_single = all(t.ndim == 0 for t in others) and all(len(s.parts) == count for s in stacks)
        is_known = name in ELEMENTWISE and "out" not in kwargs and (not is_inplace or id(args[0]) in self.stacks)
        if not (is_known and is_single and is_alike):
            return NotImplemented
        if is_inplace:
            self._own(self.stacks[id(args[0])])
        results = [
            self._record(
                name,
                func,
                is_inplace,
                [self._part(a, i) for a in args],
                {k: self._part(a, i) for k, a in kwargs.items()},
            )
            for i in range(count)
        ]
        return args[0] if is_inplace else self._entered(results, is_owner=True)

    def _stack(self, parts: Any) -> Any:
        known = [
            super(StackRecorder, self).value_of(p) for p in parts if isinstance(p, Tensor) and id(p) not in self.numbers
        ]
        is_single = len(known) == len(parts) > 0 and all(v is not None and not v.shape for v in known)
        if not is_single or len({v.dtype for v in known if v is not None}) > 1:
            return NotImplemented
        return self._entered(list(parts), is_owner=False)

    def _entered(self, parts: list[Tensor], *, is_owner: bool) -> Tensor:
        self.has_stacked = True
        tensor = torch.empty(len(parts), dtype=parts[0].dtype, device="meta")
        self.stacks[id(tensor)] = Stack(tensor, parts, is_owner)
        self._borrowed |= set() if is_owner else {self.memory.owner_of(p) for p in parts}
        self.devices[id(tensor)] = self.devices.get(self.root_of(parts[0]), self.device)
        self._kept.append(tensor)
        return tensor

    def _part(self, argument: Any, position: int) -> Any:
        return self.stacks[id(argument)].parts[position] if id(argument) in self.stacks else argument

    def _own(self, stack: Stack) -> None:
        """Give a stack elements of its own."""
        if not stack.is_owner:
            stack.parts = [
                super(StackRecorder, self)._record("clone", torch.clone, False, (p,), {}) for p in stack.parts
            ]
            stack.is_owner = True

    def _shown_parts(self, stack: Stack) -> list[Tensor]:
        self._own(stack)
        stack.is_shown = True
        return stack.parts

    def _make(self, stack: Stack) -> None:
        """Record the call that makes a stack."""
        call = Call("stack", torch.stack, False, [[self._read(p) for p in stack.parts]], {})
        group = self._group_of(call, stack.parts)
        self._finish(call, stack.tensor, group, self.devices[id(stack.tensor)])
        if stack.is_shown:
            self._made_of_shown.update(map(id, (stack.tensor, *stack.parts)))

    def _record(self, name: str, func: Any, is_inplace: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if is_inplace and isinstance(args[0], Tensor):
            owner = self.memory.owner_of(args[0])
            if owner in self._made_of_shown:
                raise UnsupportedStep("it changes a stack of which it has the parts, or a part of it")
            for stack in list(self.stacks.values()) if owner in self._borrowed else ():
                if not stack.is_owner and any(self.memory.owner_of(p) == owner for p in stack.parts):
                    self._own(stack)
        return super()._record(name, func, is_inplace, args, kwargs)
