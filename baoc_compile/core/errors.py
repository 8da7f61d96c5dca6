"""Errors and warnings. Every message names the parameter or option, what was wrong with it, and what to do."""

from __future__ import annotations

import threading
import warnings


class BaocError(RuntimeError):
    """Base of every error that baoc raises on purpose."""


class OptionError(BaocError, ValueError):
    """An option of the backend or of `prepare` has a wrong name, type or value."""


class BudgetError(BaocError, ValueError):
    """Nothing fits the memory or time budget; the message names a budget that can be met."""


class PlanError(BaocError, ValueError):
    """A plan is malformed, has another version, or does not fit the optimizer."""


class StateError(BaocError):
    """The optimizer, its state or its steps are not as the call expects them; the message says what to do."""


class UnsupportedStep(BaocError):
    """A step that can't be rewritten; the message says why."""


class StateToCome(UnsupportedStep):
    """A step that makes state which only itself can make; once that exists, the step may be rewritten."""


class OtherBranch(Exception):
    """A condition on elements is another one than where the step was recorded. Nothing has changed."""


class StateMissing(KeyError):
    """A program needs an entry of state that the optimizer does not have."""


class BaocWarning(UserWarning):
    """Something works, but probably not as the user meant it."""


class CompilerMissing(RuntimeError):
    """C++ can't be compiled now: no compiler, one that fails, or no usable folder. The caller falls back to torch."""


class CannotEmit(Exception):
    """An operation has no Triton equivalent. The caller falls back to torch."""


_TOLD: set[object] = set()
_ONE_AT_A_TIME = threading.Lock()


def warn_once(message: str, about: object = None) -> None:
    """Give a BaocWarning once per process.

    about: what identifies the warning where its text varies; by default the message itself.
    """
    with _ONE_AT_A_TIME:
        is_told = (about or message) in _TOLD
        _TOLD.add(about or message)
    if not is_told:
        warnings.warn(message, BaocWarning, stacklevel=3)
