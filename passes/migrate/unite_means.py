"""Unite the means of state whose rows several processes hold: a mean over columns, or over everything, is one of all rows.

Each process averages the rows that it holds. A mean of the whole is the sum of these means, each weighted by its share of the
elements; it is taken in double. New means are linear in old ones and in what a step adds, so it does not matter that the old ones
have been united before. A process without rows takes part, and so does one on which the parameter has no gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.shard import is_divided, local_of
from baoc_compile.kernels.launch.fused_update import BoundLaunch
from baoc_compile.state.state_tensor import StateTensor


class UnitedMeans:
    """The means of some entries of state, of which those of one mesh are united in one message.

    entries: (parameter, its state tensor). Those that no other process holds parts of are left alone.
    """

    def __init__(self, entries: Iterable[tuple[Any, StateTensor]]):
        self._of: dict[tuple[Any, ...], list[tuple[StateTensor, str, int, float]]] = defaultdict(list)
        for whole, state in entries:
            if state.codec.mechanism != "sharing" or not is_divided(whole):
                continue
            share = local_of(whole).numel() / max(whole.numel(), 1)
            dims = [d for d, placement in enumerate(whole.placements) if placement.is_shard()]
            groups = tuple(whole.device_mesh.get_group(d) for d in dims if whole.device_mesh.size(d) > 1)
            for part in state.codec.parts:
                sharing = state.codec.sharing(part, whole.shape)
                if not sharing.is_of_rows(whole.shape):
                    self._of[groups].append((state, part.name, sharing.cycle, share))

    def __bool__(self) -> bool:
        return bool(self._of)

    @torch.no_grad()
    def unite(self) -> None:
        """Replace the means by those of all processes, all of which have to call this."""
        for groups, means in self._of.items():
            sent = torch.cat([_weighted(state.parts[name], count, share) for state, name, count, share in means])
            for group in groups:
                distributed.all_reduce(sent, group=group)
            for (state, name, _, _), mean in zip(means, sent.split([count for _, _, count, _ in means]), strict=True):
                if state.numel():
                    state.parts[name].copy_(mean)


def _weighted(mean: Tensor, count: int, share: float) -> Tensor:
    if not mean.numel():
        return torch.zeros(count, dtype=torch.float64, device=mean.device)
    return mean.double() * share


def means_of(table: ParameterTable, launch: BoundLaunch) -> UnitedMeans:
    """Return the means of shared slots that a launch has averaged over what this process holds."""
    local, slots = table.local, {o.slot for o in launch.launch.graph.shared if o.written and o.part is not None}
    found = ((table.wholes[i], local.state(i).get(key)) for i in launch.launch.indices for key in slots)
    return UnitedMeans((whole, state) for whole, state in found if isinstance(state, StateTensor))
