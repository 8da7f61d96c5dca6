"""Errors and warnings for steps that torch.compile does not hand to baoc, or that baoc can't rewrite."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from baoc_compile.core.errors import BaocWarning, OptionError
from baoc_compile.core.torch_private import fused_steps, running_backends

_NOTICED: weakref.WeakSet[Any] = weakref.WeakSet()


def refuse_untraceable(optimizer: Any) -> None:
    """Raise OptionError for optimizer options under which a rewritten step would be wrong or never run."""
    for index, group in enumerate(optimizer.param_groups):
        for option, why in _REFUSED.items():
            if group.get(option):
                name = type(optimizer).__name__
                raise OptionError(f"param_groups[{index}]: {name}({option}=True) {why}; create it with {option}=False")


_REFUSED = {
    "fused": "is never traced by torch.compile, so baoc could not compress its state (baoc fuses the step itself)",
    "differentiable": "asks for gradients through the step, which a fused in-place update does not have",
}


def notice(optimizer: Any, reason: str) -> None:
    """Warn, once per optimizer, that its state stays as it is, and why."""
    if optimizer not in _NOTICED:
        _NOTICED.add(optimizer)
        warnings.warn(f"the state of {type(optimizer).__name__} stays as it is: {reason}", BaocWarning, stacklevel=2)


def watch_fused_steps() -> None:
    """Watch torch's fused steps. torch.compile never traces them, so it calls no backend for them."""
    for module, name in fused_steps():
        function = getattr(module, name)
        if not hasattr(function, "watched_by_baoc"):
            setattr(module, name, _watched(function))


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if not _FUSED_NOTICED and _inside_baoc():
            _FUSED_NOTICED.append(True)
            warnings.warn(
                'an optimizer created with fused=True was compiled with backend="baoc", but torch.compile never traces '
                "fused steps, so its state stays as it is; create it with fused=False (baoc fuses the step itself)",
                BaocWarning,
                stacklevel=2,
            )
        return function(*args, **kwargs)

    watched.watched_by_baoc = True  # type: ignore[attr-defined]
    return torch.compiler.disable(watched, reason="torch does not trace fused optimizers")


_FUSED_NOTICED: list[bool] = []


def _inside_baoc() -> bool:
    """Return whether a function compiled with backend="baoc" is on the stack."""
    return any(getattr(backend, "compiler_name", "") == "baoc" for backend in running_backends())
