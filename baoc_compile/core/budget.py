"""Budgets as the user writes them: memory ("28%", "2.2 B/param", "512 MiB", bytes, "fit") and time ("2 ms", "150%")."""

from __future__ import annotations

import re
from dataclasses import dataclass

from baoc_compile.core.errors import OptionError

DEFAULT_BUDGET = "28%"

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_PATTERN = re.compile(
    r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|(?:[kKmMgGtT][iI]?)?[bB](?:\s*/\s*param(?:eter)?)?)?\s*"
)


@dataclass(frozen=True)
class MemoryBudget:
    """A limit on the bytes of optimizer state, every scale and counter included.

    text: the budget as the user wrote it.
    amount: its number, in `unit`; 0 for "fit".
    unit: "%" of full-precision state, "B/param", "B", "fit" (what the device has left), or "B on all" devices that hold parts
        of the state.
    """

    text: str
    amount: float
    unit: str

    @classmethod
    def parse(cls, value: str | int | float) -> MemoryBudget:
        """Return the budget that `value` describes.

        Raises OptionError, which names the option and the accepted forms.
        """
        problem = OptionError(
            f'memory_budget: {value!r} is not a budget; write "25%" (of full-precision state), '
            '"2.2 B/param", "512 MiB", a number of bytes, or "fit" (what the device has left)'
        )
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise problem
        if value == "fit":
            return cls("fit", 0.0, "fit")
        match = _PATTERN.fullmatch(str(value))
        if match is None or not 0 < float(match[1]) < 1e18:
            raise problem
        amount, unit = float(match[1]), (match[2] or "B").replace(" ", "")
        if unit == "%":
            return cls(str(value), amount, "%")
        if "/" in unit:
            if unit.split("/")[0].upper() != "B":
                raise problem
            return cls(str(value), amount, "B/param")
        return cls(str(value), amount * _UNITS[unit.upper()], "B")

    @property
    def is_deferred(self) -> bool:
        """Whether the limit is unknown until the device has seen a forward and backward pass."""
        return self.unit == "fit"

    def resolved(self, left_bytes: int) -> MemoryBudget:
        """Return the same budget as a number of bytes, now that `left_bytes` are known to be left."""
        return MemoryBudget(self.text, left_bytes, "B")

    def on_all(self, amount: float) -> MemoryBudget:
        """Return the same budget as the bytes that the parts on all devices may take, now that these are known."""
        return MemoryBudget(self.text, amount, "B on all")

    def in_bytes(self, full_state_bytes: int, parameter_numel: int, other_bytes: int = 0) -> int:
        """Return the limit in bytes.

        full_state_bytes: bytes, in full precision, of the state that can be compressed. A percentage refers to them.
        parameter_numel: elements of all parameters that are stepped.
        other_bytes: bytes of state that can't be compressed, which a percentage leaves as it is.
        """
        if self.unit == "%":
            return int(full_state_bytes * self.amount / 100) + other_bytes
        return int(parameter_numel * self.amount if self.unit == "B/param" else self.amount)


_TIME_UNITS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_TIME_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|ns|us|µs|ms|s)\s*")


@dataclass(frozen=True)
class TimeBudget:
    """A limit on the predicted time of one optimizer step on this device.

    text: the budget as the user wrote it.
    amount: its number, in `unit`.
    unit: "%" of the step in full precision, or "ns".
    """

    text: str
    amount: float
    unit: str

    @classmethod
    def parse(cls, value: str) -> TimeBudget:
        """Return the budget that `value` describes.

        Raises OptionError, which names the option and the accepted forms.
        """
        match = _TIME_PATTERN.fullmatch(value) if isinstance(value, str) else None
        if match is None or not 0 < float(match[1]) < 1e18:
            raise OptionError(
                f'time_budget: {value!r} is not a time; write "2.5 ms", "800 us", or "120%" (of the step in full precision)'
            )
        amount = float(match[1])
        return cls(value, amount, "%") if match[2] == "%" else cls(value, amount * _TIME_UNITS[match[2]], "ns")

    def in_ns(self, full_ns: float) -> float:
        """Return the limit in nanoseconds; `full_ns` is the predicted time of the step in full precision."""
        return full_ns * self.amount / 100 if self.unit == "%" else self.amount
