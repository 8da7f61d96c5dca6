"""Risk: the expected effect of a configuration on the loss, in nats per window, from shadow runs on sampled gradients.

For step t and sampled element i, let u[t, i] be the update in full precision, c[t, i] the update under the
configuration, g[t, i] the gradient before step t, and w[i] the number of elements that sample i stands for. The error
of an update is e = c - u. Its first- and second-order costs are

    coherent   F(e) = sum_t sum_i w[i] g[t+1, i] e[t, i]
    noise      N(e) = SHARE / 2 * curvature * sum_t sum_i w[i] h[i] e[t, i]^2,   h[i] = RMS_t g[t, i]

F is the first-order change of the loss on the *next* batch, which has no influence on e. The spread of F over steps
gives its standard error. N is the second-order cost of an error: half the curvature times its square. The curvature is
diagonal, proportional to the RMS of the gradient; its factor is measured from the sampled gradients. From step t+1 to
step t+2, the gradient along the update u[t] changes by

    sum_t <g[t+2] - g[t+1], u[t]> = curvature * sum_t <h * u[t+1], u[t]>

because u[t] is independent of the noise of both gradients. All blocks move at once, so this is the curvature of a joint
displacement. SHARE is the fraction of it that one block is assumed to meet alone.

`predicted` = F(e) + N(e) estimates what a fork of the training shows when one block is switched. A plan covers all
blocks and stays in force for longer. Its risk differs in three ways (docs/risk.md, "All blocks at once"):

- A change of the updates' length acts like another learning rate: shorter updates pay at once and cost later. The risk
  therefore leaves out the component along u: x' = x - a(x) u, a(x) = <w h D(x), D(u)> / <w h D(u), D(u)>, where
  D(x) = sum_t x[t] is the displacement over the window.
- The error of one step stays in the weights for many. It is multiplied by the mean of the next HORIZON gradients of the
  window; later gradients add only noise: G(x) = sum_t sum_i w[i] mean_{t < s <= t + HORIZON} g[s, i] x'[t, i].
- Blocks that are displaced together meet the whole curvature.

The error e has two parts. b is the error of the same configuration without rounding. The rest, e - b, is due to
rounding and has mean 0, so a gain that it seems to bring is chance. The errors b of different blocks interact
(`couple.py`):

    I = 1/2 * curvature * sum_i w[i] h[i] D(b')[i]^2

The risk of a block's configuration is

    risk = max(G(e - b), 0) + CAUTION sigma(G(e - b)) + N(e' - b') + r I

Apparent gains count as 0, and uncertainty counts as cost. r >= 0 is the rate at which b costs relative to its
interaction, estimated from G(b) of all blocks (`estimate_rates.py`).

A gate adds `GATED` where these formulas do not hold: updates that grow out of all proportion (blow-up), updates that
all but cease (stall), and rounding that significantly changes the length of the weights (radial bias, arXiv
2610.12444). It also keeps momentum from being dropped where a plan without that meets the budget: a window is too short
to show what it costs. A gated configuration is a last resort. It remains available, so that the smallest budget that can be met
does not depend on the samples. A configuration whose updates are not finite is excluded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Fraction of the curvature along a joint displacement of all blocks that one block meets alone.
SHARE = 0.125

#: Standard errors that are added to the estimated cost of rounding.
CAUTION = 0.5

#: Number of next gradients whose mean an error meets. Of 1, 2, 4, 8 and 24, it is the one at which sharing and dropping
#: stand out from the noise with the sign that whole trainings show (docs/horizon.md).
HORIZON = 4

#: Largest ratio of the squared length of a block's updates to that of its updates in full precision.
BLOW_UP = 1e4

#: Largest drift along the weights within a window, relative to their squared length. Only a significant drift counts.
RADIAL_BIAS = 0.05
SIGNIFICANT = 4.0  # standard errors
FEWEST_STEPS = 8  # for a meaningful standard error

#: Largest fraction of the displacement along that of full precision that may be lost.
STALL = 0.95

#: Risk that a gate adds, in nats per window.
GATED = 10.0


@dataclass(frozen=True)
class Reference:
    """Full precision on the samples of one block, over T steps and S sampled elements; all tensors are float64.

    weights: `[S]`, the number of elements that each sample stands for.
    grads: `[T + 1, S]`, the gradient before each step, and one more.
    params: `[T, S]`, the weights before each step.
    updates: `[T, S]`, the update of each step.
    """

    weights: Tensor
    grads: Tensor
    params: Tensor
    updates: Tensor

    @property
    def scale(self) -> Tensor:
        """h `[S]`: the root mean square of the gradients over steps."""
        return self.grads.square().mean(0).sqrt()


@dataclass(frozen=True)
class Risk:
    """The risk of one configuration of one block, in nats per window; the module has the formulas.

    predicted: F(e) + N(e), the expected change of the loss when this block alone is switched.
    error: the standard error of F(e).
    risk: what the solver minimizes, `GATED` included; `couple.py` adds the cost of interactions.
    interaction: I, half the curvature times the squared displacement by b'.
    relative_error: the L2 norm of e relative to that of u, weighted by w.
    excluded: why the configuration cannot be chosen; empty if it can.
    gate: why the configuration is a last resort; empty if it is not.
    """

    predicted: float
    error: float
    risk: float
    interaction: float = 0.0
    relative_error: float = math.nan
    excluded: str = ""
    gate: str = ""


@dataclass(frozen=True)
class Assessment:
    """The assessment of one configuration of one block, before rates are known.

    risk: the risk without the term r I.
    lasting: `[T]`, the terms of G(b) by gradient.
    """

    risk: Risk
    lasting: Tensor


def curvature(references: list[Reference]) -> float:
    """Return the factor of the curvature, over all blocks: the module's third formula.

    If the standard error of the sum on the left exceeds that sum, it takes its place. The factor is 0 with
    fewer than 3 steps, or if the sum on the right is not positive.
    """
    change, moved = [], []
    for r in references:
        if len(r.updates) > 2:
            first = (r.grads[2:] - r.grads[1:-1]) * r.updates[:-1]
            change.append((first * r.weights).sum(1))
            moved.append((r.scale * r.updates[1:] * r.updates[:-1] * r.weights).sum(1))
    if not change:
        return 0.0
    total, length = torch.stack(change).sum(0), float(torch.stack(moved).sum())
    if length <= 0.0:
        return 0.0
    error = float(total.std()) * math.sqrt(len(total))
    return max(float(total.sum()), error) / length


def assess(
    reference: Reference, updates: Tensor, factor: float, unrounded: Tensor | None = None, gate: str = ""
) -> Assessment:
    """Assess the updates of one configuration.

    reference: full precision on the same samples.
    updates: c `[T, S]`.
    factor: the curvature.
    unrounded: `[T, S]`, the updates without rounding, for a configuration that shares or drops state; otherwise None.
    gate: why the configuration is a last resort whatever the samples show; empty if it is not.
    """
    c, u, w, h = updates.double(), reference.updates, reference.weights, reference.scale
    if not all(bool(x.isfinite().all()) for x in (c, unrounded) if x is not None):
        excluded = Risk(math.inf, math.inf, math.inf, relative_error=math.inf, excluded="its updates are not finite")
        return Assessment(excluded, torch.zeros(len(u), dtype=u.dtype))
    bias = torch.zeros_like(u) if unrounded is None else unrounded.double() - u
    e = c - u
    coherent, error = _sum((reference.grads[1:] * e * w).sum(1))
    lasting, lasting_error = _sum(_lasting(reference, e - bias))

    def curved(several: Tensor) -> float:
        return factor / 2 * float((h * several.square() * w).sum())

    size = float((u.square() * w).sum())
    relative = math.sqrt(float((e.square() * w).sum()) / size) if size > 0.0 else 0.0
    gate = gate or _gate(reference, c, e, e - bias)
    risk = Risk(
        predicted=coherent + SHARE * curved(e),
        error=error,
        risk=max(lasting, 0.0)
        + CAUTION * lasting_error
        + SHARE * curved(_beside(reference, e - bias))
        + (GATED if gate else 0.0),
        interaction=curved(_beside(reference, bias).sum(0)),
        relative_error=relative,
        gate=gate,
    )
    return Assessment(risk, _lasting(reference, bias))


def _along(reference: Reference, several: Tensor, others: Tensor) -> float:
    """Return the least-squares factor of `others` in `several`, fitted to their displacements over the window.

    Elements are weighted by w h.
    """
    x, y = several.sum(0), others.sum(0)
    weighted = reference.weights * reference.scale * y
    length = float((weighted * y).sum())
    return float((weighted * x).sum()) / length if length > 0.0 else 0.0


def _beside(reference: Reference, several: Tensor) -> Tensor:
    """Return x' of the module: `several` without its component along the updates of full precision."""
    return several - _along(reference, several, reference.updates) * reference.updates


