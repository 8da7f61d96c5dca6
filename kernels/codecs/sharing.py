"""Sharing codecs: one fp32 number for many elements, their mean. The step uses the values that the means decode to.

With s' = decay * s + increment and P the projection onto the means, P(s') = decay * P(s) + P(increment): only the
increment has to be averaged, in a launch before the update. Adafactor (arXiv 1804.04235) shares second moments along
rows and columns, Gefen (arXiv 2606.13894) along runs of p elements, SlimAdam along one axis.
Sums are in double, stored means in fp32: each store makes an error of 2^-24 of the mean, whatever the decay. There is
no `encode`: storing a tensor means averaging it.

| name | one value per | entries |
|---|---|---|
| `row` | index of dimension 0 | R |
| `column` | position in the other dimensions | C = numel / R |
| `head:d` | d consecutive indices of dimension 0 | R / d |
| `column_head:d` | d consecutive columns | C / d |
| `run:p` | p consecutive elements, row-major | numel / p |
| `tensor` | tensor | 1 |
| `factored` | row i and column j: R_i C_j / mean | R + C + 1 |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Part, Sharing, Slot, sign_mismatch


class Shared(Codec):
    """One mean, of 4 bytes, per set of elements.

    form: the name in the table above, without its size.
    size: the d or p of that table; 0 for forms without.
    """

    mechanism = "sharing"
    parts = (Part("values", torch.float32, "shared"),)
    relative_error = 1.0  # nothing bounds an element by the mean of its set
    expected_harm = 10.0

    def __init__(self, form: str, size: int = 0):
        self.form, self.size = form, size
        self.name = f"{form}:{size}" if size else form
        self.unites_rows = form in ("row", "column", "tensor")

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["values"]

    def sharing(self, part: Part, shape: torch.Size) -> Sharing:
        numel, (rows, columns) = torch.Size(shape).numel(), as_matrix(shape)
        return {
            "row": lambda: Sharing(columns, rows),
            "column": lambda: Sharing(1, columns),
            "head": lambda: Sharing(self.size * columns, rows // self.size),
            "column_head": lambda: Sharing(self.size, columns // self.size),
            "run": lambda: Sharing(self.size, numel // self.size),
            "tensor": lambda: Sharing(numel, 1),
        }[self.form]()

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        return super().why_not(slot, shape) or slot.why_not_shared or self._misfit(torch.Size(shape))

    def _misfit(self, shape: torch.Size) -> str:
        if self.form not in ("run", "tensor") and len(shape) < 2:
            return f"{self.name} needs at least 2 dimensions, not shape {tuple(shape)}"
        whole = {"head": shape[:1].numel(), "column_head": shape[1:].numel(), "run": shape.numel()}.get(self.form)
        if whole is not None and whole % self.size:
            return f"{self.size} does not divide {whole}, so {self.name} does not fit shape {tuple(shape)}"
        return ""


class Factored(Codec):
    """value_ij = R_i C_j / mean, with R and C the row and column means.

    Adafactor (arXiv 1804.04235, section 3) uses row and column *sums*, which give the same quotient. Exact if the slot
    is the product of a row factor and a column factor. 0 where the mean is 0. Dimensions after the first form the
    columns.
    """

    name = "factored"
    mechanism = "sharing"
    parts = tuple(Part(name, torch.float32, "shared") for name in ("rows", "columns", "mean"))
    relative_error = 1.0
    expected_harm = 6.0
    unites_rows = True

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        mean = stored["mean"]
        return stored["rows"] / torch.where(mean > 0.0, mean, 1.0) * stored["columns"]

    def sharing(self, part: Part, shape: torch.Size) -> Sharing:
        numel, (rows, columns) = torch.Size(shape).numel(), as_matrix(shape)
        return {"rows": Sharing(columns, rows), "columns": Sharing(1, columns), "mean": Sharing(numel, 1)}[part.name]

    def why_not(self, slot: Slot, shape: torch.Size) -> str:
        reason = super().why_not(slot, shape) or slot.why_not_shared or sign_mismatch(self.name, False, slot)
        if not reason and len(shape) < 2:
            reason = f"factored needs at least 2 dimensions, not shape {tuple(shape)}"
        return reason


def as_matrix(shape: torch.Size) -> tuple[int, int]:
    """Return (rows, columns): the size of the first dimension, and the product of all others."""
    rows = shape[0] if len(shape) else 1
    return rows, torch.Size(shape).numel() // max(rows, 1)
