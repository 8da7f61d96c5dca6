"""The plan: which codec every state slot of every parameter gets. Frozen data, JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


from baoc_compile.codec import Codec, Slot
from baoc_compile.errors import PlanError
from baoc_compile.kernels.catalogue import FORMATS, codec_for, codec_named, full_precision
from baoc_compile.step_graph import ParameterTable

VERSION = 1

#: Tensors below this stay in full precision unless a plan names their codecs: they cost next to nothing.
SMALL_NUMEL = 4096


@dataclass(frozen=True)
class ParameterPlan:
    """Slot -> codec name for one parameter; name and shape are there to notice a plan for another model."""

    name: str
    shape: tuple[int, ...]
    slots: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """`parameters`: by index in the optimizer's own order. `default`: slot (or "*") -> format or codec for all others.

    `seed` keys the stochastic rounding. `memory_budget` records what the plan was made for.
    """

    default: Mapping[str, str] = field(default_factory=lambda: {"*": "fp32"})
    parameters: Mapping[int, ParameterPlan] = field(default_factory=dict)
    seed: int = 0
    memory_budget: str = ""

    @classmethod
    def uniform(cls, formats: str | Mapping[str, str], *, seed: int = 0) -> Plan:
        """One configuration for all: a format ("fp32", "bf16", "8bit") or codec name, or slot -> format ("*": the rest)."""
        default = {"*": formats} if isinstance(formats, str) else dict(formats)
        plan = cls(default=default, seed=seed)
        plan._validate()
        return plan

    def codec(self, table: ParameterTable, index: int, slot: Slot) -> tuple[Codec, str]:
        """The codec of one slot, and why it is not the one asked for (empty if it is).

        Raises PlanError if the plan names a parameter of another shape.
        """
        parameter = table.parameters[index]
        entry = self.parameters.get(index)
        if entry is not None:
            if tuple(entry.shape) != tuple(parameter.shape):
                raise PlanError(
                    f"the plan's parameter {index} ({entry.name}) has shape {tuple(entry.shape)}, the optimizer's "
                    f"({table.names[index]}) {tuple(parameter.shape)}: this plan was made for another model"
                )
            if slot.key in entry.slots:
                codec = codec_named(entry.slots[slot.key])
                reason = codec.refuses(slot)
                if reason:
                    raise PlanError(f"the plan stores {slot.key!r} of {entry.name} as {codec.name}, but {reason}")
                return codec, ""
        if parameter.numel() < SMALL_NUMEL:
            return full_precision(parameter.dtype), f"fewer than {SMALL_NUMEL} elements"
        choice = self.default.get(slot.key, self.default.get("*", "fp32"))
        return codec_for(choice, slot, parameter.dtype)

    def to_json(self) -> str:
        parameters = [
            {"index": i, "name": p.name, "shape": list(p.shape), "slots": dict(p.slots)}
            for i, p in sorted(self.parameters.items())
        ]
        data = {
            "format": "baoc-plan",
            "version": VERSION,
            "seed": self.seed,
            "memory_budget": self.memory_budget,
            "default": dict(self.default),
            "parameters": parameters,
        }
        return json.dumps(data, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises PlanError for anything that is not a plan of this version, naming the field."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != "baoc-plan":
            raise PlanError('the plan has no "format": "baoc-plan"')
        if data.get("version") != VERSION:
            raise PlanError(f"the plan has version {data.get('version')!r}, this release reads {VERSION}")
        unknown = set(data) - {"format", "version", "seed", "memory_budget", "default", "parameters"}
        if unknown:
            raise PlanError(f"the plan has unknown fields {sorted(unknown)}")
        try:
            parameters = {
                int(p["index"]): ParameterPlan(str(p["name"]), tuple(int(n) for n in p["shape"]), dict(p["slots"]))
                for p in data["parameters"]
            }
            plan = cls(dict(data["default"]), parameters, int(data["seed"]), str(data["memory_budget"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan is malformed: {type(error).__name__}: {error}") from error
        plan._validate()
        return plan

    def _validate(self) -> None:
        for slot, choice in self.default.items():
            if not isinstance(choice, str) or choice not in FORMATS:
                codec_named(choice)
            if not isinstance(slot, str):
                raise PlanError(f"default[{slot!r}]: slots are strings")
        for entry in self.parameters.values():
            for choice in entry.slots.values():
                codec_named(choice)

    def summary(self) -> str:
        """One line per codec: how many tensors."""
        counts: dict[str, int] = {}
        for entry in self.parameters.values():
            for slot, codec in entry.slots.items():
                counts[f"{slot}: {codec}"] = counts.get(f"{slot}: {codec}", 0) + 1
        return ", ".join(f"{what} in {n} tensors" for what, n in counts.items()) or f"default {dict(self.default)}"


def as_plan(value: Any) -> Plan:
    """A Plan, its JSON text, or a format for all. Raises PlanError."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return Plan.from_json(value)
    if isinstance(value, (str, Mapping)):
        return Plan.uniform(value)
    raise PlanError(f"plan: expected a Plan, its JSON or a format name, got {type(value).__name__}")
