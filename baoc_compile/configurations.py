"""`configurations`: every way to store one parameter's state, and what each costs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from baoc_compile.core.codec import Codec, Slot, weight_slots
from baoc_compile.core.configuration import Configuration
from baoc_compile.core.errors import OptionError, UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.codecs.catalogue import CODECS, codec_named, full_precision
from baoc_compile.passes.programs.bytes_moved import bytes_moved
from baoc_compile.passes.rules.read_step import read_step
from baoc_compile.runtime.lead_steps import own_function

#: Examples of codecs whose name contains a size.
SIZED_EXAMPLES = ("head:32", "head:64", "head:128", "column_head:64", "run:64", "run:256")


@dataclass(frozen=True)
class Choice:
    """One codec for one slot.

    slot: the slot's key.
    codec: the codec.
    bytes_per_parameter: bytes of state per element of the parameter; 0 if the codec is refused.
    reason: why the codec may not store the slot; empty if it may.
    """

    slot: str
    codec: Codec
    bytes_per_parameter: float
    reason: str


@dataclass(frozen=True)
class ConfigurationRow:
    """One configuration and what it costs per element of the parameter.

    configuration: the codec of every slot.
    bytes_per_parameter: bytes of state.
    bytes_moved: bytes that all launches of one step read and write.
    """

    configuration: Configuration
    bytes_per_parameter: float
    bytes_moved: float

    def __str__(self) -> str:
        return self.configuration.label


@dataclass(frozen=True)
class ConfigurationTable:
    """Every way to store the state of one parameter. `print` it.

    rule: the update rule of the parameter.
    name: the parameter's name.
    shape: the parameter's shape.
    choices: every codec for every slot, allowed or not.
    rows: every allowed configuration, largest state first.
    """

    rule: UpdateRule
    name: str
    shape: torch.Size
    choices: tuple[Choice, ...]
    rows: tuple[ConfigurationRow, ...]

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
    """Return every way to store the state of one parameter.

    optimizer: any optimizer; it need not be prepared.
    parameter: one of its parameters; by default the largest.

    Raises OptionError if the optimizer does not hold the parameter, UnsupportedStep if its update is not elementwise or
    can't be read.
    """
    table = ParameterTable.of(optimizer)
    if parameter is None:
        parameter = max(table.parameters, key=torch.Tensor.numel)
    index = next((i for i, p in enumerate(table.parameters) if p is parameter), None)
    if index is None:
        raise OptionError(f"parameter: the optimizer does not hold this tensor of shape {tuple(parameter.shape)}")
    warm = read_step(table, own_function(optimizer), frozenset([index])).warm
    rule = warm.rules.get(index)
    if rule is None:
        why = warm.reasons.get(index, "the step does not change it")
        raise UnsupportedStep(f"the update of {table.names[index]} is no elementwise rule: {why}")
    slots = (*rule.slots, *weight_slots(parameter, rule.slots))
    choices = tuple(_choice(slot, codec, parameter) for slot in slots for codec in _listed(slot, parameter))
    allowed = [[c.codec for c in choices if c.slot == slot.key and not c.reason] for slot in slots]
    rows = []
    for codecs in itertools.product(*allowed):
        configuration = Configuration({slot.key: codec for slot, codec in zip(slots, codecs, strict=True)})
        stored = configuration.storage_bytes(parameter.shape)
        moved = bytes_moved(rule, configuration.codecs, parameter)
        numel = max(parameter.numel(), 1)
        rows.append(ConfigurationRow(configuration, stored / numel, moved / numel))
    rows.sort(key=lambda row: -row.bytes_per_parameter)
    return ConfigurationTable(rule, table.names[index], parameter.shape, choices, tuple(rows))


def _listed(slot: Slot, parameter: torch.Tensor) -> list[Codec]:
    """Return the codecs of the slot's kind, with full precision in the parameter's own type only."""
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
