"""Learned codebooks: levels fit the values, the values' density is read back from codes, refreshes come when they pay."""

from __future__ import annotations

from itertools import pairwise

import codec_reference as reference
import numpy as np
import pytest
import torch
from torch import Tensor

import baoc_compile
from baoc_compile.kernels.codecs.bits import unpacked
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.codecs.codebook import Codebook
from baoc_compile.kernels.codecs.learn_codebook import (
    best_levels,
    density,
    expected_error,
    grid_points,
    learn_from_values,
    least_error,
)
from baoc_compile.passes.migrate import refresh_codebooks
from baoc_compile.passes.migrate.refresh_codebooks import CodebookRefresh, refresh_codebook, steps_until_due
from baoc_compile.state.state_tensor import StateTensor

LEARNED = [name for name, codec in CODECS.items() if isinstance(codec, Codebook)]
SIGNED = [name for name in LEARNED if CODECS[name].signed]
DRAWS = {
    "normal": torch.distributions.Normal(0.0, 1.0),
    "laplace": torch.distributions.Laplace(0.0, 1.0),
    "heavy": torch.distributions.StudentT(2.0),
    "shifted": torch.distributions.Normal(3.0, 1.0),  # far from what the first levels are for
}
NUMEL = 1 << 15
every_learned = pytest.mark.parametrize("name", LEARNED)


def draw(distribution: str, name: str, seed: int = 0) -> Tensor:
    """Values of a first moment, or their squares for a second one."""
    torch.manual_seed(seed)
    value = DRAWS[distribution].sample((NUMEL,))
    return value if CODECS[name].signed else value.square()


def fresh(value: Tensor, name: str) -> StateTensor:
    """`value` stored with the levels that a codebook starts with."""
    state = StateTensor.empty(value.shape, value.dtype, value.device, CODECS[name], "slot", 0)
    state.store(value)
    return state


def levels_of(state: StateTensor) -> np.ndarray:
    return state.codec.as_levels(state.parts["levels"])


def codes_of(state: StateTensor) -> Tensor:
    codes = state.parts["codes"]
    return unpacked(codes, torch.arange(state.numel()), state.rows) if state.codec.bits == 4 else codes


def relative(value: Tensor, codec: Codebook, to: Tensor | None = None) -> Tensor:
    """What is rounded: values, or their roots, over the largest of their group (of `to`), float64."""
    root, reference = (v.double() if codec.signed else v.double().sqrt() for v in (value, value if to is None else to))
    largest = reference.abs().view(-1, codec.group_size).amax(1, keepdim=True)
    return (root.view(-1, codec.group_size) / largest).reshape(-1)


def squared_error(state: StateTensor, value: Tensor) -> float:
    error = relative(state.decode(), state.codec, to=value) - relative(value, state.codec)
    return float(error.square().mean())


# learning


@every_learned
@pytest.mark.parametrize("distribution", DRAWS)
def test_learned_levels_lower_the_measured_error(name, distribution):
    value = draw(distribution, name)
    state = fresh(value, name)
    before = squared_error(state, value)
    learn_from_values(state.codec, state.parts, value)
    state.store(value)
    assert squared_error(state, value) < before * (0.9 if distribution == "shifted" else 1.0)
    levels = levels_of(state)
    assert len(levels) == state.codec.count and (np.diff(levels) > 0).all() and levels[-1] == 1.0
    assert levels[0] == -1.0 and 0.0 in levels if state.codec.signed else levels[0] >= 0.0


@pytest.mark.parametrize("name", SIGNED)
def test_the_expected_error_is_the_measured_one(name):
    """Beside what the rounding of the scale adds: values whose largest is a bf16 number have none. Values lie on the
    grid that weights are given on, and are stored 16 times: one rounding of all of them varies by 1.3 %."""
    value = draw("laplace", name)
    value.view(-1, CODECS[name].group_size)[:, 0] = 8.0
    value = torch.round(value.clamp_(-8.0, 8.0) / 8.0 * CODECS[name].grid) * (8.0 / CODECS[name].grid)
    state = StateTensor.encoded(value, CODECS[name], "slot", 0)
    points = grid_points(state.codec)
    weights = np.histogram(relative(value, state.codec), bins=np.append(points - np.diff(points)[0] / 2, 2.0))[0]
    expected = expected_error(state.codec, weights.astype(np.float64), levels_of(state))
    errors = []
    for _ in range(16):
        state.store(value)
        errors.append(squared_error(state, value))
    assert np.mean(errors) == pytest.approx(expected, rel=0.01)


