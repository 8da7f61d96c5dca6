"""Statistics: from the sampled gradients of a block to the metrics of `BlockStatistics`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.core.profile import BlockStatistics
from baoc_compile.passes.risk.gradient_stream import GradientStream


def block_statistics(streams: Sequence[GradientStream]) -> BlockStatistics:
    """Return the statistics of one block from the streams of its parameters.

    `BlockStatistics` has the formulas. Each sampled element counts as many times as the elements that it stands for.
    """
    if not streams:
        return BlockStatistics()
    weights = torch.cat([s.weights for s in streams]).double()
    grads = torch.stack([torch.cat([*g]) for g in zip(*(s.grads for s in streams), strict=True)]).double()
    steps = len(grads)
    by_group = (grads.square().mean(0) * weights).view(-1, GROUP_SIZE).sum(1) / weights.view(-1, GROUP_SIZE).sum(1)
    logs = by_group[by_group > 0.0].log() / 2
    stability = noise = math.nan
    if steps > 1:
        products = (grads * weights) @ grads.T
        pairs = products[torch.ones_like(products).triu(1).bool()]
        squares, mean = float(products.trace()) / steps, float(pairs.mean())
        error = float(pairs.std()) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
        stability = mean / squares if squares > 0.0 else math.nan
        least = max(mean, error)
        noise = float((grads.var(0) * weights).sum()) / least if least > 0.0 else math.nan
    return BlockStatistics(
        anisotropy=float(logs.std()) if len(logs) > 1 else 0.0,
        stability=stability,
        noise=noise,
        snr=_signal_to_noise(streams),
    )


def _signal_to_noise(streams: Sequence[GradientStream]) -> dict[str, dict[str, float]]:
    """Return the signal-to-noise ratio by slot and axis: the mean over parameters, weighted by their elements."""
    found: dict[str, dict[str, float]] = {}
    for stream in streams:
        for key, increments in stream.shared.items():
            for axis, ratio in increments.snr.items():
                entry = found.setdefault(key, {})
                entry[axis] = entry.get(axis, 0.0) + ratio * stream.numel
    numel = sum(s.numel for s in streams)
    return {key: {axis: total / numel for axis, total in axes.items()} for key, axes in found.items()}
