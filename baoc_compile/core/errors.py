"""What can go wrong, as types: every message says which parameter or option, what was wrong and what to do."""


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
