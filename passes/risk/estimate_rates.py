"""Rates: what sharing or dropping state gains or costs, relative to how much a block is displaced by it.

It may well be a gain (docs/dropping.md), and one block's G(b) (`assess_risk.py`) is mostly noise that all blocks have in
common. So rates r_k = G(b_k) / I_k are estimated together, over the blocks k that may be changed in the same way: a rate is
one that all have, plus one that the block has, both normal with mean 0 and standard deviation SPREAD before anything was
seen. With y_k = G(b_k) / I_k, and C their covariances from the spread over steps, the expectation after it is

    r = P (P + C)^-1 y,      P = SPREAD^2 (1 + delta_kl)

(a Gaussian process; the best linear unbiased prediction of a mixed model), which believes a rate as far as it stands out from
the noise. Gains do not add up, though: whole trainings have them from the first block or two, and no longer with half of
the blocks. So a rate r < 0 counts as r / (1 - r), which is never below -1, where a change of all blocks at once would gain
what it costs; and below FEWEST_STEPS steps it counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baoc_compile.passes.risk.assess_risk import FEWEST_STEPS, Assessment

#: Standard deviations of rates, before anything was seen.
SPREAD = 0.5

#: Of all blocks' interactions: a block that has less says nothing, and has a rate of 0.
FAINT = 1e-9


def estimate_rates(alike: Sequence[Assessment]) -> list[float]:
    """r of the module, as it counts, for different blocks that are changed in the same way."""
    interactions = torch.tensor([a.risk.interaction for a in alike], dtype=torch.float64)
    lasting = torch.stack([a.lasting for a in alike])
    known = interactions.isfinite() & lasting.isfinite().all(1)
    known &= interactions > FAINT * interactions[known].sum()
    several, steps = int(known.sum()), lasting.shape[1]
    found = torch.zeros_like(interactions)
    if several and steps > 1:
        seen = lasting[known] / interactions[known, None]
        noise = steps * torch.cov(seen).reshape(several, several)
        before = SPREAD**2 * (1.0 + torch.eye(several, dtype=torch.float64))
        found[known] = before @ torch.linalg.solve(before + noise, seen.sum(1))
    gains = found.clamp(max=0.0) if steps >= FEWEST_STEPS else torch.zeros_like(found)
    return (found.clamp(min=0.0) + gains / (1.0 - gains)).tolist()
