"""A block: a set of parameters that share one decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Parameters whose state is stored alike.

    `role`: the place that they have in the model's computation ("query", "mlp out", "embedding+head"), or the user's own
    label. `parameters`: indices in the optimizer's own order (see `ParameterTable`), ascending. `detail` tells blocks
    of one role apart: their shape, with a number where even that is the same.

        >>> Block("query", (2, 9, 16), "64x64").name
        'query 64x64'
    """

    role: str
    parameters: tuple[int, ...]
    detail: str = ""

    @property
    def name(self) -> str:
        """Unique among the blocks of one optimizer."""
        return f"{self.role} {self.detail}".rstrip()

    def __str__(self) -> str:
        return f"{self.name} ({len(self.parameters)} parameters)"
