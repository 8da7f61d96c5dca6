"""Something that is compiled once for the process, and done without where it can't be."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from baoc_compile.core.errors import CompilerMissing

log = logging.getLogger("baoc")

Made = TypeVar("Made")


class Attempt(Generic[Made]):
    """The outcome of the first call, for all later ones.

    make: makes it; LookupError, OSError and CompilerMissing mean that it can't be made here.
    instead: what is done without it, for the log.
    """

    def __init__(self, make: Callable[[], Made], instead: str):
        self._make, self._instead = make, instead
        self._one_at_a_time = threading.Lock()
        self._outcome: list[Made | None] = []  # of the last attempt; empty before the first

    def __call__(self) -> Made | None:
        """Return what was made; None if it can't be. The first call makes it."""
        if not self._outcome:
            with self._one_at_a_time:
                if not self._outcome:
                    self._outcome.append(self._made())
        return self._outcome[0]

    def _made(self) -> Made | None:
        try:
            return self._make()
        except (LookupError, OSError, CompilerMissing) as reason:
            log.info("%s: %s", self._instead, reason)
            return None

    def try_again(self) -> Made | None:
        """Return what was made, repeating an attempt that failed: what was missing may exist now."""
        with self._one_at_a_time:
            if self._outcome == [None]:
                self._outcome = [self._made()]
        return self()
