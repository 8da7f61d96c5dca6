"""Rates: what sharing or dropping state gains or costs, relative to the interaction of the block.

G(b) of a single block (`assess_risk.py`) is mostly noise that all blocks have in common. The rates r_k = G(b_k) / I_k
of all blocks k that can be changed in the same way are therefore estimated together. A rate is the sum of one term that
all blocks share and one of the block's own. The prior of both terms is normal with mean 0 and standard deviation SPREAD.
With y_k = G(b_k) / I_k, and C the covariance of y from its spread over steps, the posterior mean is

    r = P (P + C)^-1 y,      P = SPREAD^2 (1 + delta_kl)

(a Gaussian process; the best linear unbiased prediction of a mixed model). It trusts a rate as far as the rate stands
out from the noise.

A negative rate counts as 0: whoever asks for less memory asks for the same training, and gains of single blocks neither
add up nor last (docs/dropping.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baoc_compile.passes.risk.assess_risk import Assessment

#: Prior standard deviation of each term of a rate.
SPREAD = 0.5

#: Fraction of the sum of all interactions below which a block says nothing and its rate is 0.
FAINT = 1e-9


def estimate_rates(alike: Sequence[Assessment]) -> list[float]:
    """Return the rate of every block in `alike`, as it counts; all of these blocks are changed in the same way."""
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
    return found.clamp(min=0.0).tolist()
