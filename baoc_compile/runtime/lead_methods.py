"""Let an optimizer's own methods, such as Schedule-Free's `eval()`, see its state decoded while they change weights.

Some state is stored as its difference to the weights. A method that changes weights changes that as well, unless the state
is decoded before it and encoded after it. So the public methods that a class adds to those of torch's are passed through here;
for an optimizer without such state they run as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from baoc_compile.passes.migrate.opened_state import opened_state
from baoc_compile.runtime.session import known_session
from baoc_compile.state.entries import follows_weights


def lead_methods(optimizer_class: type) -> None:
    """Pass the class's own public methods through."""
    for owner in optimizer_class.__mro__:
        if owner in (torch.optim.Optimizer, object) or owner in torch.optim.Optimizer.__mro__:
            continue
        for name, method in list(vars(owner).items()):
            is_own = isinstance(method, FunctionType) and not name.startswith("_")
            if is_own and not hasattr(torch.optim.Optimizer, name) and not hasattr(method, "led_by_baoc"):
                setattr(owner, name, _led(method))


def _led(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def led(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_to_open(self):
            return method(self, *args, **kwargs)
        with opened_state(self):
            return method(self, *args, **kwargs)

    led.led_by_baoc = True  # type: ignore[attr-defined]
    return led


def _is_to_open(optimizer: Any) -> bool:
    """Return whether an optimizer has state that is to be decoded now."""
    session = known_session(optimizer)
    is_stepping = session is None or session.own is None or session.own.is_running
    return not is_stepping and follows_weights(optimizer)
