"""Memory that a device has left for optimizer state after a forward and backward pass: `memory_budget="fit"`."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from baoc_compile.core.budget import MemoryBudget
from baoc_compile.core.errors import OptionError
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.runtime.distributed.ranks import Ranks
from baoc_compile.state.entries import state_bytes

#: Share of the device's memory that stays free, for fragmentation and for passes larger than those seen so far.
MARGIN = 0.05


def resolved_budget(budget: MemoryBudget, table: ParameterTable) -> MemoryBudget:
    """Return the budget as bytes, if it depends on what devices have left, or on their number; else the budget itself.

    Bytes are those of one device. Where several processes hold the state, all of it may take as much as leaves every device
    within its own bytes, and all processes have to call this.

    Raises what `bytes_left` raises.
    """
    ranks = Ranks.of(table)
    if not (budget.is_deferred or (budget.unit == "B" and not ranks.is_alone)):
        return budget

    def here() -> float:
        device = table.parameters[0].device if table.parameters else torch.device("cpu")
        return bytes_left(device, state_bytes(table.optimizer)) if budget.is_deferred else budget.amount

    if ranks.is_alone:
        return budget.resolved(int(here()))
    whole, local = (sum(p.numel() for p in t.parameters) for t in (table, table.local))
    return budget.on_all(ranks.least(lambda: here() * whole / max(local, 1)))


def bytes_left(device: torch.device, state_bytes: int) -> int:
    """Return the bytes that optimizer state may take: what is free beside this process's peak use so far.

    state_bytes: bytes that the state takes now. They are part of the result.

    `MARGIN` of the device's memory is subtracted. Raises OptionError if nothing is left, or if the device does not
    tell.
    """
    total, free, peak_beyond_now = _on_gpu(device) if device.type == "cuda" else _on_host(device)
    left = int(free - peak_beyond_now - MARGIN * total) + state_bytes
    if left <= 0:
        raise OptionError(
            f'memory_budget: "fit" leaves nothing for optimizer state on {device}: {free:,} of {total:,} bytes are free, a '
            f"forward and backward pass needs {peak_beyond_now:,} of them, and {MARGIN:.0%} stay free; use smaller batches"
        )
    return left


def _on_gpu(device: torch.device) -> tuple[int, int, int]:
    """Return total bytes, free bytes, and how far the peak use exceeded the present. torch's cached memory counts as free."""
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    return total, free + cached, torch.cuda.max_memory_allocated(device) - allocated


def _on_host(device: torch.device) -> tuple[int, int, int]:
    """Return total bytes, free bytes, and how far the peak use exceeded the present."""
    if device.type != "cpu":
        raise OptionError(f'memory_budget: "fit" is not known on devices of type {device.type}; name a number of bytes')
    try:
        entries = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(entries[k].split()[0]) << 10 for k in ("MemTotal", "MemAvailable"))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, now = (int(status[k].split()[0]) << 10 for k in ("VmHWM", "VmRSS"))
    except (OSError, KeyError, ValueError) as error:
        raise OptionError(
            f'memory_budget: "fit" cannot tell how much memory this host ({os.name}) has left; name a number of bytes'
        ) from error
    return total, free, peak - now
