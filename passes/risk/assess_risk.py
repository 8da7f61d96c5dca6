"""Risk: what a configuration is expected to do to the loss, in nats per window, from shadow runs on sampled gradients.

With u[t, i] the update of full precision, c[t, i] that of the configuration, g[t, i] the gradient before step t, and
w[i] the number of elements that sample i stands for, the error of an update is e = update_scale * c - u, and

    coherent   F(e) = sum_t sum_i w[i] g[t+1, i] e[t, i]
    noise      N(e) = SHARE / 2 * curvature * sum_t sum_i w[i] h[i] e[t, i]^2,   h[i] = RMS_t g[t, i]

F is the first-order change of the *next* batch's loss, which owes nothing to e; its standard error comes from the spread
over steps. N prices errors that have no direction, by a diagonal curvature proportional to the root mean square of
the gradient. The factor is read from the stream itself: two steps on, the gradient has changed along the update by

    sum_t <g[t+2] - g[t+1], u[t]> = curvature * sum_t <h * u[t+1], u[t]>

(u[t] owes nothing to the noise of either gradient). All blocks move at once, so this is the curvature of a joint
displacement; SHARE is what of it is taken to be the block's own.

`predicted` = F(e) + N(e) is what a fork of the training shows when one block is switched. A plan is for longer, and for all
blocks, and there three things differ (docs/risk.md, "All blocks at once"):

- A change of the updates' length acts like another learning rate: shorter steps pay at once and cost later. So what lies
  along u is taken out: x' = x - a(x) u, a(x) = <w h D(x), D(u)> / <w h D(u), D(u)>, with D(x) = sum_t x[t].
- What is done at step t is there for longer than one step. So it meets the mean of the next HORIZON gradients of the window,
  beyond which there is only noise: G(x) = sum_t sum_i w[i] mean_{t < s <= t + HORIZON} g[s, i] x'[t, i].
- Blocks that are displaced together meet the whole curvature.

e is parted into b, what the same configuration errs without rounding, and the rest, whose mean is 0: what it seems
to gain is chance. What blocks make of each other's b goes by their interactions (`couple.py`):

    I = 1/2 * curvature * sum_i w[i] h[i] D(b')[i]^2

Rounding is judged block by block, what it seems to gain does not count, and doubt does:

    risk = max(G(e - b), 0) + CAUTION sigma(G(e - b)) + N(e' - b') + r I

r is the rate at which b gains or costs by its interaction, from all blocks' G(b) (`estimate_rates.py`).

Gates price at `GATED` what these formulas can't: updates that grow out of all proportion (blow-up) or all but cease
(stall), and a significant drift of the weights' length by rounding (radial bias, arXiv 2610.12444). So such a
configuration is a last resort, but the smallest budget that can be met does not depend on samples. Updates that are not
finite exclude a configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of the curvature along a joint displacement of all blocks, that of one block alone.
SHARE = 0.125

#: Standard errors that are added to an estimate of what rounding does.
CAUTION = 0.5

#: Steps that an error is followed for: of 1, 2, 4, 8 and 24 the one at which sharing and dropping stand out from the noise in
#: the direction that whole trainings have (docs/horizon.md).
HORIZON = 4

#: A group's updates may have so many times the squared length of those in full precision.
BLOW_UP = 1e4

#: Drift along the weights within a window, relative to them, if it is significant.
RADIAL_BIAS = 0.05
SIGNIFICANT = 4.0  # standard errors
FEWEST_STEPS = 8  # for a standard error to mean much

#: What the updates' length along those of full precision may lose.
STALL = 0.95

#: Nats per window.
GATED = 10.0

#: Below this, update scales would make a block stop learning rather than learn without noise.
SMALLEST_UPDATE_SCALE = 0.25


@dataclass(frozen=True)
class Reference:
    """What full precision does on the samples of one block. `weights` `[S]`, `grads` `[T + 1, S]`, `params` and `updates`
    `[T, S]`, float64."""

    weights: Tensor
    grads: Tensor
    params: Tensor
    updates: Tensor

    @property
    def scale(self) -> Tensor:
        """h `[S]`: root mean square gradients."""
        return self.grads.square().mean(0).sqrt()


@dataclass(frozen=True)
class Risk:
    """In nats per window; see the module. `excluded`: why it can't be chosen. `gate`: why it should not; empty if it may."""

    predicted: float
    error: float
    risk: float
    interaction: float = 0.0
    update_scale: float = 1.0
    relative_error: float = math.nan
    excluded: str = ""
    gate: str = ""


