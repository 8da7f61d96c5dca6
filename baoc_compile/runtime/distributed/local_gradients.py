"""While a step runs, the local tensors of DTensors have gradients of their own: launches read both side by side."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import increment_version

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import local_of
from baoc_compile.core.torch_private import is_distributed


class LocalGradients:
    """The DTensors among an optimizer's parameters, each with the local tensor that its gradient is lent to."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def hold(self, table: ParameterTable) -> bool:
        """Hold the DTensors of `table`, and lend their gradients. Return whether the local tensors are the same as before."""
        pairs = [(p, here) for p, here in zip(table.wholes, table.local.parameters, strict=True) if p is not here]
        is_same = [id(local) for _, local in pairs] == [id(local) for _, local in self._pairs]
        self.close()
        self._pairs = pairs
        self.lend()
        return is_same

    def lend(self) -> bool:
        """Lend every gradient. Return whether the local tensors are still those of the parameters; else nothing is lent.

        A gradient with other placements than its parameter's is redistributed: all processes of its mesh take part.

        Raises UnsupportedStep for a gradient that is no DTensor.
        """
        if any(local_of(whole) is not local for whole, local in self._pairs):
            return False
        for whole, local in self._pairs:
            grad = whole.grad
            if grad is not None and not is_distributed(grad):
                raise UnsupportedStep("the gradient of one of its DTensors is none")
            local.grad = None if grad is None else local_of(_placed_as(whole, grad))
        return True

    def close(self) -> None:
        """Leave the local tensors without gradients, so that these are freed with the parameters'."""
        for _, local in self._pairs:
            local.grad = None

    def mark_written(self) -> None:
        """Bump the version counters of the DTensors, for autograd; those of local tensors are the launches'."""
        if self._pairs:
            increment_version([whole for whole, local in self._pairs if local.grad is not None])


def _placed_as(parameter: Tensor, grad: Tensor) -> Tensor:
    placements = parameter.placements  # type: ignore[attr-defined]
    return grad if grad.placements == placements else grad.redistribute(placements=placements)  # type: ignore[attr-defined]
