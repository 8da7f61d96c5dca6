"""A memory budget as the user writes it: "28%", "2.2 B/param", "512 MiB" or a number of bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from baoc_compile.errors import OptionError

DEFAULT_BUDGET = "28%"

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_PATTERN = re.compile(
    r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|(?:[kKmMgGtT][iI]?)?[bB](?:\s*/\s*param(?:eter)?)?)?\s*"
)


@dataclass(frozen=True)
class MemoryBudget:
    """A limit on the bytes of optimizer state, every scale and counter included."""

    text: str
    amount: float
    unit: str  # "%", "B/param" or "B"

    @classmethod
    def parse(cls, value: str | int | float) -> MemoryBudget:
        """Raises OptionError that names the option and the accepted forms."""
        problem = OptionError(
            f'memory_budget: {value!r} is not a budget; write "25%" (of full-precision state), '
            '"2.2 B/param", "512 MiB" or a number of bytes'
        )
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise problem
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

    def in_bytes(self, full_state_bytes: int, parameter_numel: int) -> int:
        """`full_state_bytes`: the state in full precision; `parameter_numel`: elements of all stepped parameters."""
        if self.unit == "%":
            return int(full_state_bytes * self.amount / 100)
        return int(parameter_numel * self.amount if self.unit == "B/param" else self.amount)
