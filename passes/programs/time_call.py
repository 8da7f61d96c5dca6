"""Time a call on a device, on a machine that other processes also use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

#: The number of timings of one call.
MOST_TIMINGS, LEAST_TIMINGS = 200, 7

#: The least nanoseconds of one timing on a GPU: shorter calls are repeated.
LEAST_NS = 100_000

#: The factor by which timing may take longer if other processes use the processors.
PATIENCE = 3

#: The share of its threads' processor time that a call must get to count as undisturbed.
LEAST_SHARE = 0.75

#: More bytes than the caches of a processor hold.
CACHE_BYTES = 1 << 26


def time_call(call: Callable[[], object], device: torch.device, threads: int, seconds: float) -> tuple[float, bool]:
    """Return the nanoseconds of a call, and whether it had the processors to itself.

    call: what to time; two calls warm it up first.
    device: the device that it runs on.
    threads: the threads that it uses on a CPU.
    seconds: about how many seconds of processor time each thread spends on timing.

    The result is the lower quartile of the timings, because disturbances only add time. On a CPU every timing starts
    with the call's data evicted from the caches, as a step does after a backward pass. It measures wall time; for one
    thread, the smaller of wall time and this process's processor time. On a GPU it is the time between two events.
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
    """Return the nanoseconds of one call: elapsed, and processor time of all threads of this process (0 on a GPU)."""
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
    """Run torch with `threads` threads inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
