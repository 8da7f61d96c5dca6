"""Risk: what a configuration is expected to do to the loss, in nats per window, from shadow runs on sampled gradients.

With u[t, i] the update of full precision, c[t, i] that of the configuration, g[t, i] the gradient before step t, and
w[i] the number of elements that sample i stands for, the error of an update is e = gain * c - u, and

    coherent     F = sum_t sum_i w[i] g[t+1, i] e[t, i]
    noise        N(e) = SHARE / 2 * curvature * sum_t sum_i w[i] h[i] e[t, i]^2,   h[i] = RMS_t g[t, i]
    interaction  I = 1 / 2 * curvature * sum_i w[i] h[i] (sum_t b[t, i])^2

F is the first-order change of the *next* batch's loss, which owes nothing to e; its standard error comes from the spread
over steps. N prices errors that have no direction, by a diagonal curvature proportional to the root mean square of
the gradient. The factor is read from the stream itself: two steps on, the gradient has changed along the update by

    sum_t <g[t+2] - g[t+1], u[t]> = curvature * sum_t <h * u[t+1], u[t]>

(u[t] owes nothing to the noise of either gradient). All blocks move at once, so this is the curvature of a joint
displacement; SHARE is what of it is taken to be the block's own.

`predicted` = F + N(e) is what one block alone would do, and what forks of training confirm. It is often negative: what
shares or drops state descends faster at first. Over blocks such gains do not add up, and over a training they do not last,
while losses do. So e is parted into b, what the same configuration errs without rounding, and the rest, e - b, which is
0 on average. Rounding of different blocks and steps is independent, so it is priced as noise; b drives all blocks
the same way step after step, so that the blocks' displacements meet the whole curvature. The solver minimizes

    risk = max(F, 0) + standard error of F + N(e - b) + I

Gates price at `GATED` what these formulas can't: updates that grow out of all proportion (blow-up), and a significant drift
along the weights (radial bias, arXiv 2610.12444). So such a configuration is a last resort, but the smallest budget that
can be met does not depend on samples. Updates that are not finite exclude a configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of the curvature along a joint displacement of all blocks, that of one block alone.
SHARE = 0.125

#: A group's updates may have so many times the squared length of those in full precision.
BLOW_UP = 1e4

#: Drift along the weights within a window, relative to them, if it is significant.
RADIAL_BIAS = 0.05
SIGNIFICANT = 4.0  # standard errors
FEWEST_STEPS = 8  # for a standard error to mean much

#: Nats per window.
GATED = 10.0

#: Below this, gains would make a block stop learning rather than learn without noise.
SMALLEST_GAIN = 0.25


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
    gain: float
    relative_error: float
    excluded: str = ""
    gate: str = ""


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


def assess(reference: Reference, updates: Tensor, factor: float, unrounded: Tensor | None = None) -> Risk:
    """`updates` `[T, S]`: c. `factor`: the curvature. `unrounded` `[T, S]`: the updates without rounding, of a configuration
    that shares or drops state. Such a one may get a gain: the least-squares factor of the displacements over the window,
    weighted by w h, in 0.25 ... 1."""
    c, u, w, h = updates.double(), reference.updates, reference.weights, reference.scale
    if not bool(c.isfinite().all()):
        return Risk(math.inf, math.inf, math.inf, 1.0, math.inf, "its updates are not finite")
    gain, bias = 1.0, torch.zeros_like(u)
    if unrounded is not None:
        moved, would = u.sum(0), c.sum(0)
        length = float((w * h * would * would).sum())
        if length > 0.0:
            gain = min(max(float((w * h * moved * would).sum()) / length, SMALLEST_GAIN), 1.0)
        bias = gain * unrounded.double() - u
    e = gain * c - u
    by_step = (reference.grads[1:] * e * w).sum(1)
    coherent = float(by_step.sum())
    error = float(by_step.std()) * math.sqrt(len(by_step)) if len(by_step) > 1 else abs(coherent)

    def curved(several: Tensor) -> float:
        return factor / 2 * float((h * several.square() * w).sum())

    size = float((u.square() * w).sum())
    relative = math.sqrt(float((e.square() * w).sum()) / size) if size > 0.0 else 0.0
    gate = _gate(reference, gain * c, e)
    risk = max(coherent, 0.0) + error + SHARE * curved(e - bias) + curved(bias.sum(0)) + (GATED if gate else 0.0)
    return Risk(coherent + SHARE * curved(e), error, risk, gain, relative, gate=gate)


def _gate(reference: Reference, updates: Tensor, e: Tensor) -> str:
    w, u = reference.weights, reference.updates
    length, full = (updates.square() * w).sum(), (u.square() * w).sum()
    if float(length) > BLOW_UP * max(float(full), 1e-300):
        return "its updates blow up"
    drift = (reference.params * e * w).sum(1)
    norm = float((reference.params[0].square() * w).sum())
    total, error = float(drift.sum()), math.inf
    if len(drift) >= FEWEST_STEPS:
        error = float(drift.std()) * math.sqrt(len(drift))
    if norm > 0.0 and abs(total) / norm > RADIAL_BIAS and abs(total) > SIGNIFICANT * error:
        return f"its updates change the length of the weights by {total / norm:+.1%} per window"
    return ""
