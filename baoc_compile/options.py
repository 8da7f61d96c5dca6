"""Options of `torch.compile(..., backend="baoc", options={...})`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baoc_compile.core.errors import OptionError
from baoc_compile.state.request import Request


@dataclass(frozen=True)
class Options:
    """The options of the backend.

    request: `memory_budget`, `plan`, `seed` and the fields of `PlannerOptions`, each an option of its own name.
    inner_backend: name of the backend, or the function, that compiles everything but elementwise optimizer steps.
    """

    request: Request = field(default_factory=Request)
    inner_backend: Any = "inductor"

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> Options:
        """Return the options in `given`.

        Raises OptionError for unknown names and wrong values, PlanError for a bad plan.
        """
        given = dict(given or {})
        known = {"inner_backend"} | Request.option_names()
        unknown = sorted(set(given) - known)
        if unknown:
            raise OptionError(f'unknown option {unknown[0]!r} of backend "baoc"; known are {", ".join(sorted(known))}')
        inner = {name: given.pop(name) for name in {"inner_backend"} & set(given)}
        return cls(Request.parse(given), **inner)
