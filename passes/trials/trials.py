"""Trials: what steps on a bench say of an optimizer's state, and of a plan for it.

`signs` finds slots that are never negative where no rule proves it. It is induction, sampled: from a warm state, candidates
are filled with values >= 0 of many magnitudes and all other state with values of both signs, under random gradients.
Candidates that the step makes negative are dropped, until some rounds pass in which none is.

`why_exact` trains a few steps in full precision, and with the state stored after each of them. Where updates differ by more
than the codecs' own errors, or are no numbers, it names the slots, one by one, that must stay exact. An error that grows from
step to step is judged by what it comes to after twice as many: e(2 T) = e(T) + 2 (e(T) - e(T / 2)), if that is more than e(T).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec
from baoc_compile.passes.trials.bench import Bench
from baoc_compile.state.state_tensor import StateTensor

#: Steps before the state counts as warm, and steps of a training.
WARM_STEPS, TRIAL_STEPS = 3, 16
#: Rounds that a sign has to pass.
ROUNDS = 6
#: Magnitudes of filled values: powers of 10.
LOWEST, HIGHEST = -12.0, 2.0
#: Error of an update, relative to its length, up to which codecs of 8 and of 4 bits are trusted: twice what the worst of
#: torch.optim's had in these trials (0.0397 and 0.316; Rprop with 4 bits, 1.01, is not trusted; benchmarks/trial_errors.py).
TRUSTED, TRUSTED_4_BITS = 0.079, 0.63

Make = Callable[[], Bench]


def signs(make: Make) -> tuple[set[Any], bool]:
    """Return the keys of state that stays >= 0, and whether no state of these signs gives NaN.

    make: returns a new bench.

    Raises TrialFailed.
    """
    bench = make()
    for _ in range(WARM_STEPS):
        bench.step()
    candidates = {key for key, value in bench.state.items() if bool(value.any()) and bool((value >= 0).all())}
    passed, written, is_finite = 0, set(), True
    while passed < ROUNDS:
        filled = _fill(bench, candidates)
        bench.step_anywhere()
        stepped = {key: value for key, value in bench.state.items() if key in candidates}
        negative = {key for key, value in stepped.items() if bool((value < 0).any())}
        written |= {key for key, value in stepped.items() if not torch.equal(value, filled[key])}
        candidates -= negative
        passed, is_finite = (0, True) if negative else (passed + 1, is_finite and bench.is_finite())
    return candidates & written, is_finite  # of what these steps do not write, nothing is known


@torch.no_grad()
def _fill(bench: Bench, candidates: set[Any]) -> dict[Any, Tensor]:
    """Fill the state with random values, and return copies of them."""
    values = {}
    for key, value in bench.state.items():
        filled = 10.0 ** torch.empty(value.shape).uniform_(LOWEST, HIGHEST, generator=bench.generator)
        if key not in candidates:
            filled = filled * (torch.randint(0, 2, value.shape, generator=bench.generator) * 2 - 1)
        values[key] = value.copy_(filled).clone()
    return values


def why_exact(make: Make, codecs: Mapping[str, Codec], seed: int) -> tuple[dict[str, str], float]:
    """Return the keys of slots that must not be stored by these codecs, and why; and the error of updates with all of them.

    make: returns a new bench, always with the same gradients.
    seed: the seed of stochastic rounding.

    Raises TrialFailed.
    """
    reference = _trained(make(), {}, seed)
    if reference is None:
        return {}, 0.0

    def error(of: Mapping[str, Codec]) -> float:
        updates = _trained(make(), of, seed)
        if updates is None:
            return float("inf")
        half, whole = (
            float((u - r).norm() / r.norm()) if r.any() else 0.0 for u, r in zip(updates, reference, strict=True)
        )
        return whole + 2 * max(whole - half, 0.0)

    left, reasons = dict(codecs), {}
    of_all = total = error(left)
    while left:
        if total <= max(map(_trusted, left.values())):
            break
        alone = {key: error({key: codec}) for key, codec in left.items()}
        worst = max(alone, key=lambda key: alone[key])
        what = f"updates are {min(total, 9.99):.0%} off" if total < float("inf") else "the step gives no numbers"
        reasons[worst] = f"{what} in a trial with it as {left.pop(worst).name}"
        total = error(left)
    return reasons, of_all


@torch.no_grad()
def _trained(bench: Bench, codecs: Mapping[str, Codec], seed: int) -> tuple[Tensor, Tensor] | None:
    """Return the updates of half of the steps and of all, with slots stored after each.

    None if they are no numbers, or nothing.
    """
    start = bench.parameter.detach().clone()
    kept: dict[Any, StateTensor] = {}
    for step in range(TRIAL_STEPS):
        if step == TRIAL_STEPS // 2:
            half = (bench.parameter.detach() - start).double()
        bench.step()
        for key, value in bench.state.items():
            if key in codecs:
                if key not in kept:
                    kept[key] = StateTensor.encoded(value, codecs[key], key, seed, bench.parameter)
                else:
                    kept[key].anchored(bench.parameter).store(value)
                value.copy_(kept[key].decode())
    update = (bench.parameter.detach() - start).double()
    return (half, update) if bool(update.isfinite().all()) and bool(update.any()) else None


def _trusted(codec: Codec) -> float:
    return TRUSTED_4_BITS if any(part.bits < 8 for part in codec.parts) else TRUSTED
