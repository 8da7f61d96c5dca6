"""`baoc::fused_update`: the one operator that a rewritten step calls, once for every program.

    fused_update(str launch, Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] state, Tensor[] scalars) -> ()

`launch` names a `Launch`; `state` holds, tensor after tensor, the stored parts, clocks and counters of each parameter;
`scalars` are the numbers that change from step to step, such as a scheduled learning rate.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baoc_compile.codec import Sharing
from baoc_compile.program import Executable, Operand, ProgramGraph, TensorArguments

_COUNT = itertools.count()


@dataclass(eq=False)
class Launch:
    """A program and the tensors it is launched over.

    `numbers[i]`: fixed numbers of tensor i. `varying[i]`: operand name -> position in `scalars`. `sharing[i]`: which
    elements of tensor i have shared values in common.
    """

    graph: ProgramGraph
    executable: Executable
    parameters: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    varying: list[dict[str, int]] = field(default_factory=list)
    sharing: list[dict[str, Sharing]] = field(default_factory=list)
    key: str = field(default_factory=lambda: f"launch_{next(_COUNT)}")

    def __post_init__(self) -> None:
        _LAUNCHES[self.key] = self

    @property
    def state_operands(self) -> list[Operand]:
        """The operands that `state` holds for each tensor, in this order."""
        return [o for o in self.graph.operands if o.in_memory and o.source not in ("param", "grad")]

    def run(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor], scalars: Sequence[Tensor]
    ) -> None:
        names = [o.name for o in self.state_operands]
        values = [float(s) for s in scalars]
        batch = []
        for i, param in enumerate(params):
            tensors = dict(zip(names, state[i * len(names) : (i + 1) * len(names)], strict=True))
            tensors |= {"param": param, "grad": grads[i] if grads else param}
            numbers = self.numbers[i] | {name: values[position] for name, position in self.varying[i].items()}
            batch.append(TensorArguments(param.numel(), tensors, numbers, self.sharing[i]))
        self.executable(batch)


_LAUNCHES: weakref.WeakValueDictionary[str, Launch] = weakref.WeakValueDictionary()

_library = torch.library.Library("baoc", "DEF")
_library.define(
    "fused_update(str launch, Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] state, Tensor[] scalars) -> ()"
)


def _fused_update(
    launch: str, params: list[Tensor], grads: list[Tensor], state: list[Tensor], scalars: list[Tensor]
) -> None:
    _LAUNCHES[launch].run(params, grads, state, scalars)


_library.impl("fused_update", _fused_update, "CompositeExplicitAutograd")
_library.impl("fused_update", lambda *args: None, "Meta")
