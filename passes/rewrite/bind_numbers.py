"""Rewrite: bind the numbers of a step to the places where the optimizer keeps them and to the launches that take them.

Every number is computed once for all parameters for which it is the same: those of a group whose state has equal numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.kernels.launch.host_numbers import Gathered, HostNumbers
from baoc_compile.kernels.launch.survey import Parameters
from baoc_compile.passes.capture.group_numbers import GroupedNumbers
from baoc_compile.passes.numbers.expressions import Expression, Source
from baoc_compile.passes.rewrite.bind_launches import Bound
from baoc_compile.passes.rewrite.bound_group import BoundGroup
from baoc_compile.passes.rewrite.places import put_shared, reader_of
from baoc_compile.passes.rules.extract_rules import RuleClass


class BoundNumbers:
    """The numbers of a step, as the host reads, computes and writes them.

    Raises KeyError or IndexError when made if the optimizer lacks a number that the step reads.
    """

    def __init__(self, numbers: GroupedNumbers, classes: list[RuleClass], bound: Bound, table: ParameterTable):
        self.numbers = numbers
        gathered = Gathered()
        shared: dict[Source, int] = {}
        for source in numbers.shared.shared:
            shared.setdefault(source, len(shared))
        bounds = {piece.signature: c.bounds for c in classes if c.rule is not None for piece in c.members}
        self._groups = [BoundGroup(g, table, bound, shared, gathered, bounds) for g in numbers.groups]
        self._host = HostNumbers(gathered.tensors)
        for group in self._groups:
            group.read_from(self._host)
        self._read_shared = reader_of(list(shared))
        self._count = len(numbers.shared.shared)
        self._pending: list[BoundGroup] = []
        self._shared_values: tuple[Any, ...] = ()

    def compute(self, optimizer: Any, seen: Parameters) -> None:
        """Compute the step's numbers and enter them in the launches. Nothing of the optimizer changes.

        seen: which parameters have a gradient.

        Raises GuardFailed and OutOfBounds.
        """
        shared = self._read_shared(optimizer)
        (self._shared_values,) = self.numbers.shared(shared[: self._count])
        self._host.read()
        self._pending = [group for group in self._groups if group.compute(shared, seen)]
        for group in self._pending:
            group.enter()

    def of(self, index: int) -> dict[int, Any]:
        """Return the numbers of this step for one parameter: position among its piece's scalars -> number."""
        return next((found for group in self._pending if (found := group.of(index)) is not None), {})

    @property
    def of_prelude(self) -> dict[Expression, Any]:
        """The numbers of this step that the prelude takes."""
        return dict(zip(self.numbers.prelude, self._shared_values[len(self.numbers.shared_writes) :], strict=False))

    @property
    def returned(self) -> Any:
        """The number that this step returns, if it returns one."""
        return self._shared_values[-1]

    def commit(self, optimizer: Any) -> None:
        """Write what the step changes of the optimizer's numbers, after the launches."""
        positions: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        for group in self._pending:
            at, written = group.commit()
            positions += at
            numbers += written
        if positions:
            self._host.write(np.concatenate(positions), np.concatenate(numbers))
        for write, value in zip(self.numbers.shared_writes, self._shared_values, strict=False):
            put_shared(optimizer, write, value)
