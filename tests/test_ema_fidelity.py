"""Codecs carry exponential moving averages without drift, and with no more error than their levels explain.

One run of the benchmark's 2,000 steps, shared by the tests; its seed is fixed, so its figures are too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from scipy.stats import norm, t
from torch import Tensor

from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.codecs.codebook import Codebook
from baoc_compile.kernels.codecs.minifloat import Minifloat
from baoc_compile.passes.migrate.refresh_codebooks import CodebookRefresh, refresh_codebook
from baoc_compile.state.state_tensor import StateTensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import ema_fidelity as bench

SIGNED = ("bf16", "e2m5", "codebook8", "codebook4", "e2m1")
NONNEGATIVE = ("bf16", "e3m5", "ucodebook8", "ucodebook4", "e3m1")
CASES = [(True, name) for name in SIGNED] + [(False, name) for name in NONNEGATIVE]
LEARNED_8 = [case for case in CASES if "codebook8" in case[1]]  # learning 255 levels takes its time
QUICK = tuple([*bench.runs(2000, (0.9,), ("zero gradients",)), *bench.runs(2000, (0.999,))])
SLOW = tuple(bench.runs(2000, (0.9999,)))
ELEMENTS = 1024  # of every state


def cases() -> Iterator[Any]:
    """Every codec in every run, but for one: an average that 655 roundings of 4 bits have carried is that of a few groups."""
    for runs in (QUICK, SLOW):
        for run, (signed, name) in product(runs, CASES):
            if name == "e2m1" and run.stream == "zero gradients" and run.beta == 0.9:
                continue
            marks = [pytest.mark.slow] if runs is SLOW or (signed, name) in LEARNED_8 else []
            yield pytest.param(signed, name, run, marks=marks, id=f"{name}-{run.stream}-{run.beta}")


every_case = pytest.mark.parametrize("signed, name, run", list(cases()))


class Limits(NamedTuple):
    """Of one codec and run, relative to the mean magnitude of the exact average."""

    error: float  # what the levels' spacing explains of the mean error at the end
    above: float  # what reading small positive values as the lowest level may add on average


class Explained:
    """The variance that a codec's roundings can have added to every element, followed along a course.

    A value at distance d from a level is rounded with variance at most d * gap, and gap^2 / 4. A stored value moves away
    from its level by the change of its average; and relative to it, levels move with the group's scale: by the largest
    change in the group, and, as the scale is rounded stochastically, on average by at most twice that again. What was
    added before decays with the average.
    """

    def __init__(self, course: bench.Course, name: str):
        self.course, self.codec, self.exact = course, CODECS[name], course.exact
        self.storage = course.storages[f"`{name}`"]
        filled = self.exact.abs().amax((1, 2), keepdim=True) > 0
        self.variance = torch.where(filled, self._gap(self.exact.abs()) ** 2 / 4, 0.0)
        self.lowest = torch.zeros(len(course.runs), 1, 1, dtype=torch.float64)

    def _roots(self) -> Tensor | None:
        """The levels of every run, if they are learned."""
        if not isinstance(self.codec, Codebook):
            return None
        return self.storage.parts["levels"].double() / self.codec.grid

    def _gap(self, magnitude: Tensor) -> Tensor:
        """The widest gap of a group's levels; without groups, at the value."""
        if self.codec.group_size is None:
            return magnitude * self.codec.relative_error
        levels, widest = self._roots(), torch.tensor(self.codec.relative_error)
        if levels is not None:
            gaps = (levels if self.codec.signed else levels**2).diff(dim=-1)
            widest = gaps.amax(-1).view(-1, 1, 1) + (2**-8 if self.codec.signed else 2**-6)
        return magnitude.amax(-1, keepdim=True) * widest

    def _lowest(self) -> Tensor | float:
        """What positive values read at least as, relative to the group's largest."""
        if isinstance(self.codec, Minifloat):
            bits = 2 - 2**self.codec.exponent_bits - self.codec.mantissa_bits
            return 0.0 if self.codec.signed else 2.0 ** (bits + 1)  # the largest may have been rounded up
        if not isinstance(self.codec, Codebook) or self.codec.signed:
            return 0.0
        levels = self._roots()
        if levels is None:
            return float(self.codec.default_levels[0] ** 2)
        return levels[:, 1 if self.codec.bits == 8 else 0].view(-1, 1, 1) ** 2

    def advance(self) -> None:
        old, self.exact, beta = self.exact, self.course.exact, self.course.beta
        noise = self.variance.sqrt()
        magnitude = torch.maximum(old.abs(), self.exact.abs()) + noise
        change = (self.exact - old).abs() + (1 - beta) * noise
        if self.codec.group_size is not None:
            largest = magnitude.amax(-1, keepdim=True).clamp(min=1e-300)
            change = change + 3 * change.amax(-1, keepdim=True) * magnitude / largest
        gap = self._gap(magnitude)
        self.variance = beta**2 * self.variance + torch.minimum(change * gap, gap**2 / 4)
        self.lowest = torch.maximum(beta * self.lowest, self._lowest() * self.exact.abs().amax(-1, keepdim=True))

    def limits(self, run: int) -> Limits:
        counted = (
            ~self.course.stays if self.course.runs[run].stream == "one stays" else torch.ones(self.course.width) > 0
        )
        exact = self.exact[run].abs()
        size = exact[:, counted].mean()
        lowest = self.lowest[run].expand_as(exact)[:, counted].mean() / size
        error = self.variance[run][:, counted].sqrt().mean() / size
        return Limits(float(error + lowest), float(lowest))


