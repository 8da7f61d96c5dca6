"""Configuration: the codec of every slot of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from baoc_compile.core.codec import Codec


@dataclass(frozen=True)
class Configuration:
    """A codec for every slot.

    codecs: slot key -> codec; the key "param" is the weight.
    """

    codecs: Mapping[str, Codec]

    @property
    def label(self) -> str:
        """Slots and codec names as one line; see `configuration_label`."""
        return configuration_label({key: codec.name for key, codec in self.codecs.items()})

    @property
    def expected_harm(self) -> float:
        """Expected damage to learning before anything is measured; 0 for full precision. See `Codec.expected_harm`."""
        return sum((codec.expected_harm for codec in self.codecs.values()), 0.0)

    def storage_bytes(self, shape: torch.Size) -> int:
        """Return the exact bytes of the state of one parameter of `shape`."""
        return sum(codec.storage_bytes(shape) for codec in self.codecs.values())

    def __str__(self) -> str:
        return self.label


def configuration_label(names: Mapping[str, str]) -> str:
    """Return a map from slot key to codec name as one line, such as "exp_avg=e2m1 exp_avg_sq=factored"."""
    return " ".join(f"{key}={name}" for key, name in names.items())
