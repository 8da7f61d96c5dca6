"""Gradients for trials: a mean that stays, and noise, both as large on average.

Gradients of matrices are far from white: a few directions have most of their length. An optimizer that works in a basis of its
own (an orthogonalized momentum, a rotated one) magnifies the small directions, and with them what rounding adds to them. So
singular values fall as 1 / k, as those of gradients roughly do, in bases that are rotated at random: signs, a discrete Hartley
transform along each dimension, and signs again.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Gradients:
    """A stream of gradients of one shape.

    shape: the shape; dimensions after the first form the columns of a matrix. With fewer than two, elements are independent.
    generator: where randomness comes from.
    """

    def __init__(self, shape: torch.Size, generator: torch.Generator):
        self.shape, self.generator = shape, generator
        self._is_matrix = len(shape) > 1 and shape.numel() > 0
        if self._is_matrix:
            rows, columns = shape[0], shape.numel() // shape[0]
            sizes = [1.0 / torch.arange(1, n + 1) for n in (rows, columns)]
            self._weights = (sizes[0][:, None] * sizes[1]).sqrt()
            self._signs = [self._draw_signs(n) for n in (rows, rows, columns, columns)]
            self._mean = self._rotated(torch.eye(rows, columns))
        else:
            self._mean = torch.randn(shape, generator=generator)

    def next(self) -> Tensor:
        """Return the next gradient, of float32 on the CPU."""
        noise = torch.randn(self._mean.shape, generator=self.generator)
        return (self._mean + (self._rotated(noise) if self._is_matrix else noise)).view(self.shape)

    def _draw_signs(self, count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=self.generator) * 2.0 - 1.0

    def _rotated(self, values: Tensor) -> Tensor:
        """Give values the spectrum, rotate them, and make their mean square 1."""
        first, second, third, fourth = self._signs
        found = _hartley(self._weights * values * first[:, None] * third, 0) * second[:, None]
        found = _hartley(found, 1) * fourth
        return found / found.square().mean().sqrt()


def _hartley(values: Tensor, dimension: int) -> Tensor:
    """Return the discrete Hartley transform along a dimension, which is orthogonal but for its scale."""
    found = torch.fft.fft(values, dim=dimension)
    return found.real - found.imag