@every_learned
def test_values_that_say_nothing_leave_the_levels(name):
    nothing = torch.tensor([0.0, float("nan"), float("inf"), 0.0])
    state = StateTensor.encoded(nothing.repeat_interleave(64), CODECS[name], "slot", 0)
    assert np.array_equal(levels_of(state), CODECS[name].default_levels)


# density


@pytest.mark.parametrize("name", ["codebook8", "ucodebook8"])
@pytest.mark.parametrize("distribution", DRAWS)
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_density_from_codes_has_the_moments_of_the_values(name, distribution, zeros):
    """And no part in it has what is exactly 0, of which there may be much."""
    value = draw(distribution, name)
    value[torch.rand(NUMEL) < zeros] = 0.0
    state = fresh(value, name)
    weights = density(state.codec, codes_of(state), levels_of(state))
    points, x = grid_points(state.codec), relative(value, state.codec).numpy()
    if not state.codec.signed:  # a level 0 of roots is 0 exactly, and costs nothing
        weights[0] = 0.0
    x = x[x != 0.0]
    assert weights.sum() == pytest.approx(len(x), rel=0.03)
    for power in (1, 2, 4):
        moment = weights @ abs(points) ** power / weights.sum()
        assert moment == pytest.approx((abs(x) ** power).mean(), rel=0.04)
    if state.codec.signed:
        assert abs(weights @ points / weights.sum() - x.mean()) <= 0.01


@pytest.mark.parametrize("name", LEARNED)
def test_levels_from_codes_are_as_good_as_levels_from_values(name):
    value = draw("normal", name)
    state, known = fresh(value, name), StateTensor.encoded(value, CODECS[name], "slot", 0)
    weights = density(state.codec, codes_of(state), levels_of(state))
    state.parts["levels"].copy_(torch.from_numpy(state.codec.as_entries(best_levels(state.codec, weights))))
    state.store(value)
    assert squared_error(state, value) <= 1.1 * squared_error(known, value)


# refreshing


@pytest.mark.parametrize("resume", [False, True])
def test_levels_are_looked_at_1_2_4_8_times_and_then_every_1024(resume, monkeypatch):
    """The same after a resumption, which starts from what is stored."""
    state = StateTensor.empty(torch.Size([64]), torch.float32, torch.device("cpu"), CODECS["codebook4"], "slot", 0)
    looked = record_looks(monkeypatch, lambda state: False)
    schedule = CodebookRefresh([state, fresh(torch.ones(3), "e2m1")])
    for step in range(5000):
        if resume and step % 7 == 0:
            schedule = CodebookRefresh([state])
        schedule.tick()
        state.parts["clock"].add_(1)
    assert looked == [2**k for k in range(11)] + [2048, 3072, 4096]


def record_looks(monkeypatch, pays) -> list[int]:
    """The clocks of all looks from here on; one that `pays` stores the state anew."""
    looked: list[int] = []

    def look(state: StateTensor) -> None:
        looked.append(int(state.parts["clock"]))
        state.parts["checked_at"].copy_(state.parts["clock"])
        state.parts["clock"].add_(int(pays(state)))

    monkeypatch.setattr(refresh_codebooks, "refresh_codebook", look)
    return looked


def test_looks_go_on_after_a_refresh(monkeypatch):
    state = StateTensor.empty(torch.Size([64]), torch.float32, torch.device("cpu"), CODECS["codebook4"], "slot", 0)
    looked = record_looks(monkeypatch, lambda state: True)
    schedule = CodebookRefresh([state])
    for _ in range(100):
        schedule.tick()
        state.parts["clock"].add_(1)
    assert len(looked) >= 6
    assert all(later <= 2 * earlier + 2 for earlier, later in pairwise(looked))


