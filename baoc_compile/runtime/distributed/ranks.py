"""Ranks: the processes that train one model together, and how they come to one decision.

They hold parts of an optimizer's parameters, DTensors, or replicas of all of them.

They communicate only when something is decided: all of them decide at the same steps, since formats and rules are those of
the whole tensors.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed

from baoc_compile.core.errors import OptionError, StateError, warn_once
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.torch_private import is_distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of the largest mesh of an optimizer's parameters; without DTensors, those that train replicas of the model.

    groups: one group of processes for each dimension of the mesh, or the one of the replicas; empty for a process alone.
    number: the number of this process among all.
    """

    groups: tuple[Any, ...] = ()
    number: int = 0

    @staticmethod
    def of(table: ParameterTable) -> Ranks:
        """Return the ranks that decide on a table's parameters together."""
        ranks = Ranks.of_parts(table)
        if ranks.is_alone and table.replicas is not None and distributed.get_world_size(table.replicas) > 1:
            return Ranks((table.replicas,), distributed.get_rank())
        return ranks

    @staticmethod
    def of_parts(table: ParameterTable) -> Ranks:
        """Return the ranks that hold parts of a table's parameters."""
        meshes = [p.device_mesh for p in table.wholes if is_distributed(p)]  # type: ignore[attr-defined]
        largest = max(meshes, key=lambda mesh: mesh.size(), default=None)
        if largest is None or largest.size() == 1:
            return Ranks()
        return Ranks(tuple(largest.get_all_groups()), distributed.get_rank())

    @property
    def is_alone(self) -> bool:
        """Whether this process decides for itself."""
        return not self.groups

    @property
    def is_first(self) -> bool:
        """Whether this process decides for all."""
        return all(distributed.get_rank(group) == 0 for group in self.groups)

    def gathered(self, value: T) -> dict[int, T]:
        """Return the values of all ranks, by their numbers. All have to call this."""
        found = {self.number: value}
        for group in self.groups:
            parts: list[Any] = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(parts, found, group=group)
            found = {number: v for part in parts for number, v in part.items()}
        return dict(sorted(found.items()))

    def first_said(self, text: str) -> str:
        """Return the first text that is not empty among those of all ranks; empty if all are. All have to call this."""
        return next(filter(None, self.gathered(text).values()), "")

    def least(self, measure: Callable[[], float]) -> float:
        """Return the least of what the ranks measure, or raise what one of them raises. All have to call this."""
        own: tuple[float, Exception | None]
        try:
            own = measure(), None
        except Exception as error:
            own = 0.0, _as_sent(error)
        found = self.gathered(own)
        for number, (_, failure) in found.items():
            if failure is not None and number != self.number:
                raise StateError(f"rank {number} can't take part: {failure}") from failure
        if own[1] is not None:
            raise own[1]
        return min(value for value, _ in found.values())

    def compare(self, asked: Mapping[str, str]) -> None:
        """Raise OptionError on all ranks, with what differs, unless `asked` is the same on all. All have to call this.

        asked: what a rank decides on, as text, by name.
        """
        all_asked = self.gathered(dict(asked))
        first_number, first = next(iter(all_asked.items()))
        for number, other in all_asked.items():
            for name in {**first, **other}:
                if first.get(name) != other.get(name):
                    raise OptionError(
                        f"{name}: {other.get(name)} on rank {number}, but {first.get(name)} on rank {first_number}; all ranks "
                        "of a mesh have to ask for the same"
                    )

    def decided_by_first(self, decide: Callable[[], T]) -> T:
        """Return on all ranks what the first one decides, or raise there what it raises. All have to call this."""
        if self.is_alone:
            return decide()
        outcome: list[Any] = [None]
        if self.is_first:
            try:
                outcome = [(decide(), None)]
            except Exception as error:
                outcome = [(None, _as_sent(error))]
        for group in self.groups:
            first = distributed.get_process_group_ranks(group)[0]
            distributed.broadcast_object_list(outcome, src=first, group=group)
        result, failure = outcome[0]
        if failure is not None:
            raise failure
        return result


def warn_of_others(table: ParameterTable) -> None:
    """Warn if other processes train, and nothing says whether they hold the same parameters, so that each plans for itself."""
    if not (distributed.is_available() and distributed.is_initialized()) or not Ranks.of(table).is_alone:
        return
    count = distributed.get_world_size()
    if count > 1:
        warn_once(
            f"model: {count} processes train, and each plans for itself. If they hold the same parameters, give prepare the "
            'DistributedDataParallel, model=..., so that they come to one plan; or name a plan, such as plan="8bit"'
        )


def _as_sent(error: Exception) -> Exception:
    """Return an error as it arrives at other processes; a StateError that describes it, if it can't be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return StateError(f"the first rank failed to decide for all: {error!r}")
