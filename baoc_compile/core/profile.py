"""Profile: what is known of every block and of every configuration that it may get. Plans are solved from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from baoc_compile.core.block import Block
from baoc_compile.core.configuration import configuration_label


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of one block from its sampled gradients g[t, i], t = 1 ... T. NaN where nothing was sampled.

    anisotropy: standard deviation over quantization groups k of ln RMS_{t, i in k} g: how far scales differ.
    stability: (|sum_t g_t|^2 - sum_t |g_t|^2) / ((T - 1) sum_t |g_t|^2): the mean cosine of two gradients, weighted by
        their lengths. It is 1 if all point the same way, and 0 on average if they are independent with mean 0.
    noise: sum_i Var_t g_i / sum_i (mean_t g_i)^2, with unbiased estimates of both. Where the estimate of the divisor is below
        its standard error, that takes its place: the noise is at least so much.
    snr: by slot and by axis K = "row", "column" or "tensor", E_K'[(E_K v)^2 / Var_K v]: how well a mean along K stands
        for the second moments v that share it (SlimAdam).

    BAOC (arXiv 2605.04711) names the first three properties; the formulas are our reconstruction.
    """

    anisotropy: float = math.nan
    stability: float = math.nan
    noise: float = math.nan
    snr: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class BlockCandidate:
    """One configuration of one block: its cost and its risk.

    codecs: slot -> codec name.
    size_bytes: bytes of the state of all the block's parameters.
    time_ns: time of the step over the block in nanoseconds, without launches.
    launch_ns: time of launching `programs`, in nanoseconds; counted once, however many blocks share them.
    programs: hash of the programs that step the block.
    predicted: expected change of the loss against full precision, of this block alone, in nats per window.
    error: standard error of `predicted`, in nats per window.
    risk: what the solver minimizes, in nats per window; see `passes/risk/assess_risk.py`.
    interaction: what the block adds to the joint displacement, in nats; see `passes/solve/couple.py`.
    relative_error: relative L2 error of the updates.
    excluded: why the candidate must not be chosen; empty if it may be.
    gate: why it is chosen only as a last resort; empty if it may be chosen freely.
    """

    codecs: Mapping[str, str]
    size_bytes: int
    time_ns: float
    launch_ns: float
    programs: str
    predicted: float
    error: float
    risk: float
    interaction: float = 0.0
    relative_error: float = math.nan
    excluded: str = ""
    gate: str = ""

    @property
    def label(self) -> str:
        """Slots and codec names as one line; see `configuration_label`."""
        return configuration_label(self.codecs)


@dataclass(frozen=True)
class Profile:
    """What plans are solved from.

    blocks: the blocks that are planned.
    statistics: by block, the statistics of its sampled gradients.
    candidates: by block, the configurations that it may get.
    current: by block, the index of the candidate that stores it now.
    names: names of the optimizer's parameters, in its order.
    shapes: shapes of the optimizer's parameters, in its order.
    fixed_bytes: bytes of state that is not planned: counters, what weight codecs keep, parameters without a rule.
    fixed_ns: the host's part of a step in nanoseconds, the same for all plans.
    full_bytes: bytes of all state in full precision.
    full_ns: predicted time of the step in full precision, in nanoseconds.
    curvature: factor of the curvature along the update, estimated from the samples; see `passes/risk/assess_risk.py`.
    steps: steps of the window that risks refer to; 0 if nothing was sampled.
    sampled_elements: elements sampled, over all parameters.
    sampled_bytes: host memory of the samples, in bytes.
    seconds: time that making the profile took.
    time_is_measured: whether times were measured on this device; otherwise they are estimated from bytes moved.
    """

    blocks: tuple[Block, ...]
    statistics: tuple[BlockStatistics, ...]
    candidates: tuple[tuple[BlockCandidate, ...], ...]
    current: tuple[int, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    fixed_bytes: int
    fixed_ns: float
    full_bytes: int
    full_ns: float
    curvature: float
    steps: int
    sampled_elements: int
    sampled_bytes: int
    seconds: float
    time_is_measured: bool

    @property
    def numel(self) -> int:
        """Elements of all planned parameters."""
        return sum(math.prod(self.shapes[i]) for block in self.blocks for i in block.parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain dictionaries, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """Return the profile that `to_dict` wrote."""
        return cls(
            **{
                **data,
                "blocks": tuple(Block(b["role"], tuple(b["parameters"]), b["detail"]) for b in data["blocks"]),
                "statistics": tuple(BlockStatistics(**s) for s in data["statistics"]),
                "candidates": tuple(tuple(_candidate(c) for c in cs) for cs in data["candidates"]),
                "current": tuple(data["current"]),
                "names": tuple(data["names"]),
                "shapes": tuple(map(tuple, data["shapes"])),
            }
        )


def _candidate(data: Mapping[str, Any]) -> BlockCandidate:
    """Return a candidate from its dictionary. Until version 0.6 it had an update scale, `gain` in 0.1."""
    return BlockCandidate(**{name: value for name, value in data.items() if name not in ("update_scale", "gain")})
