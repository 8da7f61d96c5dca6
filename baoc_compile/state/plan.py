"""The plan: which codec every state slot of every parameter gets. Frozen data, JSON in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.core.errors import PlanError
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.kernels.codecs.catalogue import (
    codec_for,
    codec_named,
    full_precision,
    is_known,
    known_choices,
    weight_codec_for,
)

VERSION = 4

#: Names of fields in plans of version 3, which are still read.
_RENAMED = {"gain": "update_scale"}

_FIELDS = {"seed", "memory_budget", "update_scale", "certificate", "default", "parameters"}

#: Tensors below this stay in full precision unless a plan names their codecs: they cost next to nothing.
SMALL_NUMEL = 4096


@dataclass(frozen=True)
class ParameterPlan:
    """Slot -> codec name for one parameter; name and shape are there to notice a plan for another model.

    `update_scale` multiplies the parameter's update.
    """

    name: str
    shape: tuple[int, ...]
    slots: Mapping[str, str]
    update_scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """`parameters`: by index in the optimizer's own order. `default`: slot (or "*") -> format or codec for all others;
    "param" -> format of bf16 and fp16 weights. `update_scale` multiplies the updates of all others.

    The update scale is the least-squares factor <u, c> / <c, c> of the update c that a configuration gives to the update u
    of full precision: a slot that is shared or dropped changes the length of the update, and the scale gives it back. `seed`
    keys the stochastic rounding. `memory_budget` records what the plan was made for, `certificate` how good the solver
    knows it to be.
    """

    default: Mapping[str, str] = field(default_factory=lambda: {"*": "fp32"})
    parameters: Mapping[int, ParameterPlan] = field(default_factory=dict)
    seed: int = 0
    memory_budget: str = ""
    update_scale: float = 1.0
    certificate: str = ""

    @classmethod
    def uniform(cls, formats: str | Mapping[str, str], *, seed: int = 0, update_scale: float = 1.0) -> Plan:
        """One configuration for all: a format ("fp32", "bf16", "8bit") or codec name, or slot -> format ("*": the rest)."""
        default = {"*": formats} if isinstance(formats, str) else dict(formats)
        plan = cls(default=default, seed=seed, update_scale=update_scale)
        plan._validate()
        return plan

    def update_scale_of(self, index: int, parameter: Tensor) -> float:
        """The update_scale of one parameter."""
        if index in self.parameters:
            return self.parameters[index].update_scale
        return self.update_scale if parameter.numel() >= SMALL_NUMEL else 1.0

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
                reason = codec.why_not(slot, parameter.shape)
                if reason:
                    raise PlanError(f"the plan stores {slot.key!r} of {entry.name} as {codec.name}, but {reason}")
                return codec, ""
        if slot.weight_dtype is not None:
            return weight_codec_for(self.default.get(slot.key, "nearest"), slot, parameter.shape)
        if parameter.numel() < SMALL_NUMEL:
            return full_precision(parameter.dtype), f"fewer than {SMALL_NUMEL} elements"
        choice = self.default.get(slot.key, self.default.get("*", "fp32"))
        return codec_for(choice, slot, parameter.shape, parameter.dtype)

    def to_json(self) -> str:
        parameters = [
            {"index": i, "name": p.name, "shape": list(p.shape), "slots": dict(p.slots), "update_scale": p.update_scale}
            for i, p in sorted(self.parameters.items())
        ]
        data = {
            "format": "baoc-plan",
            "version": VERSION,
            "seed": self.seed,
            "memory_budget": self.memory_budget,
            "update_scale": self.update_scale,
            "certificate": self.certificate,
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
        if data.get("version") not in (VERSION, 3):
            raise PlanError(f"the plan has version {data.get('version')!r}, this release reads 3 and {VERSION}")
        if data["version"] == 3:
            data = _renamed(data)
        unknown = set(data) - {"format", "version", *_FIELDS}
        if unknown:
            raise PlanError(f"the plan has unknown fields {sorted(unknown)}")
        missing = _FIELDS - set(data)
        if missing:
            raise PlanError(f"the plan lacks the fields {sorted(missing)}")
        entries = _typed(data["parameters"], list, "parameters")
        parameters: dict[int, ParameterPlan] = {}
        for position, entry in enumerate(entries):
            where = f"parameters[{position}]"
            fields = _typed(entry, dict, where)
            if set(fields) != {"index", "name", "shape", "slots", "update_scale"}:
                raise PlanError(
                    f"{where} has fields {sorted(fields)}, expected index, name, shape, slots and update_scale"
                )
            index = _count(fields["index"], f"{where}.index")
            if index in parameters:
                raise PlanError(f"{where}.index: parameter {index} is there twice")
            shape = tuple(_count(n, f"{where}.shape") for n in _typed(fields["shape"], list, f"{where}.shape"))
            name = _typed(fields["name"], str, f"{where}.name")
            slots = _typed(fields["slots"], dict, f"{where}.slots")
            parameters[index] = ParameterPlan(name, shape, slots, fields["update_scale"])
        default = _typed(data["default"], dict, "default")
        seed, budget = _typed(data["seed"], int, "seed"), _typed(data["memory_budget"], str, "memory_budget")
        certificate = _typed(data["certificate"], str, "certificate")
        plan = cls(default, parameters, seed, budget, data["update_scale"], certificate)
        plan._validate()
        return plan

    def _validate(self) -> None:
        _check_update_scale(self.update_scale, "update_scale")
        for slot, choice in self.default.items():
            _typed(slot, str, "default: a slot")
            _check_choice(choice, f"default[{slot!r}]", slot)
        for index, entry in self.parameters.items():
            _check_update_scale(entry.update_scale, f"parameter {index} update_scale")
            for slot, choice in entry.slots.items():
                _check_choice(choice, f"parameter {index} slots[{slot!r}]", slot)


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _count(value: Any, where: str) -> int:
    if _typed(value, int, where) < 0:
        raise PlanError(f"{where}: expected a number >= 0, got {value}")
    return value


def _check_choice(choice: Any, where: str, slot: str) -> None:
    if not isinstance(choice, str) or not is_known(choice, slot):
        raise PlanError(f"{where}: unknown codec {choice!r}; known are {', '.join(known_choices(slot))}")


def _check_update_scale(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise PlanError(f"{where}: expected a number > 0, got {value!r}")


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """A plan of version 3 with today's names."""
    entries = data.get("parameters")
    if isinstance(entries, list):
        entries = [{_RENAMED.get(k, k): v for k, v in e.items()} if isinstance(e, dict) else e for e in entries]
    return {_RENAMED.get(k, k): v for k, v in data.items()} | {"parameters": entries}


def as_plan(value: Any) -> Plan:
    """A Plan, its JSON text, or a format for all. Raises PlanError."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return Plan.from_json(value)
    if isinstance(value, (str, Mapping)):
        return Plan.uniform(value)
    raise PlanError(f"plan: expected a Plan, its JSON or a format name, got {type(value).__name__}")
