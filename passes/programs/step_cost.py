"""The cost of programs: a linear model fitted to timings, and the file that keeps them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from baoc_compile.kernels.build.cache import Folder, cache_folder


@dataclass(frozen=True)
class Cost:
    """The time of one configuration's launches (averages, then the update), linear in the tensors' number and sizes:

        ns = ns_per_launch + ns_per_tensor * tensors + ns_per_element * elements

    ns_per_element: nanoseconds for each element.
    ns_per_launch: nanoseconds of all launches together, before the first tensor.
    ns_per_tensor: nanoseconds for each tensor.
    is_measured: timed, not estimated from the bytes moved.
    programs: identifies rule, codecs and types; tensors with the same programs share the launches.
    """

    ns_per_element: float
    ns_per_launch: float
    ns_per_tensor: float
    is_measured: bool
    programs: str

    def ns(self, elements: int, tensors: int) -> float:
        """Return the nanoseconds for `tensors` tensors of `elements` elements together."""
        return self.ns_per_launch + self.ns_per_tensor * tensors + self.ns_per_element * elements


class Sample(NamedTuple):
    """The time of one round of launches.

    tensors: number of tensors.
    elements: elements of all tensors together.
    ns: nanoseconds.
    """

    tensors: int
    elements: int
    ns: float


def fit(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Fit nanoseconds (per launch, per tensor, per element), none negative, to the least squared relative errors.

    While a coefficient is negative, the most negative one is set to 0 and the others are solved for again. Raises
    ValueError if there is no sample.
    """
    if not samples:
        raise ValueError("fit: no samples")
    rows = np.array([(1.0, s.tensors, s.elements) for s in samples]) / np.array([[s.ns] for s in samples])
    scale = rows.max(axis=0)  # the columns differ by orders of magnitude
    found, kept = np.zeros(3), [0, 1, 2]
    while kept:
        solved = np.linalg.lstsq(rows[:, kept] / scale[kept], np.ones(len(samples)), rcond=None)[0]
        if (solved >= 0.0).all():
            found[kept] = solved / scale[kept]
            break
        kept.pop(int(solved.argmin()))
    launch, tensor, element = map(float, found)
    return launch, tensor, element


class RememberedTimes:
    """Costs and other numbers by key, in a JSON file that all processes of a user share.

    folder: the folder of the file; the cache folder by default.

    A file that is missing, damaged or unreadable counts as empty. A file that cannot be written stays unchanged.
    """

    def __init__(self, folder: Folder | None = None):
        self.folder = folder or cache_folder()

    def read(self) -> dict[str, Any]:
        """Return all entries of the file."""
        return self.folder.entries("step_times.json")

    def has(self, beginning: str) -> bool:
        """Return whether the key of an entry starts with `beginning`."""
        return any(key.startswith(beginning) for key in self.read())

    def cost(self, key: str) -> Cost | None:
        """Return a measured cost; None if there is no valid entry."""
        entry = self.read().get(key)
        try:
            cost = Cost(**entry)  # type: ignore[arg-type]
            numbers = (cost.ns_per_element, cost.ns_per_launch, cost.ns_per_tensor)
            return cost if cost.is_measured is True and all(0.0 <= n < float("inf") for n in numbers) else None
        except TypeError:
            return None

    def number(self, key: str) -> float | None:
        """Return a positive number; None if there is no valid entry."""
        entry = self.read().get(key)
        return entry if isinstance(entry, float) and 0.0 < entry < float("inf") else None

    def keep(self, key: str, value: Cost | float) -> None:
        """Add an entry. The file is replaced as a whole; entries that other processes wrote meanwhile stay in it."""
        entry = asdict(value) if isinstance(value, Cost) else float(value)
        self.folder.add_entries("step_times.json", {key: entry})


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type} {next(iter(names), platform.processor() or platform.machine())}"
