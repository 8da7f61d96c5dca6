"""Storage: how every slot of every parameter of one optimizer is stored. A value: passes take one and return another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from baoc_compile.core.codec import Codec


@dataclass(frozen=True)
class StoredSlot:
    """One slot.

    codec: how its values are stored.
    reason: why the codec is not the one that the plan's default asks for; empty if it is.
    """

    codec: Codec
    reason: str = ""


@dataclass(frozen=True)
class StoredParameter:
    """One parameter.

    slots: state key -> how that slot is stored; the key "param" is the weight's own (see `codec.WEIGHT_KEY`).
    block: the name of the block that it was planned with; empty before a plan by block.
    update_scale: multiplies its updates.
    """

    slots: Mapping[str, StoredSlot] = field(default_factory=dict)
    block: str = ""
    update_scale: float = 1.0

    @property
    def codecs(self) -> dict[str, Codec]:
        return {key: slot.codec for key, slot in self.slots.items()}


NOT_DECIDED = StoredParameter()


@dataclass(frozen=True)
class Storage:
    """The storage of one optimizer's state. `Plan.written` writes it down; `Plan.storage` reads it back.

    parameters: by index in the optimizer's own order (see `ParameterTable`); those whose storage is decided.
    default: slot (or "*") -> the format that parameters which join later get, if it fits; None before any decision.
    update_scale: that of parameters which join later.
    seed: keys the stochastic rounding of all slots.
    memory_budget: what the storage was chosen for, as the user wrote it; empty if a plan was named.
    certificate: how good the solver knows this choice to be; empty if none was solved.
    """

    parameters: Mapping[int, StoredParameter] = field(default_factory=dict)
    default: Mapping[str, str] | None = None
    update_scale: float = 1.0
    seed: int = 0
    memory_budget: str = ""
    certificate: str = ""

    def of(self, index: int) -> StoredParameter:
        """How parameter `index` is stored; nothing is decided for one that is not there."""
        return self.parameters.get(index, NOT_DECIDED)

    def has(self, index: int, key: str) -> bool:
        return key in self.of(index).slots

    def with_parameters(self, changed: Mapping[int, StoredParameter]) -> Storage:
        return replace(self, parameters={**self.parameters, **changed})

    def reindexed(self, new_index: Mapping[int, int]) -> Storage:
        """The same storage after parameter `old` became number `new_index[old]`; parameters that are gone are forgotten."""
        kept = {new_index[i]: stored for i, stored in self.parameters.items() if i in new_index}
        return replace(self, parameters=kept)
