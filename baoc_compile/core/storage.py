"""Storage: how every slot of an optimizer's parameters is stored. It is a value: passes take one and return another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from baoc_compile.core.codec import Codec


@dataclass(frozen=True)
class StoredSlot:
    """How one slot is stored.

    codec: the codec of its values.
    reason: why this is not the codec that the plan's default asks for; empty if it is.
    """

    codec: Codec
    reason: str = ""


@dataclass(frozen=True)
class StoredParameter:
    """How the state of one parameter is stored.

    slots: state key -> how the slot is stored; the key "param" is the weight's own (see `codec.WEIGHT_KEY`).
    block: name of the block that the parameter was planned with; empty before a plan by block.
    """

    slots: Mapping[str, StoredSlot] = field(default_factory=dict)
    block: str = ""

    @property
    def codecs(self) -> dict[str, Codec]:
        """State key -> codec."""
        return {key: slot.codec for key, slot in self.slots.items()}


NOT_DECIDED = StoredParameter()


@dataclass(frozen=True)
class Storage:
    """The storage of one optimizer's state. `Plan.written` turns it into a plan; `Plan.storage` turns that back.

    parameters: parameters whose storage is decided, by index in the optimizer's order (see `ParameterTable`).
    default: slot (or "*") -> format for parameters that join later, if it fits; None before any decision.
    seed: seed of the stochastic rounding of all slots.
    memory_budget: the budget that the storage was chosen for, as the user wrote it; empty if a plan was named.
    certificate: how close to optimal the solver knows the choice to be; empty if nothing was solved.
    """

    parameters: Mapping[int, StoredParameter] = field(default_factory=dict)
    default: Mapping[str, str] | None = None
    seed: int = 0
    memory_budget: str = ""
    certificate: str = ""

    def of(self, index: int) -> StoredParameter:
        """Return how parameter `index` is stored; `NOT_DECIDED` if that is open."""
        return self.parameters.get(index, NOT_DECIDED)

    def has(self, index: int, key: str) -> bool:
        """Return whether the storage of this slot is decided."""
        return key in self.of(index).slots

    def with_parameters(self, changed: Mapping[int, StoredParameter]) -> Storage:
        """Return this storage with the entries in `changed` replaced or added."""
        return replace(self, parameters={**self.parameters, **changed})

    def reindexed(self, new_index: Mapping[int, int]) -> Storage:
        """Return the storage with parameter `old` as number `new_index[old]`; parameters without a new number are left out."""
        kept = {new_index[i]: stored for i, stored in self.parameters.items() if i in new_index}
        return replace(self, parameters=kept)
