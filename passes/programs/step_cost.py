"""The time of an optimizer step: what programs cost, how that is resolved to timings, and where it is remembered."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from baoc_compile.kernels.build.cache import Folder, cache_folder


@dataclass(frozen=True)
class Cost:
    """Time of the launches of one configuration (averages, then the update) over some tensors, linear in their number
    and sizes:

        ns = ns_per_launch + ns_per_tensor * tensors + ns_per_element * elements

    `ns_per_launch`: of all launches together. `programs` tells rules, codecs and types apart; tensors with the same share
    the launches. `is_measured`: timed, rather than reckoned from the bytes that are moved.
    """

    ns_per_element: float
    ns_per_launch: float
    ns_per_tensor: float
    is_measured: bool
    programs: str

    def ns(self, elements: int, tensors: int) -> float:
        return self.ns_per_launch + self.ns_per_tensor * tensors + self.ns_per_element * elements


class Sample(NamedTuple):
    """The time of one round of launches over `tensors` that have `elements` together."""

    tensors: int
    elements: int
    ns: float


def fit(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Nanoseconds (per launch, per tensor, per element), none negative, of the least squared relative errors.

    Where a coefficient would be negative, the most negative one is 0 and the others are resolved again. Raises ValueError
    without a sample.
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

    `folder`: where the file lies; the cache folder by default. A file that is missing, damaged or unreadable counts as
    empty; one that can't be written stays as it is.
    """

    def __init__(self, folder: Folder | None = None):
        self.folder = folder or cache_folder()

    def read(self) -> dict[str, Any]:
        return self.folder.entries("step_times.json")

    def has(self, beginning: str) -> bool:
        """Is there an entry whose key begins so?"""
        return any(key.startswith(beginning) for key in self.read())

    def cost(self, key: str) -> Cost | None:
        """A measured cost; None for what is not there, or is none."""
        entry = self.read().get(key)
        try:
            cost = Cost(**entry)  # type: ignore[arg-type]
            numbers = (cost.ns_per_element, cost.ns_per_launch, cost.ns_per_tensor)
            return cost if cost.is_measured is True and all(0.0 <= n < float("inf") for n in numbers) else None
        except TypeError:
            return None

    def number(self, key: str) -> float | None:
        """A positive number; None for what is not there, or is none."""
        entry = self.read().get(key)
        return entry if isinstance(entry, float) and 0.0 < entry < float("inf") else None

    def keep(self, key: str, value: Cost | float) -> None:
        """Replaces the file as a whole. What other processes have written meanwhile stays in it."""
        entry = asdict(value) if isinstance(value, Cost) else float(value)
        self.folder.add_entries("step_times.json", {key: entry})


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type} {next(iter(names), platform.processor() or platform.machine())}"


#: Timings taken of one call.
MOST_TIMINGS, LEAST_TIMINGS = 200, 7

#: On a GPU short calls are repeated, so that each timing lasts at least so long.
LEAST_NS = 100_000

#: How many times as long timing may take where other processes have the processors, too.
PATIENCE = 3

#: Share of its processors' time that a call of several threads must get.
LEAST_SHARE = 0.75

#: More than the caches of a processor hold.
CACHE_BYTES = 1 << 26


def time_call(call: Callable[[], object], device: torch.device, threads: int, seconds: float) -> tuple[float, bool]:
    """Nanoseconds of a call, timed for about so many seconds of processors after two calls that warm it up, and whether
    it had them to itself. The lower quartile: what disturbs a timing only adds to it.

    On processors every timing begins with empty caches, as a step does after a backward pass; wall time, for one thread only
    what this process had of it. On a GPU the time between two events.
    """
    call()
    once = max(1.0, _timing(call, 1, device)[0])
    repeats = 1 + int(LEAST_NS / once) if device.type == "cuda" else 1
    other = torch.zeros(CACHE_BYTES if device.type == "cpu" else 0, dtype=torch.uint8)
    taken: list[tuple[float, float]] = []
    processor = time.process_time()
    deadline = time.perf_counter() + PATIENCE * seconds
    while len(taken) < MOST_TIMINGS and (
        len(taken) < LEAST_TIMINGS
        or (time.process_time() < processor + seconds * threads and time.perf_counter() < deadline)
    ):
        other.add_(1)
        taken.append(_timing(call, repeats, device))
    if device.type == "cuda":
        return _lower_quartile(wall for wall, _ in taken), True
    if threads == 1:
        return _lower_quartile(map(min, taken)), True
    quiet = [wall for wall, processor in taken if processor >= LEAST_SHARE * threads * wall]
    return _lower_quartile(quiet or [min(wall for wall, _ in taken)]), 2 * len(quiet) >= len(taken)


def _lower_quartile(values: Iterable[float]) -> float:
    several = sorted(values)
    return several[len(several) // 4]


def _timing(call: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float]:
    """Nanoseconds of one call: on the device, and of processors (all threads of this process)."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            begin.record()
            for _ in range(repeats):
                call()
            end.record()
        end.synchronize()
        return 1e6 * begin.elapsed_time(end) / repeats, 0.0
    processor, wall = time.process_time_ns(), time.perf_counter_ns()
    for _ in range(repeats):
        call()
    wall, processor = time.perf_counter_ns() - wall, time.process_time_ns() - processor
    return wall / repeats, processor / repeats


@contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """torch runs on so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
