"""Compress state as a step makes it that runs as its user wrote it, as far as it is decided how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import LocalEntries, local_of, whole_of
from baoc_compile.core.storage import Storage
from baoc_compile.passes.migrate.find_slots import is_slot, is_sparse
from baoc_compile.passes.migrate.migrate_state import stored
from baoc_compile.state.entries import is_stored_by


@dataclass
class CompressMade:
    """A callable that returns an entry as it is to be stored, or None to leave it as it is.

    storage: what is decided. What no codec rounds value by value stays as it is until the step is read.
    """

    storage: Storage
    table: ParameterTable

    def __call__(self, parameter: Any, entries: dict[Any, Any], key: Any) -> Tensor | None:
        index = self._index.get(id(parameter), -1)
        codec = self.storage.of(index).codecs.get(key)
        local, found = local_of(parameter), LocalEntries(parameter, entries)
        if codec is None or codec.mechanism != "rounding" or is_stored_by(found[key], codec):
            return None
        if is_sparse(parameter) or not is_slot(found, key, local):
            return None
        new = stored(local, found[key], codec, key, self.storage.seed, self.table.first_lane(index))
        return whole_of(parameter, new)

    @cached_property
    def _index(self) -> dict[int, int]:
        return {id(parameter): i for i, parameter in enumerate(self.table.wholes)}
