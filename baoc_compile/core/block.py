"""Block: a set of parameters that share one decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Parameters whose state is stored alike.

    role: their place in the model's computation ("query", "mlp out", "embedding+head"), or the user's own label.
    parameters: their indices in the optimizer's order (see `ParameterTable`), ascending.
    detail: what tells blocks of one role apart: their shape, and a number where shapes are equal too.

        >>> Block("query", (2, 9, 16), "64x64").name
        'query 64x64'
    """

    role: str
    parameters: tuple[int, ...]
    detail: str = ""

    @property
    def name(self) -> str:
        """Role and detail; unique among the blocks of one optimizer."""
        return f"{self.role} {self.detail}".rstrip()

    def __str__(self) -> str:
        return f"{self.name} ({len(self.parameters)} parameters)"
