"""`baoc::fused_update`: the operator that a rewritten step calls, once per program.

    fused_update(str launch, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] state, Tensor[] scalars) -> ()

launch: the key of a `Launch`.
state: the stored parts, clocks and counters of each parameter, tensor after tensor.
scalars: the numbers that change from step to step, such as a scheduled learning rate.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baoc_compile.core.codec import Rows, Sharing
from baoc_compile.core.errors import StateError
from baoc_compile.core.program_graph import Executable, Operand, ProgramGraph, TensorArguments
from baoc_compile.kernels.launch.addresses import Watched
from baoc_compile.kernels.launch.survey import PRESENT, Parameters, Written

_COUNT = itertools.count()


@dataclass(eq=False)
class Launch:
    """A program and the tensors that it is launched over.

    graph: the program's graph.
    executable: the compiled program.
    parameters: name of each parameter.
    shapes: shape of each parameter; of a DTensor's, that of what this process holds.
    numbers: for each tensor, operand name -> fixed number.
    varying: for each tensor, operand name -> position in `scalars`.
    sharing: for each tensor, name of a shared operand -> which elements share a value.
    indices: position of each parameter in the optimizer.
    blocks: block that each parameter was planned with; empty if not planned by block.
    key: name of the launch.
    count: number of launches so far.
    first_lanes: number of each parameter's first lane, where parts of tensors are launched over; empty if all begin at 0.
    """

    graph: ProgramGraph
    executable: Executable
    parameters: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    varying: list[dict[str, int]] = field(default_factory=list)
    sharing: list[dict[str, Sharing]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    key: str = field(default_factory=lambda: f"launch_{next(_COUNT)}")
    count: int = 0
    first_lanes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        _LAUNCHES[self.key] = self

    @property
    def state_operands(self) -> list[Operand]:
        """The operands that `state` holds for each tensor, in this order."""
        return [o for o in self.graph.pointers if o.source not in ("param", "grad")]

    def table(self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor]) -> Any:
        """Build the executable's table for these tensors; see `Table`.

        Raises StateError for parameters of another shape, type or device than the step was compiled for.
        """
        expected = (self.graph.signature.param_dtype, self.graph.signature.device)
        for i, param in enumerate(params):
            if param.shape != self.shapes[i] or (param.dtype, str(param.device)) != expected:
                raise StateError(
                    f"{self.parameters[i]} is now {str(param.dtype).removeprefix('torch.')} of shape {tuple(param.shape)} on "
                    f"{param.device}, which is not what its step was compiled for: compile it again"
                )
        names = [o.name for o in self.state_operands]
        batch = []
        for i, param in enumerate(params):
            tensors = dict(zip(names, state[i * len(names) : (i + 1) * len(names)], strict=True))
            tensors |= {"param": param, "grad": grads[i] if grads else param}
            rows = Rows.of(self.shapes[i])
            padded = rows if self.graph.has_groups and rows.are_padded else None
            first = self.first_lanes[i] if self.first_lanes and self.graph.has_groups else 0
            sharing, numbers = self.sharing[i], dict(self.numbers[i])
            batch.append(TensorArguments(param.numel(), tensors, numbers, sharing, first, rows=padded))
        return self.executable.table(batch, self.varying)

    def run(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor], scalars: Sequence[Tensor]
    ) -> None:
        """Build a table for these tensors and launch over it once."""
        table = self.table(params, grads, state)
        table.refresh(grads, scalars)
        self.launch(table)

    def launch(self, table: Any) -> None:
        self.executable.run(table)
        self.count += 1


class BoundLaunch:
    """A launch over parameters and state that stay the same tensors.

    Its table is built at the first call, and again when a tensor's layout has changed. A table captured by a CUDA graph
    stays unchanged for the graph's replays: the next launch outside a capture builds its own.

    launch: what is launched.
    params: the parameters.
    state: the tensors of `launch.state_operands`, parameter after parameter.
    indices: position of each parameter among all of the optimizer.
    numbers: float64 `[parameters, numbers]`; enter them with `enter`.
    """

    #: Observer called before every launch with it and the parameters that have a gradient; None without one.
    observe: Callable[[BoundLaunch, np.ndarray | None], None] | None = None

    def __init__(self, launch: Launch, params: Sequence[Tensor], state: Sequence[Tensor]):
        self.launch, self.params, self.state = launch, params, state
        self.indices = np.array(launch.indices, dtype=np.int64)
        first, count = int(self.indices[0]) if len(params) else 0, len(params)
        is_run = np.array_equal(self.indices, np.arange(first, first + count))
        self._at = slice(first, first + count) if is_run else self.indices
        names = [o.name for o in launch.graph.numbers]
        self.column = {name: k for k, name in enumerate(names)}
        self.numbers = np.array([[n.get(name, 0.0) for name in names] for n in launch.numbers], dtype=np.float64)
        self.written = Written(params)
        self.table: Any = None
        self.captured: list[Any] = []
        self.is_on_gpu = launch.graph.signature.device_type == "cuda"
        self.__name__ = f"launch_{launch.graph.rule.key}"
        self._watched = Watched(self.state, len(launch.state_operands)) if len(state) else None
        self._reads_grad = any(o.source == "grad" for o in launch.graph.pointers)
        self._dirty, self._restricted = False, b""

    def enter(self, rows: Any, columns: np.ndarray, values: Any) -> None:
        """Enter numbers for several parameters.

        rows: a slice of the parameters, or their positions as a column.
        values: one row for all of them, or one for each.
        """
        self.numbers[rows, columns] = values
        self._dirty = True

    def __call__(self, seen: Parameters, values: Sequence[Tensor] = ()) -> None:
        """Launch over the parameters that have a gradient.

        seen: where the optimizer's parameters and gradients are.
        values: the 0-dim tensors that `launch.varying` refers to.
        """
        all_present, present = seen.all_present, None
        if not all_present:
            present = seen.present[self._at]
            count = np.count_nonzero(present)
            if not count:
                return
            all_present = count == len(present)
        is_captured = self.is_on_gpu and torch.cuda.is_current_stream_capturing()
        if self.captured and self.captured[-1] is self.table and not is_captured:
            self.table = None
        strides = self._strides(seen.flags[self._at]) if seen.any_strided else None
        if self.table is None or strides != self._grad_strides or (self._watched is not None and self._has_moved()):
            self._build(strides)
        present = None if all_present else present
        mask = b"" if present is None else present.tobytes()
        if mask != self._restricted:
            self.table.restrict(present)
            self._restricted = mask
        self.table.follow(seen.param_at[self._at], seen.grad_at[self._at], self._grads)
        if self._dirty:
            self.table.numbers_changed()
            self._dirty = False
        if values:
            self.table.take_values(values)
        if self.observe is not None:
            self.observe(self, present)
        self.written.mark(present)  # before the launch empties the caches
        self.launch.launch(self.table)
        if is_captured and not (self.captured and self.captured[-1] is self.table):
            self.captured.append(self.table)

    def _grads(self) -> list[Tensor]:
        """Return the gradients; where there is none, the parameter."""
        return [p if p.grad is None else p.grad for p in self.params]

    def _strides(self, flags: np.ndarray) -> list[Any]:
        return [g.stride() if f & PRESENT else None for g, f in zip(self._grads(), flags.tolist(), strict=True)]

    def _has_moved(self) -> bool:
        assert self._watched is not None
        return self._watched.look().moved

    def _build(self, strides: list[Any] | None) -> None:
        self.table = self.launch.table(self.params, self._grads() if self._reads_grad else [], self.state)
        if self.table.numbers.shape == self.numbers.shape:
            self.table.numbers[:] = self.numbers
            self.numbers = self.table.numbers
        self._grad_strides, self._dirty, self._restricted = strides, True, b""
        if self._watched is not None:
            self._watched.look()

    _grad_strides: list[Any] | None = None

    def release(self) -> None:
        """Drop all tensors, even if other objects still hold the launch; it can't be called afterwards."""
        self.params, self.state, self.table, self.captured = [], [], None, []
        self._watched = None


_LAUNCHES: weakref.WeakValueDictionary[str, Launch] = weakref.WeakValueDictionary()

_library = torch.library.Library("baoc", "DEF")
_library.define(
    "fused_update(str launch, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] state, Tensor[] scalars) -> ()"
)


def _fused_update(
    launch: str, params: list[Tensor], grads: list[Tensor], state: list[Tensor], scalars: list[Tensor]
) -> None:
    _LAUNCHES[launch].run(params, grads, state, scalars)


_library.impl("fused_update", _fused_update, "CompositeExplicitAutograd")
_library.impl("fused_update", lambda *args: None, "Meta")
