"""Risks: run every configuration of every block on the samples, next to full precision, and assess it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from baoc_compile.core.block import Block
from baoc_compile.core.codec import Codec
from baoc_compile.core.configuration import Configuration
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.passes.risk.assess_risk import Assessment, Reference, Risk, assess, curvature
from baoc_compile.passes.risk.estimate_rates import estimate_rates
from baoc_compile.passes.risk.gradient_stream import GradientStream
from baoc_compile.passes.risk.shadow_run import Samples, reference_run, shadow_updates


def measure_risk(
    blocks: Sequence[Block],
    configurations: Sequence[Sequence[Configuration]],
    streams: Mapping[int, GradientStream],
    rules: Mapping[int, UpdateRule],
    seed: int,
    allow: frozenset[str] = frozenset(),
) -> tuple[dict[tuple[int, str], Risk], float]:
    """Return the risks of all sampled blocks, by (block, configuration label), and the curvature.

    `configurations[k]` are the configurations of block k; `streams` and `rules` are by parameter index; `allow` is that of
    `PlannerOptions`.
    """
    runs = ShadowRuns.of(blocks, streams, rules, seed)
    factor = curvature([reference for run in runs for reference in run.references.values()])
    found: dict[tuple[int, str], Assessment] = {}
    # (label without rounding, number of steps) -> block -> label of its first, least rounded configuration
    ways: dict[tuple[str, int], dict[int, str]] = {}
    way_of: dict[tuple[int, str], tuple[str, int]] = {}
    for run in runs:
        for label, configuration in {c.label: c for k in run.blocks for c in configurations[k]}.items():
            having = tuple(k for k in run.blocks if label in {c.label for c in configurations[k]})
            updates = run.updates(having, configuration.codecs)
            exact = without_rounding(configuration.codecs)
            unrounded = run.updates_once(having, exact) if exact is not None else dict.fromkeys(having)
            gate = last_resort(configuration.codecs, allow)
            for k in having:
                found[k, label] = assess(run.references[k], updates[k], factor, unrounded[k], gate)
                if exact is not None:
                    what = Configuration(exact).label
                    way_of[k, label] = (what, len(found[k, label].lasting))
                    ways.setdefault(way_of[k, label], {}).setdefault(k, label)
    rate_of = {
        (way, k): rate
        for way, labels in ways.items()
        for k, rate in zip(labels, estimate_rates([found[cell] for cell in labels.items()]), strict=True)
    }
    added = {cell: rate_of[way, cell[0]] * found[cell].risk.interaction for cell, way in way_of.items()}
    return {cell: replace(a.risk, risk=a.risk.risk + added.get(cell, 0.0)) for cell, a in found.items()}, factor


def last_resort(codecs: Mapping[str, Codec], allow: frozenset[str]) -> str:
    """Return why a configuration may be chosen only where nothing else meets the budget; empty if it may be anyhow."""
    dropped = [key for key, codec in codecs.items() if codec.mechanism == "dropping"]
    return f"it drops {', '.join(dropped)}" if dropped and "dropped" not in allow else ""


def without_rounding(codecs: Mapping[str, Codec]) -> dict[str, Codec] | None:
    """Return `codecs` with full precision in place of rounding; None if the configuration only rounds."""
    if all(c.mechanism == "rounding" for c in codecs.values()):
        return None
    return {key: full_precision(torch.float32) if c.mechanism == "rounding" else c for key, c in codecs.items()}


class ShadowRuns:
    """Shadow runs of blocks whose parameters step alike: full precision, and any configuration."""

    @classmethod
    def of(
        cls,
        blocks: Sequence[Block],
        streams: Mapping[int, GradientStream],
        rules: Mapping[int, UpdateRule],
        seed: int,
    ) -> list[ShadowRuns]:
        """Group the sampled blocks so that each group runs at once.

        A block counts as sampled if all its parameters were.
        """
        block_of = {i: k for k, b in enumerate(blocks) if all(i in streams for i in b.parameters) for i in b.parameters}
        groups = [tuple(sorted({block_of[i] for i in g if i in block_of})) for g in Samples.alike(streams, rules)]
        return [cls(inside, blocks, streams, rules, seed) for inside in groups if inside]

    def __init__(
        self,
        inside: tuple[int, ...],
        blocks: Sequence[Block],
        streams: Mapping[int, GradientStream],
        rules: Mapping[int, UpdateRule],
        seed: int,
    ):
        self.blocks, self.seed = inside, seed
        self.streams = {k: [streams[i] for i in blocks[k].parameters] for k in inside}
        self.rule = rules[blocks[inside[0]].parameters[0]]
        weights, updates = reference_run(self._samples(inside), seed)
        self.weights = self._by_block(inside, weights)
        self.references = {
            k: Reference(
                torch.cat([s.weights for s in self.streams[k]]).double(),
                self._samples((k,)).grads.double(),
                self.weights[k].double(),
                update.double(),
            )
            for k, update in self._by_block(inside, updates).items()
        }
        self._kept: dict[object, dict[int, Tensor]] = {}

    def updates(self, having: tuple[int, ...], codecs: Mapping[str, Codec]) -> dict[int, Tensor]:
        """Return the updates `[steps, S]` of the blocks in `having` under `codecs`, by block."""
        weights = torch.cat([self.weights[k] for k in having], 1)
        return self._by_block(having, shadow_updates(self._samples(having), codecs, weights, self.seed))

    def updates_once(self, having: tuple[int, ...], codecs: Mapping[str, Codec]) -> dict[int, Tensor]:
        """Return the same as `updates`, cached for configurations that differ only in rounding."""
        key = (having, Configuration(codecs).label)
        if key not in self._kept:
            self._kept[key] = self.updates(having, codecs)
        return self._kept[key]

    def _samples(self, blocks: tuple[int, ...]) -> Samples:
        return Samples(self.rule, [s for k in blocks for s in self.streams[k]])

    def _by_block(self, blocks: tuple[int, ...], values: Tensor) -> dict[int, Tensor]:
        sizes = [sum(len(s.index) for s in self.streams[k]) for k in blocks]
        return dict(zip(blocks, values.split(sizes, dim=1), strict=True))
