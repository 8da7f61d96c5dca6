"""Slot values: read some elements or rows of a slot, however it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baoc_compile.kernels.codecs.sharing import as_matrix
from baoc_compile.state.state_tensor import StateTensor

#: Elements that are decoded at a time.
CHUNK_ELEMENTS = 1 << 18


def values_at(value: Any, index: Tensor) -> Tensor:
    """Return elements of a tensor or of compressed state, in fp32.

    Values of a plain tensor stay on its device, values of compressed state come to the host. A dropped slot reads as
    zeros.
    """
    if isinstance(value, StateTensor):
        return value.decode_at(index).float().cpu()
    return value.detach().reshape(-1)[index.to(value.device)].float()


@dataclass(frozen=True)
class Moments:
    """Float32 means of a slot over rows and columns, and how well they represent its elements.

    rows: `[R]`, the mean of every row.
    columns: `[C]`, the mean of every column.
    snr: axis ("row", "column", "tensor") -> signal-to-noise ratio of the means along it.
    """

    rows: Tensor
    columns: Tensor
    snr: dict[str, float]


def moments_of(value: Any, parameter: Tensor) -> Moments:
    """Return the moments of a slot of `parameter`. The slot is decoded a few rows at a time."""
    rows, width = as_matrix(parameter.shape)
    of_rows, of_columns = [], torch.zeros(2, width, dtype=torch.float64)
    height = max(1, CHUNK_ELEMENTS // max(width, 1))
    for start in range(0, rows, height):
        stop = min(start + height, rows)
        chunk = values_at(value, torch.arange(start * width, stop * width)).cpu().double().view(stop - start, width)
        powers = torch.stack([chunk, chunk.square()])
        of_rows.append(powers.mean(2))
        of_columns += powers.sum(1)
    by_row, by_column = torch.cat(of_rows, 1), of_columns / max(rows, 1)
    both = {"row": by_row, "column": by_column, "tensor": by_row.mean(1, keepdim=True)}
    return Moments(by_row[0].float(), by_column[0].float(), {axis: signal_to_noise(*m) for axis, m in both.items()})


def signal_to_noise(mean: Tensor, mean_square: Tensor) -> float:
    """Return the mean over sets of (mean)^2 / variance.

    It is at most 1e6, the ratio of sets without variance.
    """
    variance = (mean_square - mean.square()).clamp(min=1e-6 * mean.square())
    return float(torch.where(mean > 0.0, mean.square() / variance, 1e6).clamp(max=1e6).mean()) if mean.numel() else 1e6