@every_learned
def test_levels_that_fit_are_kept(name):
    state = StateTensor.encoded(draw("normal", name), CODECS[name], "slot", 0)
    before = state.clone()
    assert not refresh_codebook(state)
    assert all(torch.equal(before.parts[part], state.parts[part]) for part in ("codes", "scales", "levels", "clock"))
    assert state.parts["checked_at"] == 1 and steps_until_due(state) == 1


@every_learned
def test_a_refresh_keeps_values_within_the_codecs_error_and_exact_on_average(name):
    """But for positive values below the new lowest level, which read as that."""
    codec, start = CODECS[name], fresh(draw("shifted", name), name)
    before = start.decode()
    errors = []
    for salt in range(24 if codec.bits == 4 else 4):
        state = start.like(torch.clone)
        state.salt = salt
        assert refresh_codebook(state)
        parts = {part: reference.to_numpy(tensor) for part, tensor in state.parts.items()}
        parts["codes"] = codes_of(state).numpy()
        error = state.decode().double() - before.double()
        bound = reference.error_bound(name, before.double().numpy(), parts)
        assert (error.abs().numpy() <= bound).all()
        errors.append(error)
    levels = levels_of(state)
    assert 0.0 in levels or not codec.signed
    x = relative(before, codec)
    above = torch.from_numpy(
        np.full(NUMEL, True) if codec.signed else (x >= levels[levels > 0][0]).numpy() | (x == 0).numpy()
    )
    largest = before.double().abs().view(-1, codec.group_size).amax(1, keepdim=True).expand(-1, codec.group_size)
    error = torch.stack(errors) / largest.reshape(-1)
    for sign in (1.0, before.sign()):
        mean = (error * sign)[:, above]
        assert mean.mean().abs() <= 4.5 * mean.std() / mean.numel() ** 0.5


@every_learned
def test_a_refresh_lowers_the_error_of_later_values(name):
    state = fresh(draw("shifted", name), name)
    before = squared_error(state, draw("shifted", name))
    assert refresh_codebook(state)
    later = draw("shifted", name, seed=1)
    state.store(later)
    assert squared_error(state, later) < 0.9 * before


@pytest.mark.parametrize(
    "name",
    [
        *SIGNED,
        "ucodebook8",
        "ucodebook4",
    ],
)
def test_levels_learned_from_equal_values_recover(name):
    """As Adagrad's sum starts: all values equal until the first gradient."""
    state = StateTensor.encoded(torch.full((NUMEL,), 0.1), CODECS[name], "slot", 0)
    value = draw("normal", name) + (0.0 if CODECS[name].signed else 0.1)
    for _ in range(4):
        state.store(value)
        refresh_codebook(state)
    state.store(value)
    assert squared_error(state, value) <= 1.2 * squared_error(fresh(value, name), value)


def test_a_compiled_step_learns():
    """The step looks at levels before it runs; state that `prepare` made starts from the default ones."""
    parameter = torch.nn.Parameter(torch.zeros(NUMEL))
    parameter.grad = draw("shifted", "codebook4")
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    baoc_compile.prepare(optimizer, plan="4bit-learned")
    step = torch.compile(optimizer.step, backend="baoc")
    state = optimizer.state[parameter]["momentum_buffer"]
    step()
    assert np.array_equal(levels_of(state), CODECS["codebook4"].default_levels)
    step()
    assert not np.array_equal(levels_of(state), CODECS["codebook4"].default_levels)
    assert state.parts["checked_at"] == 1
    exact = 1.9 * parameter.grad
    assert float((state.decode() - exact).square().mean().sqrt()) < 0.1 * float(exact.abs().amax())


@pytest.mark.parametrize("name", ["codebook8", "ucodebook8"])
@pytest.mark.parametrize("distribution", ["normal", "laplace"])
def test_the_least_error_is_foretold_without_learning(name, distribution):
    """So that levels are learned only where that can pay."""
    codec, state = CODECS[name], fresh(draw(distribution, name), name)
    weights = density(codec, codes_of(state), levels_of(state))
    learned = expected_error(codec, weights, best_levels(codec, weights))
    assert least_error(codec, weights) == pytest.approx(learned, rel=0.02)
