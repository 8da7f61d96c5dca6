"""Whether dictionaries and lists hold the same objects as before: a compiled loop compares identities."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from baoc_compile.core.torch_private import dictionary_tag
from baoc_compile.kernels.launch.survey import at, compiled, objects_of


class Dictionaries:
    """Dictionaries and what they held: their keys and values are compared by identity."""

    def __init__(self, dictionaries: Sequence[dict[Any, Any]]):
        self.dictionaries = list(dictionaries)
        self._compiled = compiled()
        self.hold()

    def hold(self) -> None:
        """Compare with what they hold now from here on."""
        self._held = [entry for d in self.dictionaries for item in d.items() for entry in item]  # keeps ids unique
        self._entries = objects_of(self._held)
        self._first = np.concatenate([[0], np.cumsum([len(d) for d in self.dictionaries])]).astype(np.int64)
        self._objects = objects_of(self.dictionaries)
        self._changed = np.zeros(max(1, len(self.dictionaries)), np.int64)
        if self._compiled is not None:
            self._tags = np.zeros(len(self.dictionaries), np.uint64)
            arrays = (self._objects, self._first, self._entries)
            tags = (ctypes.c_int64(dictionary_tag()), at(self._tags), at(self._changed))
            self._arguments = (ctypes.c_int64(len(self.dictionaries)), *map(at, arrays), *tags)

    def changed(self) -> list[int]:
        """Return the positions of those that hold other objects than before."""
        if self._compiled is not None:
            count = self._compiled.library.compare_dictionaries(*self._arguments)
            return self._changed[:count].tolist() if count else []
        found = []
        for position, dictionary in enumerate(self.dictionaries):
            now = [entry for item in dictionary.items() for entry in item]
            held = self._held[2 * self._first[position] : 2 * self._first[position + 1]]
            if len(now) != len(held) or any(a is not b for a, b in zip(now, held, strict=True)):
                found.append(position)
        return found

    def hold_again(self, position: int) -> None:
        """Compare one dictionary with what it holds now from here on."""
        now = [entry for item in self.dictionaries[position].items() for entry in item]
        start, stop = 2 * int(self._first[position]), 2 * int(self._first[position + 1])
        if len(now) != stop - start:
            self.hold()
            return
        self._held[start:stop] = now
        self._entries[start:stop] = [id(entry) for entry in now]


class Lists:
    """Lists and what they held: their entries are compared by identity."""

    def __init__(self, lists: Sequence[list[Any]]):
        self.lists, self._compiled = list(lists), compiled()
        self._held = [list(entries) for entries in lists]  # keeps ids unique
        flat = [entry for entries in self._held for entry in entries]
        arrays = (
            objects_of(self.lists),
            np.concatenate([[0], np.cumsum([len(entries) for entries in lists])]).astype(np.int64),
            objects_of(flat),
        )
        self._arrays = arrays
        self._arguments = (ctypes.c_int64(len(self.lists)), *map(at, arrays))

    def changed(self) -> bool:
        """Return whether any list holds other objects than before."""
        if self._compiled is not None:
            return bool(self._compiled.library.compare_lists(*self._arguments))
        return any(
            len(now) != len(held) or any(a is not b for a, b in zip(now, held, strict=True))
            for now, held in zip(self.lists, self._held, strict=True)
        )
