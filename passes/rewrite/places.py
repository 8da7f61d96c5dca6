"""Places where an optimizer keeps numbers and other objects: read them, and write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from baoc_compile.passes.numbers.expressions import Attribute, Source
from baoc_compile.passes.recorder.recording import Write


def object_at(optimizer: Any, source: Any) -> Any:
    """Return what an optimizer keeps at a place."""
    first, *path = source.path
    parameters: list[Tensor] = []
    if source.kind == "state" or any(map(is_parameter, path)):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if source.kind == "state":
        found = optimizer.state[parameters[source.parameter]][first]
    else:
        found = optimizer.param_groups[first] if source.kind == "group" else vars(optimizer)[first]
    for key in path:
        found = entry_of(found, parameters[key[1]] if is_parameter(key) else key)
    return found


def entry_of(holder: Any, key: Any) -> Any:
    """Return an entry of a container, or an attribute of an object."""
    return getattr(holder, key.name) if isinstance(key, Attribute) else holder[key]


def set_entry(holder: Any, key: Any, value: Any) -> None:
    """Change an entry of a container, or an attribute of an object."""
    if isinstance(key, Attribute):
        setattr(holder, key.name, value)
    else:
        holder[key] = value


def is_parameter(key: Any) -> bool:
    """Return whether a key of a path stands for a parameter."""
    return isinstance(key, tuple) and key[:1] == ("parameter",)


def entry_at(entries: Any, path: Sequence[Any]) -> Any:
    """Return what a path leads to."""
    for key in path:
        entries = entry_of(entries, key)
    return entries


def put(entries: Any, write: Write, value: Any) -> None:
    """Change an entry of one parameter's state."""
    *path, last = write.source.path
    set_entry(entry_at(entries, path), last, value)


def put_shared(optimizer: Any, write: Write, value: Any) -> None:
    """Change a number or constant outside of the state."""
    *path, last = write.source.path
    holder = object_at(optimizer, replace(write.source, path=tuple(path))) if path else vars(optimizer)
    if is_parameter(last):
        last = _parameter_of(optimizer, last[1])
    if write.dtype is not None:
        entry_of(holder, last).copy_(value) if isinstance(value, Tensor) else entry_of(holder, last).fill_(value)
    else:
        set_entry(holder, last, value)


def reader_of(sources: Sequence[Source]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that reads these numbers of an optimizer, compiled to one expression."""
    constants: dict[str, Any] = {}
    parts = []
    for source in sources:
        first, *path = source.path
        if source.kind == "group":
            text = f"optimizer.param_groups[{first}]"
        elif source.kind == "attribute":
            constants[f"k{len(constants)}"] = first
            text = f"vars(optimizer)[k{len(constants) - 1}]"
        else:
            constants[f"k{len(constants)}"] = source.parameter
            text = f"state_of(optimizer, k{len(constants) - 1})"
            path = list(source.path)
        for key in path:
            at = f"k{len(constants)}"
            constants[at] = key
            text = f"entry({text}, {at})" if isinstance(key, Attribute) else f"{text}[{at}]"
            if is_parameter(key):
                constants[at] = key[1]
                text = text[: -len(f"[{at}]")] + f"[parameter_of(optimizer, {at})]"
        parts.append(text + (".item()" if source.is_tensor else ""))
    constants |= {"state_of": _state_of, "parameter_of": _parameter_of, "entry": entry_of}
    return eval(f"lambda optimizer: ({''.join(part + ', ' for part in parts)})", constants)


def _parameter_of(optimizer: Any, index: int) -> Tensor:
    return [p for group in optimizer.param_groups for p in group["params"]][index]


def _state_of(optimizer: Any, index: int) -> Any:
    return optimizer.state[_parameter_of(optimizer, index)]
