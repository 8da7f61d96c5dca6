"""Which stand-ins show the same elements: aliases of a whole tensor, and views of a part or in another shape."""

from __future__ import annotations

import builtins
import sys

from torch import Tensor

#: While a step is recorded, `builtins.id` gives stand-ins the identities of real parameters. This module needs their own.
id = builtins.id


class SharedMemory:
    """The aliases and views of a recording's tensors."""

    def __init__(self) -> None:
        self._root: dict[int, int] = {}  # id of an alias -> id of the tensor whose elements it shows
        self._aliases: dict[int, Tensor] = {}  # the aliases, by id
        self._views: dict[int, tuple[int, int]] = {}  # id of a view -> its tensor, and how often that had been written
        self._written: dict[int, int] = {}  # id of a tensor -> how often it has been written

    def root_of(self, tensor: Tensor) -> int:
        """Return the id of the tensor whose elements this one shows: its own, unless it is an alias."""
        return self._root.get(id(tensor), id(tensor))

    def owner_of(self, tensor: Tensor) -> int:
        """Return the id of the tensor in whose memory this one's elements are: its own, unless it is an alias or a view."""
        owner = self._views[id(tensor)][0] if id(tensor) in self._views else id(tensor)
        return self._root.get(owner, owner)

    def is_view(self, tensor: Tensor) -> bool:
        """Return whether a tensor shows a part of another, or shows it in another shape."""
        return id(tensor) in self._views

    def is_stale(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a view of one that has been written since the view was made."""
        if id(tensor) not in self._views:
            return False
        root, written = self._views[id(tensor)]
        return self._written.get(root, 0) != written

    def is_shared(self, tensor: Tensor) -> bool:
        """Return whether an alias or a view of the tensor is still in use."""
        aliases = [self._aliases[at] for at, root in self._root.items() if root == id(tensor)]
        in_use = any(sys.getrefcount(a) > 4 for a in aliases)  # besides our table, the list, the loop and the call
        return in_use or any(root == id(tensor) for root, _ in self._views.values())

    def shows(self, tensor: Tensor) -> bool:
        """Return whether a tensor is an alias or a view of another."""
        return id(tensor) in self._root or id(tensor) in self._views

    def add_alias(self, alias: Tensor, tensor: Tensor) -> None:
        """Let `alias` show the elements of `tensor`."""
        self._root[id(alias)] = self.root_of(tensor)
        if id(tensor) in self._views:
            self._views[id(alias)] = self._views[id(tensor)]
        self._aliases[id(alias)] = alias

    def add_view(self, view: Tensor, tensor: Tensor) -> None:
        """Let `view` show elements of `tensor`."""
        root = self._views.get(id(tensor), (self.root_of(tensor), 0))[0]
        self._views[id(view)] = root, self._written.get(root, 0)

    def write(self, tensor: Tensor) -> int:
        """Note that a tensor was written; return the id of the one whose memory that is."""
        root = self.owner_of(tensor)
        self._written[root] = self._written.get(root, 0) + 1
        if id(tensor) in self._views:
            self._views[id(tensor)] = root, self._written[root]
        return root
