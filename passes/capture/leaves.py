"""What an optimizer keeps: its groups, state and attributes, taken apart into numbers, tensors and other objects."""

from __future__ import annotations

import builtins
import enum
import pickle
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.names import words
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.numbers.element_numbers import is_of_elements
from baoc_compile.passes.numbers.expressions import Attribute, Source
from baoc_compile.passes.numbers.traced_numbers import is_traced, plain_value
from baoc_compile.state.state_tensor import StateTensor

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id

#: Attributes of an optimizer that are not part of its step: our own, hooks, and what schedulers and scalers leave there.
LEFT_OUT = words(
    "state param_groups step _baoc_session _baoc_key __getstate__ _opt_called _zero_grad_profile_name "
    "_warned_capturable_if_run_uncaptured _step_supports_amp_scaling grad_scale found_inf"
)
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


def is_of_weight(value: Any) -> bool:
    """Return whether a state entry is what a weight codec keeps, of which the user's step knows nothing."""
    return isinstance(value, StateTensor) and value.codec.mechanism == "weight"


def leaves_of(optimizer: Any, parameters: Sequence[Tensor]) -> Iterator[tuple[Source, Any]]:
    """Yield (source, value) of everything that an optimizer keeps besides its parameters, containers taken apart."""
    index_of = {id(p): i for i, p in enumerate(parameters)}
    for g, group in enumerate(optimizer.param_groups):
        for key, value in dict.items(group):
            if key != "params" and not is_way_to_compute(optimizer, key):
                yield from leaves_at(value, "group", (g, key), -1, index_of)
    for parameter, entries in optimizer.state.items():
        index = index_of.get(id(parameter), -1)
        if index >= 0 or not isinstance(parameter, Tensor):
            path = () if index >= 0 else ("state", parameter)
            yield from leaves_at(entries, "state" if index >= 0 else "attribute", path, index, index_of)
    for name, value in vars(optimizer).items():
        if not is_left_out(name):
            yield from leaves_at(value, "attribute", (name,), -1, index_of)


def bare(value: Any) -> Any:
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
    return (
        is_plain
        and not is_of_elements(value)
        and hasattr(value, "__dict__")
        and not isinstance(value, (*odd, enum.Enum))
    )


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


def leaves_at(
    value: Any, kind: Any, path: tuple[Any, ...], parameter: int, index_of: dict[int, int]
) -> Iterator[tuple[Source, Any]]:
    """Yield (source, value) of everything in a value that is kept at a path; of a parameter, its index in `index_of`."""
    if id(value) in index_of:
        yield Source(kind, path, parameter), ("parameter", index_of[id(value)])
    elif is_container(value):
        entries = dict.items(value) if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            if not is_of_weight(entry):
                at = ("parameter", index_of[id(key)]) if id(key) in index_of else key
                yield from leaves_at(entry, kind, (*path, at), parameter, index_of)
    elif has_attributes(value):
        for name, entry in vars(value).items():
            yield from leaves_at(entry, kind, (*path, Attribute(name)), parameter, index_of)
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
    if is_of_elements(value):
        return float
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


#: Containers that are taken apart.
_CONTAINERS: set[type] = {dict, OrderedDict, defaultdict, list, tuple}


def is_container(value: Any) -> bool:
    """Return whether a value is a container that is taken apart, in an optimizer or in a stand-in."""
    return type(value) in _CONTAINERS or getattr(type(value), "is_stand_in", False)
