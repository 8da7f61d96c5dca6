"""The optimizer inside a wrapper: trainers, schedulers and optimizers around optimizers have one.

A wrapper's `step` may do more than step: it calls hooks, closures, collective operations. So it is never called, and never
read; what is prepared is what it steps.
"""

from __future__ import annotations

from typing import Any

from baoc_compile.core.errors import OptionError

#: The attributes and properties by which wrappers show what is inside.
NAMES = ("optimizer", "base_optimizer", "optim")


def inside(optimizer: Any) -> Any:
    """Return the optimizer itself, or the one inside a wrapper, or inside a wrapper's wrapper.

    What is inside is the attribute or property `optimizer`, `base_optimizer` or `optim`. A wrapper that has no parameter
    groups of its own, and passes on what it is asked for, may hold it under any name.

    Raises OptionError if there is none, if there are several, and if the wrapper's groups are not those of what is inside:
    then it decides by itself who steps which parameter. Nothing has changed, and no step was taken.
    """
    current, seen = optimizer, [optimizer]
    while (found := _part(current)) is not None and not any(found[1] is s for s in seen):
        name, inner = found
        own = _attributes(current).get("param_groups")
        if isinstance(own, list) and own is not inner.param_groups:
            raise OptionError(
                f"optimizer: {type(current).__name__} has parameter groups of its own beside those of the optimizer inside "
                f"it; prepare that one: baoc_compile.prepare(optimizer.{name})"
            )
        current = inner
        seen.append(current)
    for needed in ("param_groups", "state", "step"):
        if not hasattr(current, needed):
            raise OptionError(f"optimizer: expected an optimizer, but {type(current).__name__} has no {needed!r}")
    return current


def _part(wrapper: Any) -> tuple[str, Any] | None:
    """Return the name and the object of what a wrapper holds; None if it is no wrapper."""
    attributes = _attributes(wrapper)
    for name in NAMES:
        shown = attributes.get(name)
        if shown is None and isinstance(getattr(type(wrapper), name, None), property):
            shown = getattr(wrapper, name, None)
        if _is_optimizer(shown):
            return name, shown
    if "param_groups" in attributes:
        return None
    held = {name: value for name, value in attributes.items() if _is_optimizer(value)}
    if len({id(value) for value in held.values()}) > 1:
        ways = ", ".join(f"baoc_compile.prepare(optimizer.{name}, ...)" for name in held)
        raise OptionError(
            f"optimizer: {type(wrapper).__name__} holds {len(held)} optimizers; prepare each of them: {ways}"
        )
    return next(iter(held.items()), None)


def _is_optimizer(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "param_groups") and hasattr(value, "step")


def _attributes(value: Any) -> dict[str, Any]:
    found = getattr(value, "__dict__", {})
    return found if isinstance(found, dict) else {}
