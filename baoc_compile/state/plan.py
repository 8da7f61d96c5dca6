"""Plan: the codec of every state slot of every parameter, as frozen data that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baoc_compile.core.codec import Codec, Slot
from baoc_compile.core.errors import PlanError
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage, StoredParameter, StoredSlot
from baoc_compile.kernels.codecs.catalogue import codec_for, codec_named, full_precision, weight_codec_for
from baoc_compile.state import plan_json

#: Tensors of fewer elements stay in full precision unless a plan names their codecs: they cost next to nothing.
SMALL_NUMEL = 4096


@dataclass(frozen=True)
class ParameterPlan:
    """The plan of one parameter.

    name: the parameter's name, by which a reader knows it.
    shape: the parameter's shape; another shape reveals a plan for another model.
    slots: state key -> codec name.
    block: name of the block that the parameter was planned with; empty if it was not planned by block.
    """

    name: str
    shape: tuple[int, ...]
    slots: Mapping[str, str]
    block: str = ""


@dataclass(frozen=True)
class Plan:
    """The storage of every parameter's state, by parameter and by default.

    default: slot (or "*") -> format or codec, for parameters without an entry. "param" -> format of bf16 and fp16
        weights.
    parameters: entries by index in the optimizer's own order.
    seed: seed of the stochastic rounding.
    memory_budget: the budget that the plan was made for, as the user wrote it.
    certificate: how close to optimal the solver knows the plan to be; empty if no solver made it.
    """

    default: Mapping[str, str] = field(default_factory=lambda: {"*": "fp32"})
    parameters: Mapping[int, ParameterPlan] = field(default_factory=dict)
    seed: int = 0
    memory_budget: str = ""
    certificate: str = ""

    @classmethod
    def uniform(cls, formats: str | Mapping[str, str], *, seed: int = 0) -> Plan:
        """Return the plan that gives all parameters one configuration.

        formats: the name of a format ("fp32", "bf16", "8bit", ...) or codec for all slots, or slot -> name, with "*"
            for the remaining slots.
        seed: seed of the stochastic rounding.

        Raises PlanError for an unknown name.
        """
        default = {"*": formats} if isinstance(formats, str) else dict(formats)
        return cls(default=default, seed=seed)._checked()

    @classmethod
    def written(cls, storage: Storage, table: ParameterTable) -> Plan:
        """Return `storage` as a plan for the parameters of `table`."""
        parameters = {}
        for index, parameter in enumerate(table.parameters):
            if index in storage.parameters:
                stored = storage.of(index)
                slots = {key: codec.name for key, codec in stored.codecs.items()}
                name, shape = table.names[index], tuple(parameter.shape)
                parameters[index] = ParameterPlan(name, shape, slots, stored.block)
        default = {"*": "fp32"} if storage.default is None else storage.default
        return cls(default, parameters, storage.seed, storage.memory_budget, storage.certificate)

    @property
    def storage(self) -> Storage:
        """The storage that the plan describes; the inverse of `written`."""
        parameters = {}
        for index, entry in self.parameters.items():
            slots = {key: StoredSlot(codec_named(name)) for key, name in entry.slots.items()}
            parameters[index] = StoredParameter(slots, entry.block)
        return Storage(parameters, self.default, self.seed, self.memory_budget, self.certificate)

    def block_of(self, index: int) -> str:
        """Return the name of the parameter's block; empty without one."""
        return self.parameters[index].block if index in self.parameters else ""

    def codec(self, table: ParameterTable, index: int, slot: Slot) -> tuple[Codec, str]:
        """Return the codec of one slot, and why it is not the one asked for (empty if it is).

        Raises PlanError if the plan's entry has another shape, or names a codec that may not store the slot.
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
        """Return the plan as JSON text."""
        entries = [
            {"index": index, **vars(entry), "shape": list(entry.shape), "slots": dict(entry.slots)}
            for index, entry in sorted(self.parameters.items())
        ]
        return plan_json.to_text({**vars(self), "default": dict(self.default), "parameters": entries})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises PlanError, which names the field, for anything that is not a plan of a version that this release reads.
        """
        fields = plan_json.from_text(text)
        parameters = {index: ParameterPlan(**entry) for index, entry in fields.pop("parameters").items()}
        return cls(**fields, parameters=parameters)._checked()

    def _checked(self) -> Plan:
        plan_json.check(self.default, {i: entry.slots for i, entry in self.parameters.items()})
        return self


def as_plan(value: Any) -> Plan:
    """Return `value` as a plan: a Plan, its JSON text, the name of a format for all slots, or slot -> format.

    Raises PlanError for anything else.
    """
    if isinstance(value, Plan):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return Plan.from_json(value)
    if isinstance(value, (str, Mapping)):
        return Plan.uniform(value)
    raise PlanError(f"plan: expected a Plan, its JSON or a format name, got {type(value).__name__}")
