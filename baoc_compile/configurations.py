"""`configurations`: everything that can be done with one parameter's state, and what it costs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from baoc_compile.core.codec import Codec, Slot, weight_entry, weight_slots
from baoc_compile.core.errors import OptionError, UnsupportedStep
from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.kernels.codecs.catalogue import CODECS, codec_named, full_precision
from baoc_compile.passes.rules.discover_state import discover_state
from baoc_compile.passes.rules.reduce_state import reduce_state

#: Sizes of the codecs that have one, to list.
SIZED_EXAMPLES = ("head:32", "head:64", "head:128", "column_head:64", "run:64", "run:256")


@dataclass(frozen=True)
class Choice:
    """One codec for one slot. `reason`: why it may not store it (empty if it may)."""

    slot: str
    codec: Codec
    bytes_per_parameter: float
    reason: str


@dataclass(frozen=True)
class Configuration:
    """A codec for every slot. Bytes of state, and bytes read and written by one step, all launches, per parameter."""

    codecs: dict[str, Codec]
    bytes_per_parameter: float
    bytes_moved: float

    def __str__(self) -> str:
        return ", ".join(f"{slot}: {codec.name}" for slot, codec in self.codecs.items())


@dataclass(frozen=True)
class ConfigurationTable:
    """`choices`: every codec for every slot, allowed or not. `rows`: every allowed configuration, largest state first."""

    rule: UpdateRule
    name: str
    shape: torch.Size
    choices: tuple[Choice, ...]
    rows: tuple[Configuration, ...]

    def __str__(self) -> str:
        width = max(len(c.codec.name) for c in self.choices)
        lines = [f"{self.name} {list(self.shape)}, rule {self.rule.key}: {len(self.rows)} configurations"]
        for slot in dict.fromkeys(c.slot for c in self.choices):
            lines.append(f"  {slot}")
            for c in self.choices:
                if c.slot == slot:
                    fact = f"no: {c.reason}" if c.reason else f"{c.bytes_per_parameter:.4g} B/param"
                    lines.append(f"    {c.codec.name:<{width}}  {fact}")
        lines.append("  B/param  moved by a step")
        lines += [f"  {row.bytes_per_parameter:7.4f}  {row.bytes_moved:7.3f}  {row}" for row in self.rows]
        return "\n".join(lines)


def configurations(optimizer: Any, parameter: torch.Tensor | None = None) -> ConfigurationTable:
    """The table of one parameter, by default the largest.

    Raises OptionError if the optimizer does not hold the parameter, UnsupportedStep if its update is not elementwise.
    """
    table = ParameterTable.of(optimizer)
    if parameter is None:
        parameter = max(table.parameters, key=torch.Tensor.numel)
    index = next((i for i, p in enumerate(table.parameters) if p is parameter), None)
    if index is None:
        raise OptionError(f"parameter: the optimizer does not hold this tensor of shape {tuple(parameter.shape)}")
    schema = discover_state(table)[index]
    if schema.rule is None:
        raise UnsupportedStep(f"the update of {table.names[index]} is no elementwise rule: {schema.reason}")
    slots = (*schema.rule.slots, *weight_slots(parameter, schema.rule.slots))
    choices = tuple(_choice(slot, codec, parameter) for slot in slots for codec in _listed(slot, parameter))
    allowed = [[c.codec for c in choices if c.slot == slot.key and not c.reason] for slot in slots]
    rows = []
    for codecs in itertools.product(*allowed):
        by_slot = {slot.key: codec for slot, codec in zip(slots, codecs, strict=True)}
        stored = sum(codec.storage_bytes(parameter.shape) for codec in codecs) / max(parameter.numel(), 1)
        rows.append(Configuration(by_slot, stored, bytes_moved(schema.rule, by_slot, parameter) / parameter.numel()))
    rows.sort(key=lambda row: -row.bytes_per_parameter)
    return ConfigurationTable(schema.rule, table.names[index], parameter.shape, choices, tuple(rows))


def _listed(slot: Slot, parameter: torch.Tensor) -> list[Codec]:
    """Codecs of the slot's kind, full precision in the parameter's type only."""
    is_weight = slot.weight_dtype is not None
    every = [*CODECS.values(), *map(codec_named, SIZED_EXAMPLES)]
    full = full_precision(parameter.dtype)
    return [
        c for c in every if (c.mechanism == "weight") == is_weight and (c.name not in ("fp32", "fp64") or c is full)
    ]


def _choice(slot: Slot, codec: Codec, parameter: torch.Tensor) -> Choice:
    reason = codec.why_not(slot, parameter.shape)
    size = 0.0 if reason else codec.storage_bytes(parameter.shape) / max(parameter.numel(), 1)
    return Choice(slot.key, codec, size, reason)


def bytes_moved(rule: UpdateRule, codecs: dict[str, Codec], parameter: torch.Tensor) -> int:
    """Bytes that one step of one tensor reads and writes: what each launch reads, and what it writes.

    The gradient has the parameter's type.
    """
    of_kind = {k: tuple(s for s, c in codecs.items() if c.mechanism == k) for k in ("dropping", "sharing")}
    reduced = _reduced(rule, of_kind["dropping"], of_kind["sharing"])
    sizes = {key: codec.storage_bytes(parameter.shape) for key, codec in codecs.items()}
    beside_weight = sum(sizes[key] for key in codecs if key == weight_entry(codecs))
    element = parameter.numel() * parameter.element_size()
    total = 0
    for launch in (*reduced.averages, reduced.update):
        for rule_input in launch.inputs:
            reads = any(n.target == rule_input.name and n.users for n in launch.gm.graph.nodes if n.op == "placeholder")
            touches = int(reads) + int(rule_input.name in launch.replaced)
            if rule_input.kind == "param":
                total += touches * (element + beside_weight)
            elif rule_input.kind == "grad":
                total += touches * element
            elif rule_input.kind == "slot":
                total += touches * sizes[rule_input.key]
        total += sum(2 * sizes[key] for key in launch.averaged)
    return total


@cache
def _reduced(rule: UpdateRule, dropped: tuple[str, ...], shared: tuple[str, ...]) -> Any:
    return reduce_state(rule, dropped, shared)
