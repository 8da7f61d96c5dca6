"""Update rule: an optimizer's step for one parameter, as a pure function read out of the user's own graph."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import fx

from baoc_compile.core.codec import Rows, Sharing, Slot

InputKind = Literal["param", "grad", "slot", "counter", "lines", "scalar", "reduced"]


def bounds_of(value: float) -> tuple[float, float]:
    """Return the interval in which a hyperparameter may vary without changing what is provable of the rule."""
    if value < 0:
        return (-math.inf, 0.0)
    return (0.0, 1.0) if value <= 1 else (1.0, math.inf)


@dataclass(frozen=True)
class RuleInput:
    """One placeholder of a rule's graph.

    name: an identifier, unique in the rule; "param" and "grad" are always the parameter and its gradient.
    kind: "param", "grad" and "slot" are elementwise, of the parameter's shape. "counter" is a 0-dim state tensor on the
        parameter's device, such as a step count. "lines" is a state tensor with one value for each row or column, spread over
        its elements. "scalar" is a number that the host computes, or a result of the step's
        prelude. "reduced" is a mean or maximum, which another rule has computed before.
    key: the state key of a slot, a counter or lines, exactly as the optimizer has it.
    origin: whether a scalar is one of the piece's "scalars", one of its "constants", or the parameter's number of elements
        ("numel"), or of those in a row ("columns"); whether something is reduced, or lines are, for each row ("rows") or column
        ("columns").
    position: which of the scalars or constants it is.
    counts_steps: whether a scalar is the number of steps before this one.
    varies: whether a scalar changes with the number of steps.
    bounds: the interval in which a scalar is known to stay. It serves proofs and is no part of the rule.
    """

    name: str
    kind: InputKind
    key: str = ""
    origin: Literal["scalars", "constants", "numel", "columns", "rows", ""] = ""
    position: int = 0
    counts_steps: bool = False
    varies: bool = False
    bounds: tuple[float, float] = field(default=(-math.inf, math.inf), compare=False, repr=False)

    def sharing(self, shape: torch.Size) -> Sharing:
        """Return which elements of a tensor a reduced value or lines are of: all, those of a row, or those of a column."""
        rows = Rows.of(shape)
        if self.origin == "columns":
            return Sharing(1, rows.columns)
        return Sharing(max(rows.columns, 1), rows.count) if self.origin else Sharing(max(shape.numel(), 1), 1)


#: Kinds of outputs that another rule reads as "reduced" inputs.
REDUCTIONS = ("mean", "most", "rows mean", "rows most", "columns mean", "columns most")


@dataclass(frozen=True)
class RuleOutput:
    """One value that a rule returns.

    kind: "new" replaces an input; "created" is the first value of a slot that the step makes; a "number" is a 0-dim state
        entry that it makes anew every time; "increment" and "decay"
        belong to a shared slot, whose values become decay * value + mean of the increments; of a "mean" or "most" another
        rule reads the mean or the maximum over all elements, as its "reduced" input `name`, and of "rows mean", "columns
        most" and the like those of each row or column, which is also how lines get new values; an "exported" value is a
        number for the prelude and for other parameters.
    name: name of the input that is replaced or reduced, of the exported number, or of the state entry.
    key: key of the slot that is created or shared, or of the state entry.
    """

    kind: Literal[
        "new",
        "created",
        "increment",
        "decay",
        "mean",
        "most",
        "rows mean",
        "rows most",
        "columns mean",
        "columns most",
        "exported",
        "number",
    ]
    name: str = ""
    key: str = ""

    def __str__(self) -> str:
        if self.kind in (*REDUCTIONS, "exported", "number"):
            return f"{self.name} ({self.kind})"
        return f"new {self.name or self.key}" if self.kind in ("new", "created") else f"{self.kind} of {self.key}"


@dataclass(frozen=True, eq=False)
class UpdateRule:
    """A pure function `(param, grad, slots, counters, scalars) -> new values`.

    gm: the graph, in the operations of `kernels/dialect/operations.py`. It returns one value per entry of `outputs`.
        Elementwise values are float32 in the graph and stand for the program's compute type; 0-dim values are float64.
    inputs: the graph's placeholders.
    outputs: what each returned value is.
    slots: the state tensors of the parameter's shape.

    Two rules are equal if their keys are equal.
    """

    gm: fx.GraphModule
    inputs: tuple[RuleInput, ...]
    outputs: tuple[RuleOutput, ...]
    slots: tuple[Slot, ...]

    @cached_property
    def key(self) -> str:
        """A hash of the canonical graph, the same in every process."""
        text = repr((self.gm.code, self.inputs, self.outputs, self.slots))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def inputs_of(self, kind: InputKind) -> tuple[RuleInput, ...]:
        """Return the inputs of one kind, in order."""
        return tuple(i for i in self.inputs if i.kind == kind)

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the inputs that get a new value."""
        return frozenset(o.name for o in self.outputs if o.kind == "new")

    @property
    def created(self) -> tuple[str, ...]:
        """Keys of the slots that the step creates."""
        return tuple(o.key for o in self.outputs if o.kind == "created")

    @property
    def numbers(self) -> dict[str, str]:
        """Name -> key of the 0-dim state entries that the step makes anew every time."""
        return {o.name: o.key for o in self.outputs if o.kind == "number"}

    @property
    def averaged(self) -> tuple[str, ...]:
        """Keys of the shared slots whose increments are averaged."""
        return tuple(o.key for o in self.outputs if o.kind == "increment")

    @property
    def exports(self) -> bool:
        """Whether it computes numbers for the prelude and for other parameters."""
        return any(o.kind == "exported" for o in self.outputs)

    def slot(self, key: str) -> Slot:
        """Return the slot of this key."""
        return next(slot for slot in self.slots if slot.key == key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UpdateRule) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        """Return the rule as assignments, with operators where mathematics has them."""
        slots = ", ".join(f"{s.key}{' >= 0' if s.nonnegative else ''}" for s in self.slots) or "no state"
        lines = [f"rule {self.key}({', '.join(i.name for i in self.inputs)})  # slots: {slots}"]
        for node in self.gm.graph.nodes:
            if node.op == "call_function":
                lines.append(f"    {node.name} = {_expression(node)}")
            elif node.op == "output":
                lines += [f"    {output} = {value}" for output, value in zip(self.outputs, node.args[0], strict=True)]
        return "\n".join(lines)


_OPERATORS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "pow": "**",
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "eq": "==",
}


def _expression(node: fx.Node) -> str:
    name = str(getattr(getattr(node.target, "overloadpacket", node.target), "__name__", node.target))
    arguments = [f"{a:.17g}" if isinstance(a, float) else str(a) for a in node.args]
    if name in _OPERATORS and len(arguments) == 2:
        return f" {_OPERATORS[name]} ".join(arguments)
    return arguments[0] if name == "scalar_tensor" else f"{name}({', '.join(arguments)})"
