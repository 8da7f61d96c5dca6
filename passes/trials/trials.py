"""Trials: what the user's own step, run on copies of a few parameters, says of its state and of a plan for it.

`signs` finds slots that are never negative where no rule proves it. It is induction, sampled: from a warm
state, candidates are filled with values >= 0 of many magnitudes and all other state with values of both signs, under random
gradients. Candidates that the step makes negative are dropped, until a round passes in which none is.

`why_exact` trains the copies a few steps in full precision, and with their state stored. Where updates differ by more than
the codecs' own errors, or are no numbers, it names the slots, one by one, that must stay exact.

Neither needs a rule or a graph. The copies are those of real parameters, the smallest of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec
from baoc_compile.core.errors import UnsupportedStep
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.capture.surroundings import undisturbed
from baoc_compile.passes.trials.copies import copied
from baoc_compile.state.state_tensor import StateTensor

#: Steps before the state counts as warm, and steps of a trial.
WARM_STEPS, TRIAL_STEPS = 3, 16
#: Rounds that a sign has to pass.
ROUNDS = 6
#: Magnitudes of filled values: powers of 10.
LOWEST, HIGHEST = -12.0, 2.0
#: Error of an update, relative to its length, up to which codecs of 8 and of 4 bits are trusted: twice what the worst of
#: torch.optim's had in these trials (0.039 and 0.185; Rprop with 4 bits, 0.51, is not trusted).
TRUSTED, TRUSTED_4_BITS = 0.08, 0.37


class TrialFailed(Exception):
    """The step can't be run on copies."""


@dataclass
class _Bench:
    """Copies of some parameters under an optimizer of their own, and a stream of gradients.

    table: the copies.
    chosen: the parameters that are copies; all others have no gradient.
    """

    table: ParameterTable
    chosen: tuple[int, ...]
    function: Callable[..., Any]
    has_closure: bool
    generator: torch.Generator
    means: dict[int, Tensor]

    def step(self, scale: float = 1.0) -> None:
        """Draw gradients and step. Raises TrialFailed."""
        for i in self.chosen:
            parameter = self.table.parameters[i]
            noise = torch.randn(parameter.shape, generator=self.generator)
            parameter.grad = (scale * (self.means[i] + noise)).to(parameter.device, parameter.dtype)
        self.run()

    @torch.no_grad()
    def run(self) -> None:
        arguments = [lambda: torch.zeros(())] if self.has_closure else []
        try:
            with undisturbed(self.function, self.table.optimizer):
                self.function(self.table.optimizer, *arguments)
        except UnsupportedStep:
            pass  # it has changed something else, which is put back
        except Exception as error:
            raise TrialFailed(repr(error)) from error

    def is_finite(self) -> bool:
        """Return whether all parameters and state are numbers."""
        values = [self.table.parameters[i] for i in self.chosen] + [value for *_, value in self.state()]
        return all(bool(v.isfinite().all()) for v in values)

    def state(self) -> Iterator[tuple[int, Any, Tensor]]:
        """Return the float state of parameters' shapes."""
        for i in self.chosen:
            shape = self.table.parameters[i].shape
            for key, value in self.table.state(i).items():
                if isinstance(value, Tensor) and value.shape == shape and value.is_floating_point():
                    yield i, key, value


@dataclass
class Trials:
    """The benches of one optimizer.

    table: its parameters.
    function: its step as the user wrote it.
    has_closure: whether the step is called with a closure.
    """

    table: ParameterTable
    function: Callable[..., Any]
    has_closure: bool = False

    def _bench(self, chosen: tuple[int, ...], seed: int = 0) -> _Bench:
        generator = torch.Generator().manual_seed(seed)
        try:
            copies = copied(self.table, list(chosen), decoded=True)
        except Exception as error:
            raise TrialFailed(repr(error)) from error
        for group in copies.optimizer.param_groups:  # a step may not expect parameters without a gradient
            group["params"] = [p for p in group["params"] if any(p is copies.parameters[i] for i in chosen)]
        means = {i: torch.randn(copies.parameters[i].shape, generator=generator) for i in chosen}
        return _Bench(copies, chosen, self.function, self.has_closure, generator, means)

    def signs(self, index: int) -> tuple[set[Any], bool]:
        """Return the keys of a parameter's state that stays >= 0, and whether no state of these signs gives NaN.

        Raises TrialFailed.
        """
        bench = self._bench((index,))
        for _ in range(WARM_STEPS):
            bench.step()
        candidates = {key for _, key, value in bench.state() if bool(value.any()) and bool((value >= 0).all())}
        passed, written, is_finite = 0, set(), True
        while candidates and passed < ROUNDS:
            filled = self._fill(bench, candidates)
            bench.step(10.0 ** float(torch.empty(()).uniform_(-4, 1, generator=bench.generator)))
            stepped = {key: value for _, key, value in bench.state() if key in candidates}
            negative = {key for key, value in stepped.items() if bool((value < 0).any())}
            written |= {key for key, value in stepped.items() if not torch.equal(value, filled[key])}
            candidates -= negative
            passed, is_finite = (0, True) if negative else (passed + 1, is_finite and bench.is_finite())
        return candidates & written, is_finite  # of what these steps do not write, nothing is known

    @staticmethod
    @torch.no_grad()
    def _fill(bench: _Bench, candidates: set[Any]) -> dict[Any, Tensor]:
        values = {}
        for _, key, value in bench.state():
            powers = torch.empty(value.shape).uniform_(LOWEST, HIGHEST, generator=bench.generator)
            filled = 10.0**powers
            if key not in candidates:
                filled = filled * (torch.randint(0, 2, value.shape, generator=bench.generator) * 2 - 1)
            values[key] = value.copy_(filled).clone()
        return values

    def why_exact(self, index: int, codecs: Mapping[str, Codec], seed: int) -> dict[str, str]:
        """Return the keys of a parameter's slots that must not be stored by these codecs, and why. Raises TrialFailed."""
        codecs = dict(codecs)
        reference = self._trained(index, {}, seed)
        if reference is None:
            return {}

        def error(of: Mapping[str, Codec]) -> float:
            update = self._trained(index, of, seed)
            return float("inf") if update is None else float((update - reference).norm() / reference.norm())

        reasons: dict[str, str] = {}
        while codecs:
            total = error(codecs)
            if total <= max(map(_trusted, codecs.values())):
                break
            alone = {key: error({key: codec}) for key, codec in codecs.items()}
            worst = max(alone, key=lambda key: alone[key])
            what = f"updates are {min(total, 9.99):.0%} off" if total < float("inf") else "the step gives no numbers"
            reasons[worst] = f"{what} in a trial with it as {codecs.pop(worst).name}"
        return reasons

    @torch.no_grad()
    def _trained(self, index: int, codecs: Mapping[str, Codec], seed: int) -> Tensor | None:
        """Return the update of some steps with slots stored after each of them; None if it is no numbers, or nothing."""
        bench = self._bench((index,))
        parameter = bench.table.parameters[index]
        start = parameter.detach().clone()
        kept: dict[Any, StateTensor] = {}
        for _ in range(TRIAL_STEPS):
            bench.step()
            for _, key, value in bench.state():
                if key in codecs:
                    if key not in kept:
                        kept[key] = StateTensor.encoded(value, codecs[key], key, seed)
                    else:
                        kept[key].store(value)
                    value.copy_(kept[key].decode())
        update = (parameter.detach() - start).double()
        return update if bool(update.isfinite().all()) and bool(update.any()) else None


def _trusted(codec: Codec) -> float:
    return TRUSTED_4_BITS if any(part.bits < 8 for part in codec.parts) else TRUSTED
