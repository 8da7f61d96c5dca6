"""Who reads tensors that belong to no parameter: their calls run before all updates, so no update may change them for others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.passes.recorder.recording import Value, ValueGroup


class Readers:
    """The groups of values that have read a tensor while it belonged to no parameter."""

    def __init__(self) -> None:
        self._groups: dict[int, list[ValueGroup]] = defaultdict(list)  # id of a tensor -> its readers

    def read(self, tensors: Iterable[int], group: ValueGroup) -> None:
        """Note that a call of this group reads these tensors."""
        for tensor in tensors:
            if group not in self._groups[tensor]:
                self._groups[tensor].append(group)

    def have_read(self, tensor: int) -> bool:
        """Return whether any update has read a tensor."""
        return bool(self._groups.get(tensor))

    def write(self, tensor: int, group: ValueGroup | None) -> ValueGroup | None:
        """Note that a call changes a tensor in place; return its group, joined to those that have read what it changes.

        group: of the call; None if it runs before all updates.
        """
        readers = self._groups.pop(tensor, ())
        if readers and group is None:
            raise UnsupportedStep("it changes a tensor that belongs to no parameter after an update has read it")
        for reader in readers:
            group = reader if group is None else group.join(reader)
        return group

    def check_stale(self, view: Value, owner: Value | None) -> None:
        """Note that a view is read whose memory has been written since it was made.

        owner: the present value of the tensor of which it is a view.
        """
        reason = "it reads a view of a tensor that it has changed since"
        if view.group is not None:
            view.group.root().reason = view.group.root().reason or reason
        elif owner is None or owner.group is not None:
            raise UnsupportedStep(reason)
