"""Paired timing: every round times each step once, and steps are compared within rounds; also what machine ran them."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], object]

#: Seconds that one timing lasts at least: short steps are repeated within it.
MIN_SECONDS = 0.02

#: Share of its processors' time that a step must get for its round to count.
MIN_SHARE = 0.8


@dataclass(frozen=True)
class Timing:
    """Seconds of one step: on the device, on the wall, and of processors (all threads of this process)."""

    device: float
    wall: float
    cpu: float

    @property
    def processors(self) -> float:
        return self.cpu / self.wall


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        several = [*values]
        low, median, high = statistics.quantiles(several, n=4, method="inclusive") if several[1:] else 3 * several
        return Spread(median, low, high)


@dataclass(frozen=True)
class Comparison:
    """A step beside a baseline: over the rounds kept, None if most were dropped ("noisy"); the rest over all rounds."""

    seconds: Spread | None
    baseline_seconds: Spread | None
    ratio: Spread | None
    wall: float  # median seconds
    processors: float  # median of processor time per wall time
    rounds: int
    dropped: int


def timed(step: Step, device: str, repeats: int = 1) -> Timing:
    """Per step. On CUDA the device's time is between two events, and the wall's ends when the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    wall, cpu = time.perf_counter(), time.process_time()
    if device == "cuda":
        begin.record()
    for _ in range(repeats):
        step()
    if device == "cuda":
        end.record()
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    on_device = begin.elapsed_time(end) / 1e3 if device == "cuda" else wall
    return Timing(on_device / repeats, wall / repeats, cpu / repeats)


def measure(steps: Mapping[str, Step], rounds: int, device: str) -> dict[str, list[Timing]]:
    """Times warm steps A B B A A B ..., so that neither always follows the other."""
    repeats = {name: math.ceil(MIN_SECONDS / timed(step, device).wall) for name, step in steps.items()}
    taken: dict[str, list[Timing]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            taken[name].append(timed(steps[name], device, repeats[name]))
    return taken


def compare(baseline: list[Timing], own: list[Timing], threads: int, device: str) -> Comparison:
    """By rounds. On CPUs a round in which either waited for a processor, or used more than `threads`, is dropped.

    On CUDA nothing is dropped, since there the process may wait.
    """
    bad = disturbed(baseline, threads) | disturbed(own, threads) if device == "cpu" else set()
    kept = [(a.device, b.device) for i, (a, b) in enumerate(zip(baseline, own, strict=True)) if i not in bad]
    wall, processors = statistics.median(t.wall for t in own), statistics.median(t.processors for t in own)
    spreads: tuple[Spread | None, Spread | None, Spread | None] = (None, None, None)
    if 2 * len(kept) > len(own):
        spreads = Spread.of(b for _, b in kept), Spread.of(a for a, _ in kept), Spread.of(b / a for a, b in kept)
    return Comparison(*spreads, wall, processors, len(own), len(bad))


def disturbed(timings: list[Timing], threads: int) -> set[int]:
    """Rounds in which a step got much less than the processors it uses when it can, or more than it may."""
    used = [timing.processors for timing in timings]
    usual = min(threads, max(1.0, Spread.of(used).high))
    return {i for i, value in enumerate(used) if not MIN_SHARE * usual <= value <= 1.1 * threads}


def copy_bandwidth(device: str, bytes_copied: int = 2**28, repeats: int = 20) -> float:
    """GB/s of torch's copy between two buffers, the fastest of some: bytes read plus bytes written.

    A processor may also read a line before it overwrites it, which is not counted; an update in place, which has read
    its lines already, can therefore move more bytes a second than the copy.
    """
    source = torch.ones(bytes_copied // 4, device=device)
    target = torch.zeros_like(source)
    seconds = min(timed(lambda: target.copy_(source), device).device for _ in range(repeats))
    return 2 * bytes_copied / seconds / 1e9


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What ran this: the processor, the GPU, and releases of Python, torch, Triton and `packages` (None: not installed)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": next(iter(names), platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _release(name) for name in ("triton", *packages)},
    }


def _release(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
