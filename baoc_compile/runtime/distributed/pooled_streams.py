"""Pool the samples that several processes have taken of their parts of one parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from baoc_compile.core.rule import UpdateRule
from baoc_compile.core.shard import Shard
from baoc_compile.passes.risk.gradient_stream import GradientStream, SharedIncrements
from baoc_compile.passes.risk.sample_gradients import GradientSampler
from baoc_compile.runtime.distributed.ranks import Ranks


def pooled_streams(ranks: Ranks, sampler: GradientSampler) -> Mapping[int, GradientStream]:
    """Return the streams of all ranks by parameter index, those of one parameter joined. All ranks have to call this.

    A rank on which a parameter has lacked a gradient gives none. Parts that several ranks hold are taken once.
    """
    own = sampler.streams if sampler.is_complete else {}
    if ranks.is_alone:
        return own
    offsets = {i: Shard.of(sampler.table.wholes[i]).offset for i in own}
    sent = {i: (offsets[i], stream.state_dict()) for i, stream in own.items()}
    known = {rule.key: rule for rule in sampler.rules.values()}
    parts: dict[int, dict[tuple[int, ...], GradientStream]] = {}
    for found in ranks.gathered(sent).values():
        for i, (offset, state) in found.items():
            if known.keys() >= set(state["rules"]):
                parts.setdefault(i, {}).setdefault(offset, GradientStream.from_state_dict(state, known))
    return {i: joined([part for _, part in sorted(of.items())]) for i, of in sorted(parts.items())}


def joined(parts: list[GradientStream]) -> GradientStream:
    """Return the samples of parts of one parameter as one stream. Parts whose rules differ from the first one's are left out.

    Their positions are numbered one part behind the other.
    """
    first = parts[0]
    parts = [p for p in parts if _kinds(p.rules) == _kinds(first.rules)]
    starts = torch.tensor([0, *(int(p.index.max()) + 1 for p in parts)]).cumsum(0).tolist()

    def cat(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([t.cpu() for t in tensors])

    return GradientStream(
        first.numel,
        cat([p.index + start for p, start in zip(parts, starts, strict=False)]),
        cat([p.param for p in parts]),
        {key: cat([p.slots[key] for p in parts]) for key in first.slots},
        first.counters,
        {key: cat([p.lines[key] for p in parts]) for key in first.lines},
        [cat([p.grads[k] for p in parts]) for k in range(len(first.grads))],
        first.numbers,
        first.rules,
        {key: _joined_means([p.shared[key] for p in parts]) for key in first.shared},
    )


def _joined_means(parts: list[SharedIncrements]) -> SharedIncrements:
    """Return the means that all sampled elements see; "mean" is the mean of the parts' means."""

    def joined_of(means: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        elements = {name: torch.cat([m[name] for m in means]) for name in ("rows", "columns")}
        return elements | {"mean": torch.stack([m["mean"] for m in means]).mean(0)}

    steps = range(len(parts[0].added))
    snr = {axis: sum(p.snr[axis] for p in parts) / len(parts) for axis in parts[0].snr}
    added = [joined_of([p.added[k] for p in parts]) for k in steps]
    return SharedIncrements(joined_of([p.start for p in parts]), snr, added, parts[0].decays)


def _kinds(rules: list[UpdateRule]) -> list[str]:
    return [rule.key for rule in rules]