class Carried(NamedTuple):
    results: bench.Results
    limits: dict[tuple[bool, str, bench.Run], Limits]


@cache
def carried(runs: tuple[bench.Run, ...], learned_8: bool) -> Carried:
    """The 8-bit learned codebooks by themselves, as they are left out of the quick tests."""
    chosen_cases = [case for case in CASES if (case in LEARNED_8) == learned_8]
    names = {(signed, f"`{name}`") for signed, name in chosen_cases} | {(False, "FlashOptim 8-bit *")}
    chosen = [form for form in bench.formats() if (form.signed, form.name) in names]
    explained: dict[tuple[bool, str], Explained] = {}
    limits = {}
    for step, courses in bench.courses(chosen, list(runs), elements=ELEMENTS):
        for course in courses:
            for signed, name in chosen_cases:
                if signed != course.signed or f"`{name}`" not in course.storages:
                    continue
                if step == 0:
                    explained[signed, name] = Explained(course, name)
                    continue
                explained[signed, name].advance()
                for index, run in enumerate(runs):
                    if run.steps == step:
                        limits[signed, name, run] = explained[signed, name].limits(index)
    return Carried({key: result for course in courses for key, result in course.results().items()}, limits)


def of(signed: bool, name: str, run: bench.Run) -> tuple[bench.Result, Limits]:
    found = carried(SLOW if run in SLOW else QUICK, (signed, name) in LEARNED_8)
    return found.results[signed, f"`{name}`", run], found.limits[signed, name, run]


@every_case
def test_no_drift(signed, name, run):
    """But for what the docstrings say of the lowest level; at the odds of 3 standard errors."""
    groups = min(bench.GROUPS, ELEMENTS // (CODECS[name].group_size or 32))
    result, limits = of(signed, name, run)
    chance = float(t.isf(norm.sf(3), groups - 1)) * result.drift_error
    assert -chance <= result.drift <= chance + limits.above


@every_case
def test_error_is_what_the_levels_explain(signed, name, run):
    result, limits = of(signed, name, run)
    assert result.end <= limits.error


@pytest.mark.parametrize("run", [r for r in QUICK if r.stream == "zero gradients"], ids=lambda run: str(run.beta))
def test_flashoptims_format_drifts_where_ours_do_not(run):
    result = carried(QUICK, False).results[False, "FlashOptim 8-bit *", run]
    assert abs(result.drift) > 10 * result.drift_error


@pytest.mark.parametrize("stream, beta", [("zero gradients", 0.9), ("one stays", 0.999)])
def test_flashoptims_second_moment_stalls_at_several_times_the_true_value(stream, beta):
    run = next(run for run in QUICK if (run.stream, run.beta) == (stream, beta))
    result = carried(QUICK, False).results[False, "FlashOptim 8-bit *", run]
    assert result.drift > 2
    assert result.end > carried(QUICK, False).limits[False, "e3m5", run].error


def test_the_benchmark_stores_as_state_tensors_do():
    """Packed codes, tables, words and clocks: the same bits, for several runs at once."""
    for name in ("codebook4", "e2m5", "bf16"):
        start = torch.randn(3, 4, CODECS[name].group_size or 32, generator=torch.Generator().manual_seed(0))
        storage = bench.CodecStorage(CODECS[name], start)
        alone = [StateTensor.encoded(value, CODECS[name], str(run), 0) for run, value in enumerate(start)]
        for _ in range(3):
            storage.store(0.9 * storage.decode())
            for state in alone:
                state.store(0.9 * state.decode())
        assert torch.equal(storage.decode(), torch.stack([state.decode() for state in alone]))


# what these tests found


@pytest.mark.parametrize("name", ["e2m5", "e3m5", "e2m1", "e3m1"])
def test_values_that_rise_together_rise_as_they_should(name):
    beta = 0.9999
    increment = torch.rand(256, CODECS[name].group_size, generator=torch.Generator().manual_seed(0)) + 1
    state = StateTensor.empty(increment.shape, increment.dtype, increment.device, CODECS[name], "slot", 0)
    for _ in range(200):
        state.store(beta * state.decode() + (1 - beta) * increment)
    exact = increment.double() * (1 - beta**200)
    drift = (state.decode().double() - exact).sum(1) / exact.sum(1).mean()
    assert abs(drift.mean()) <= 3 * drift.std() / len(drift) ** 0.5


def test_learned_levels_follow_values_down():
    start = torch.rand(4096, generator=torch.Generator().manual_seed(0)) + 1
    keep = torch.arange(4096) % 64 == 0
    state = StateTensor.encoded(start, CODECS["ucodebook4"], "slot", 0)
    for clock in range(1, 2000):
        if clock & (clock - 1) == 0:
            refresh_codebook(state)
        state.store(torch.where(keep, start, 0.999 * state.decode()))
    exact = 0.999**1999 * start[~keep].mean()
    assert state.decode()[~keep].mean() == pytest.approx(float(exact), rel=0.2)


@pytest.mark.parametrize("name", ["codebook8", "ucodebook8", "codebook4", "ucodebook4"])
def test_codebooks_are_looked_at_again_after_one_was_learned(name):
    value = torch.randn(4096, generator=torch.Generator().manual_seed(0)) ** 2
    state = StateTensor.empty(value.shape, value.dtype, value.device, CODECS[name], "slot", 0)
    refresh = CodebookRefresh([state])
    for _ in range(64):
        refresh.tick()
        state.store(0.9 * state.decode() + 0.1 * value)
    assert state.parts["checked_at"] >= 32
