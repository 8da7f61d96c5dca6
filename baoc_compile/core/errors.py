"""What can go wrong, as types: every message says which parameter or option, what was wrong and what to do."""

from __future__ import annotations

import threading
import warnings


class BaocError(RuntimeError):
    """Base of every error that baoc raises on purpose."""


class OptionError(BaocError, ValueError):
    """An option of the backend or of `prepare` has a wrong name, type or value."""


class BudgetError(BaocError, ValueError):
    """No configuration fits the memory budget; the message names the smallest possible one."""


class PlanError(BaocError, ValueError):
    """A plan is malformed, of another version, or does not fit the optimizer."""


class StateError(BaocError):
    """Optimizer state is not what the plan or the traced step expects."""


class UnsupportedStep(BaocError):
    """The traced step cannot be rewritten; the message says why and what works instead."""


class BaocWarning(UserWarning):
    """Something works, but not the way the user probably meant it to."""


class CompilerMissing(RuntimeError):
    """C++ can't be compiled, for now: no compiler, one that fails, or no folder to compile in. Never reaches the user."""


class CannotEmit(Exception):
    """An operation that has no Triton equivalent. Never reaches the user."""


_TOLD: set[object] = set()
_ONE_AT_A_TIME = threading.Lock()


def warn_once(message: str, about: object = None) -> None:
    """Gives a BaocWarning, once in a process. `about`: what the message tells of, where its text varies."""
    with _ONE_AT_A_TIME:
        is_told = (about or message) in _TOLD
        _TOLD.add(about or message)
    if not is_told:
        warnings.warn(message, BaocWarning, stacklevel=3)