def _lasting(reference: Reference, several: Tensor) -> Tensor:
    """Return `[T]`, the terms of G by gradient.

    Each gradient meets the HORIZON updates before it, each in its share.
    """
    steps = len(several)
    followed = torch.arange(steps, 0, -1, dtype=several.dtype).clamp(max=HORIZON)
    shares = (_beside(reference, several) / followed[:, None]).cumsum(0)
    shares[HORIZON:] -= shares[:-HORIZON].clone()
    return (reference.grads[1:] * shares * reference.weights).sum(1)


def _sum(by_step: Tensor) -> tuple[float, float]:
    """Return a sum over steps, and its standard error from the spread of its terms."""
    total = float(by_step.sum())
    return total, float(by_step.std()) * math.sqrt(len(by_step)) if len(by_step) > 1 else abs(total)


def _gate(reference: Reference, updates: Tensor, e: Tensor, rounding: Tensor) -> str:
    """Return why the configuration is a last resort, or an empty string."""
    w, u = reference.weights, reference.updates
    length, full = (updates.square() * w).sum(), (u.square() * w).sum()
    if float(length) > BLOW_UP * max(float(full), 1e-300):
        return "its updates blow up"
    if -_along(reference, e, u) > STALL:
        return "its updates stall"
    norm = float((reference.params[0].square() * w).sum())
    total, error = _sum((reference.params * rounding * w).sum(1))
    if len(e) < FEWEST_STEPS:
        error = math.inf
    if norm > 0.0 and abs(total) / norm > RADIAL_BIAS and abs(total) > SIGNIFICANT * error:
        return f"its rounding changes the length of the weights by {total / norm:+.1%} per window"
    return ""
