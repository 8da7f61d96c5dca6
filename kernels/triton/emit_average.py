"""Program graph -> source of a Triton kernel that folds elements of any number of tensors: averages, means, maxima.

A program instance sums some sets of elements that share a value, or a piece of one long set, in double. Element j of
set k is number j // run * run * cycle + k * run + j % run of the tensor. Of the program instances that work on the same
sets, the last one adds up the pieces in order and stores decay * value + mean, the mean, or the maximum. Every run gives
the same bits. Other lowerings add in another order, so the last place of fp32 may differ.
"""

from __future__ import annotations

from torch import dtype, float32, float64

from baoc_compile.core.errors import CannotEmit
from baoc_compile.core.program_graph import Operand
from baoc_compile.kernels.triton.emit import HEADER, TritonEmitter, indented
from baoc_compile.kernels.triton.expressions import argument, widened
from baoc_compile.kernels.triton.text import AVERAGE

#: Columns of a task; see `AverageTable`.
TASK = ("tensor", "operand", "first_set", "first", "last", "piece", "pieces", "partials", "ticket")


class TritonAverageEmitter(TritonEmitter):
    """Emitter of a module with a kernel `average_tensors`; otherwise as `TritonEmitter`."""

    def _kernel(self) -> str:
        return AVERAGE.format(
            row_length=self.row_length,
            header=HEADER,
            columns=len(TASK),
            task=indented(f"{name} = tl.load(task + {k})" for k, name in enumerate(TASK)),
            pointers=indented(self._addresses()),
            scalars=indented(self._scalars()),
            strided=len(self.strided),
            arguments=", ".join(self._tile_arguments()),
            loads=indented(self._loaded_lanes(), 2),
            body=indented(self._lanes(), 2),
            value=self._choice([argument(self.new_value[o.name], self._dtype, self.variables) for o in self._folded]),
            most=self._most(),
            finish=self._finish(),
        )

    @property
    def _folded(self) -> list[Operand]:
        return [o for o in self.graph.shared if o.fold]

    @property
    def _dtype(self) -> dtype:
        return float32 if self.decays else self.graph.signature.compute_dtype

    def _finish(self) -> str:
        """Return the call that stores what the program instance has folded."""
        pointer = self._choice([self.variable(o, "ptr") for o in self._folded])
        if not self.decays:
            return f"store_fold({pointer}, sets, total, numel, cycle, {self._most()})"
        decay = self._choice([argument(self.decays[o.name], float64, self.variables) for o in self._folded])
        return f"store_average({pointer}, {decay}, sets, total, numel, cycle)"

    def _most(self) -> str:
        """Return whether the program instance takes a maximum."""
        known = {o.fold == "most" for o in self._folded}
        return str(known.pop()) if len(known) == 1 else self._choice([str(o.fold == "most") for o in self._folded])

    def _choice(self, texts: list[str]) -> str:
        """Choose among `texts` by `operand`, the number of the shared operand that the program instance works on."""
        *others, last = [(self.graph.shared.index(o), text) for o, text in zip(self._folded, texts, strict=True)]
        return "".join(f"{text} if operand == {k} else " for k, text in others) + last[1]

    def _load(self, o: Operand) -> str:
        if o.source in ("index", "group_index"):
            raise CannotEmit("averages are not rounded, and know no random words")
        pointer = self.variable(o, "ptr")
        if o.per == "shared":
            run, cycle = self.variable(o, "run"), self.variable(o, "cycle")
            return f"tl.load({pointer} + index // {run} % {cycle}, mask=mask, other=0)"
        if o.per == "group":
            return widened(f"tl.load({pointer} + group_of(index, columns, padded), mask=mask, other=0)", o.dtype)
        if o.bits == 4:
            return f"load_half_byte({pointer}, index, mask, columns)"
        return widened(f"load_element({pointer}, 0, index, mask, {self._layout(o)}, False, STRIDED)", o.dtype)
