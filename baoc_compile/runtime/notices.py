"""Errors and warnings for steps that baoc can't rewrite."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from baoc_compile.core.errors import BaocWarning, OptionError

_NOTICED: weakref.WeakSet[Any] = weakref.WeakSet()


def refuse_differentiable(optimizer: Any) -> None:
    """Raise OptionError for optimizer options under which a rewritten step would be wrong or never run."""
    for index, group in enumerate(optimizer.param_groups):
        for option, why in _REFUSED.items():
            if group.get(option):
                name = type(optimizer).__name__
                raise OptionError(f"param_groups[{index}]: {name}({option}=True) {why}; create it with {option}=False")


_REFUSED = {
    "differentiable": "asks for gradients through the step, which a fused in-place update does not have",
}


def notice(optimizer: Any, reason: str) -> None:
    """Warn, once per optimizer, that its step runs as written, and why."""
    if optimizer not in _NOTICED:
        _NOTICED.add(optimizer)
        warnings.warn(
            f"the step of {type(optimizer).__name__} runs as written, on state that is decoded before and encoded after it: "
            f"{reason}",
            BaocWarning,
            stacklevel=2,
        )
