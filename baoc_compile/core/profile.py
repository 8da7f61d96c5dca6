"""The profile: what is known of every block and of every configuration that it may get. What plans are solved from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from baoc_compile.core.block import Block
from baoc_compile.core.configuration import configuration_label


@dataclass(frozen=True)
class BlockStatistics:
    """From sampled gradients g[t, i] of one block, t = 1 ... T. NaN where nothing was sampled.

    `anisotropy`: standard deviation over quantization groups k of ln RMS_{t, i in k} g: how far scales differ.
    `stability`: (|sum_t g_t|^2 - sum_t |g_t|^2) / ((T - 1) sum_t |g_t|^2), the mean cosine of two gradients, weighted by
    their lengths: 1 if all point the same way, 0 on average if they are independent with mean 0.
    `noise`: sum_i Var_t g_i / sum_i (mean_t g_i)^2, with unbiased estimates of both; infinite if no mean is seen.
    (BAOC, arXiv 2605.04711, names these three properties; the formulas are our reconstruction.)
    `snr`: by slot and axis, E_K'[(E_K v)^2 / Var_K v]: how well a mean along K = "row", "column" or "tensor" stands for
    the second moments v that share it (SlimAdam).
    """

    anisotropy: float = math.nan
    stability: float = math.nan
    noise: float = math.nan
    snr: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class BlockCandidate:
    """One configuration of one block.

    `codecs`: slot -> codec name. `size_bytes`: of the state of all its parameters. `time_ns`: of the step, over the block;
    `launch_ns` more for its `programs` (a hash), once however many blocks share them. `predicted`: expected change of the
    loss per window in nats, against full precision, of this block alone; `error`: its standard error. `risk` and
    `interaction`: what the solver minimizes (see `passes/risk/assess_risk.py`, `passes/solve/couple.py`). `update_scale`
    multiplies the updates, whose relative error (L2) is `relative_error`. `excluded`: why it must not be chosen, `gate`:
    why only as a last resort; empty if it may.
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
    update_scale: float = 1.0
    relative_error: float = math.nan
    excluded: str = ""
    gate: str = ""

    @property
    def label(self) -> str:
        return configuration_label(self.codecs)


@dataclass(frozen=True)
class Profile:
    """`candidates[b]`: of block b; its state is stored as number `current[b]` now. `fixed_bytes`: state that is not planned
    (counters, what weight codecs keep, parameters without a rule), `fixed_ns`: the host's part of a step, which is the same
    for all plans. `full_bytes` and
    `full_ns`: all in full precision. `names`, `shapes`: of the optimizer's parameters, in its order.
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
        return sum(math.prod(self.shapes[i]) for block in self.blocks for i in block.parameters)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
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
    """`gain` is what checkpoints before 0.2 call the update scale."""
    return BlockCandidate(**{"update_scale" if name == "gain" else name: value for name, value in data.items()})