@dataclass(frozen=True)
class Assessment:
    """`risk` lacks r I; `lasting` `[T]`: G(b), by gradient."""

    risk: Risk
    lasting: Tensor


def curvature(references: list[Reference]) -> float:
    """The factor of the module's third formula, over all blocks; its standard error if that is larger."""
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


def assess(reference: Reference, updates: Tensor, factor: float, unrounded: Tensor | None = None) -> Assessment:
    """`updates` `[T, S]`: c. `factor`: the curvature. `unrounded` `[T, S]`: the updates without rounding, of a configuration
    that shares or drops state. Such a one may get an update scale: the least-squares factor of the displacements over the window,
    weighted by w h, in 0.25 ... 1."""
    c, u, w, h = updates.double(), reference.updates, reference.weights, reference.scale
    if not all(bool(x.isfinite().all()) for x in (c, unrounded) if x is not None):
        excluded = Risk(math.inf, math.inf, math.inf, relative_error=math.inf, excluded="its updates are not finite")
        return Assessment(excluded, torch.zeros(len(u), dtype=u.dtype))
    update_scale, bias = 1.0, torch.zeros_like(u)
    if unrounded is not None:
        update_scale = min(max(_along(reference, u, c), SMALLEST_UPDATE_SCALE), 1.0)
        bias = update_scale * unrounded.double() - u
    e = update_scale * c - u
    coherent, error = _sum((reference.grads[1:] * e * w).sum(1))
    lasting, lasting_error = _sum(_lasting(reference, e - bias))

    def curved(several: Tensor) -> float:
        return factor / 2 * float((h * several.square() * w).sum())

    size = float((u.square() * w).sum())
    relative = math.sqrt(float((e.square() * w).sum()) / size) if size > 0.0 else 0.0
    gate = _gate(reference, update_scale * c, e, e - bias)
    risk = Risk(
        predicted=coherent + SHARE * curved(e),
        error=error,
        risk=max(lasting, 0.0)
        + CAUTION * lasting_error
        + SHARE * curved(_beside(reference, e - bias))
        + (GATED if gate else 0.0),
        interaction=curved(_beside(reference, bias).sum(0)),
        update_scale=update_scale,
        relative_error=relative,
        gate=gate,
    )
    return Assessment(risk, _lasting(reference, bias))


def _along(reference: Reference, several: Tensor, others: Tensor) -> float:
    """The least-squares factor of `others` in `several`: of their displacements over the window, weighted by w h."""
    x, y = several.sum(0), others.sum(0)
    weighted = reference.weights * reference.scale * y
    length = float((weighted * y).sum())
    return float((weighted * x).sum()) / length if length > 0.0 else 0.0


def _beside(reference: Reference, several: Tensor) -> Tensor:
    """x' of the module."""
    return several - _along(reference, several, reference.updates) * reference.updates


def _lasting(reference: Reference, several: Tensor) -> Tensor:
    """`[T]`: G by gradient, for each of which HORIZON updates before it have their parts; see the module."""
    steps = len(several)
    followed = torch.arange(steps, 0, -1, dtype=several.dtype).clamp(max=HORIZON)
    shares = (_beside(reference, several) / followed[:, None]).cumsum(0)
    shares[HORIZON:] -= shares[:-HORIZON].clone()
    return (reference.grads[1:] * shares * reference.weights).sum(1)


def _sum(by_step: Tensor) -> tuple[float, float]:
    """A sum over steps, and its standard error from their spread."""
    total = float(by_step.sum())
    return total, float(by_step.std()) * math.sqrt(len(by_step)) if len(by_step) > 1 else abs(total)


def _gate(reference: Reference, updates: Tensor, e: Tensor, rounding: Tensor) -> str:
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
