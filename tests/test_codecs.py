"""Every codec keeps its contract: error bounds, fixed points, exact bytes, unbiased rounding, true decay, and the bits
of an independent float64 reference (codec_reference.py)."""

from __future__ import annotations

import codec_reference as reference
import numpy as np
import pytest
import torch
from baoc_compile.kernels.catalogue import CODECS
from baoc_compile.kernels.counter_hash import element_words, fold_index, group_words, slot_salt, step_key
from hypothesis import given
from hypothesis import strategies as st

from baoc_compile import state_tensor
from baoc_compile.codec import CLOCK_DTYPE, Random
from baoc_compile.state_tensor import StateTensor

SIZES = (0, 1, 31, 32, 33, 4097)
STOCHASTIC = [name for name, codec in CODECS.items() if codec.stochastic]
GROUPED = [name for name, codec in CODECS.items() if codec.group_size]
every_codec = pytest.mark.parametrize("name", CODECS)


def encoded(value: torch.Tensor, name: str, seed: int = 0) -> StateTensor:
    return StateTensor.encoded(value.to(dtype_of(name)), CODECS[name], "slot", seed)


def dtype_of(name: str) -> torch.dtype:
    return torch.float64 if name == "fp64" else torch.float32


def storable(value: torch.Tensor, name: str) -> torch.Tensor:
    """sqrt8 stores values >= 0 only."""
    return value.abs() if name == "sqrt8" else value


def arrays(state: StateTensor) -> dict[str, np.ndarray]:
    return {part: reference.to_numpy(tensor) for part, tensor in state.parts.items() if part != "clock"}


def assert_same_bits(a: StateTensor, b: StateTensor) -> None:
    for part in a.parts:
        assert np.array_equal(reference.to_numpy(a.parts[part]), reference.to_numpy(b.parts[part])), part


@st.composite
def values(draw) -> torch.Tensor:
    """float32 values of one of the sizes: of one magnitude in each group, from 1e-30 to 1e30, or something nastier."""
    numel, seed = draw(st.sampled_from(SIZES)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(numel, generator=generator)
    kind = draw(st.sampled_from(["scaled", "any magnitude", "denormal", "zero", "one outlier", "equal", "few"]))
    magnitude = 10.0 ** draw(st.floats(-30, 29))
    if kind == "any magnitude":
        return normal.sign() * 10.0 ** (60 * torch.rand(numel, generator=generator) - 30)
    if kind == "denormal":
        return normal * 1e-40
    if kind == "one outlier" and numel:
        normal[draw(st.integers(0, numel - 1))] = 1e4
    if kind == "equal":
        normal[:] = draw(st.sampled_from([1.0, 1 / 3, 1 - 2**-20]))
    if kind == "few":
        normal = normal.sign() * (normal.abs() > 1)
    return normal * (0.0 if kind == "zero" else magnitude)


@every_codec
@given(value=values(), seed=st.integers(0, 1000))
def test_error_is_within_the_bounds_of_the_docstring(name, value, seed):
    value = storable(value, name)
    state = encoded(value, name, seed)
    exact = value.double().numpy()
    error = abs(state.decode().double().numpy() - exact)
    assert (error - reference.error_bound(name, exact, arrays(state))).max(initial=0) <= 0


@every_codec
@given(value=values(), seed=st.integers(0, 1000))
def test_error_is_within_relative_error_of_the_groups_largest_value(name, value, seed):
    codec, value = CODECS[name], storable(value, name)
    state = encoded(value, name, seed)
    exact = value.double().numpy()
    error = abs(state.decode().double().numpy() - exact)
    width = codec.group_size or 1
    padded = np.pad(abs(exact), (0, -len(exact) % width)).reshape(-1, width)
    largest = np.repeat(padded.max(1), width)[: len(exact)]
    assert (error - codec.relative_error * largest * (1 + 2**-20)).max(initial=0) <= reference.TINY_BF16


@every_codec
def test_a_nan_comes_out_and_does_not_spread(name):
    value, touched = with_special(float("nan"))
    state = encoded(value, name)
    assert torch.equal(state.decode().isnan(), touched)


@every_codec
@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinity_comes_out_and_its_group_is_kept_or_nan(name, sign):
    if name == "sqrt8" and sign < 0:
        pytest.skip("not a non-negative value")
    value, touched = with_special(sign * float("inf"))
    decoded = encoded(value, name).decode()
    assert (decoded[touched] == sign * float("inf")).all()
    kept = (decoded - value)[~touched].abs() <= 2 * CODECS[name].relative_error
    assert (kept | decoded[~touched].isnan()).all()


def with_special(special: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of 1 to 2 in three groups, one of each special, and where these are."""
    touched = torch.isin(torch.arange(70), torch.tensor([3, 40, 69]))
    return torch.linspace(1, 2, 70).masked_fill(touched, special), touched


@every_codec
@given(value=values().filter(lambda v: v.numel() == 0 or v.abs().max() == 0 or v.abs().max() >= 1e-30))
def test_what_was_decoded_encodes_to_itself(name, value):
    state = encoded(storable(value, name), name)
    again = state.clone()
    again.store(state.decode())
    if "clock" in again.parts:
        again.parts["clock"].copy_(state.parts["clock"])
    assert_same_bits(state, again)


@given(value=values())
def test_positive_values_never_reach_level_0_of_sqrt8(value):
    value = value.abs()
    state = encoded(value, "sqrt8")
    assert (state.parts["codes"][value > 0] > 0).all()
    normal = value >= torch.finfo(torch.float32).tiny
    assert (state.decode()[normal] > 0).all()


@every_codec
@pytest.mark.parametrize("numel", SIZES)
def test_storage_bytes_are_exact(name, numel):
    codec, state = CODECS[name], encoded(torch.ones(numel), name)
    held = sum(part.untyped_storage().nbytes() for part in state.parts.values())
    assert codec.storage_bytes(numel) == state.storage_bytes == held


@pytest.mark.parametrize(
    "name, bytes_per_element", [("fp32", 4), ("fp64", 8), ("bf16", 2), ("softsign8", 1.0625), ("sqrt8", 1.0625)]
)
def test_bytes_per_element(name, bytes_per_element):
    codec = CODECS[name]
    assert codec.storage_bytes(1 << 20) == (bytes_per_element * 2**20) + (
        CLOCK_DTYPE.itemsize if codec.stochastic else 0
    )


# the reference


@pytest.mark.parametrize("seed, slot, clock", [(0, "exp_avg", 0), (7, "exp_avg_sq", 1), (2**40, "µ", 2**31 - 1)])
def test_random_words_equal_the_reference(seed, slot, clock):
    index = torch.tensor([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**40])
    salt = slot_salt(seed, slot)
    key = step_key(torch.tensor(salt, dtype=torch.int32), torch.tensor(clock, dtype=torch.int32))
    for ours, theirs in ((element_words, reference.element_words), (group_words, reference.group_words)):
        words = ours(key, fold_index(index)).numpy().astype(np.int64) % 2**32
        assert np.array_equal(words, theirs(reference.slot_salt(seed, slot), clock, index.numpy()))


@every_codec
@pytest.mark.parametrize("clock", [0, 1, 1000])
def test_equals_the_float64_reference(name, clock):
    numel = 32 * 10_000 + 7
    generator = torch.Generator().manual_seed(clock)
    magnitude = 10.0 ** (60 * torch.rand(numel // 32 + 1, 1, generator=generator) - 30)
    value = (torch.randn(numel // 32 + 1, 32, generator=generator) * magnitude).reshape(-1)[:numel]
    value = storable(value, name).to(dtype_of(name))
    state = StateTensor.empty(value.shape, value.dtype, value.device, CODECS[name], "slot", 3)
    if "clock" in state.parts:
        state.parts["clock"].fill_(clock)
    state.store(value)
    expected = reference.encode(name, value.double().numpy(), reference.slot_salt(3, "slot"), clock)
    stored = arrays(state)
    decoded, wanted = state.decode().double().numpy(), reference.decode(name, stored, numel)
    assert np.all(abs(decoded - wanted) <= 4 * 2.0**-24 * abs(wanted))
    agreeing = np.ones(numel, dtype=bool)
    for part in sorted(expected, reverse=True):  # scales before codes
        difference = abs(as_order(stored[part]) - as_order(expected[part]))
        if part == "scales":
            agreeing = np.repeat(difference == 0, 32)[:numel]
        else:
            difference = difference[agreeing]
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= len(difference) / 10_000


def as_order(array: np.ndarray) -> np.ndarray:
    """Numbers whose differences count steps of the stored type."""
    if array.dtype.kind == "f":
        array = array.view(f"i{array.itemsize}")
    return array.astype(object if array.itemsize == 8 else np.int64)


@every_codec
@given(value=values(), seed=st.integers(0, 2**31), clock=st.integers(0, 2**31 - 2))
def test_nasty_values_equal_the_float64_reference(name, value, seed, clock):
    """Where no probability is near the word it is compared with, that is nearly always: at most one step anywhere."""
    value = storable(value, name)
    state = StateTensor.empty(value.shape, dtype_of(name), value.device, CODECS[name], "slot", seed)
    if "clock" in state.parts:
        state.parts["clock"].fill_(clock)
    state.store(value.to(dtype_of(name)))
    expected = reference.encode(name, value.double().numpy(), reference.slot_salt(seed, "slot"), clock)
    for part, array in arrays(state).items():
        difference = abs(as_order(array) - as_order(expected[part]))
        assert np.all(difference <= 1), part
        assert np.count_nonzero(difference) <= 1 + len(difference) // 1000, part


# randomness


def stored_at_many_clocks(name: str, group: torch.Tensor, clocks: int) -> torch.Tensor:
    """`[clocks, width]`: one group, decoded after being stored at each clock."""
    codec = CODECS[name]
    salt = torch.tensor(slot_salt(0, "slot"), dtype=torch.int32)
    key = step_key(salt, torch.arange(clocks, dtype=torch.int32).view(-1, 1))
    index = fold_index(torch.arange(group.numel())).view(1, -1)
    random = Random(element_words(key, index), group_words(key, index[:, :1]))
    return codec.decode(codec.encode(group.expand(clocks, -1).contiguous(), random)).double()


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_rounding_is_exact_on_average(name, magnitude):
    """For each element, but for those within a bf16 step of the group's largest: a scale below it clips them."""
    clocks = 20_000
    group = storable(torch.randn(32, generator=torch.Generator().manual_seed(5)), name) * magnitude
    group = group[(group.abs() == group.abs().max()) | (group.abs() < group.abs().max() * (1 - 2**-6))]
    stored = stored_at_many_clocks(name, group, clocks)
    standard_error = stored.std(0) / clocks**0.5
    on_level = reference.ON_LEVEL * reference.error_bound(name, group.double().numpy(), widest_gaps(name, group))
    bias = (stored.mean(0) - group.double()).abs()
    assert (bias <= 4 * standard_error + torch.from_numpy(on_level)).all()


def widest_gaps(name: str, group: torch.Tensor) -> dict[str, np.ndarray]:
    """Parts for `error_bound` at their widest gap: the top code, and a scale of at least the largest value."""
    largest = group.abs().max().double().sqrt() if name == "sqrt8" else group.abs().max()
    scale = reference.to_bf16(np.array([float(largest) * (1 + 2**-6)]))
    return {"codes": np.full(len(group), 254 if name == "sqrt8" else 127), "scales": scale}


@pytest.mark.parametrize("name", GROUPED)
def test_words_of_elements_groups_and_clocks_are_independent(name):
    """Rounding errors of two elements of a group, of one element at two clocks, and of an element and its scale."""
    group = torch.tensor([1.003, 0.31, 0.17] + [0.05] * 29)
    error = stored_at_many_clocks(name, group, 20_000) - group.double()
    top, a, b = error[:, 0], error[:, 1] / (1 + error[:, 0]), error[:, 2] / (1 + error[:, 0])
    pairs = [(a, b), (a[1:], a[:-1]), (top[1:], top[:-1]), (top, b)]
    for x, y in pairs:
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 4 / len(x) ** 0.5


def decayed(name: str, start: torch.Tensor, beta: float, keep: torch.Tensor | None = None, steps: int = 600):
    """`start` after zero-gradient steps; where `keep`, elements hold their value instead."""
    state = encoded(start, name)
    for _ in range(steps):
        value = state.decode() * beta
        state.store(value if keep is None else torch.where(keep, start, value))
    return state.decode()


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("beta", [0.999, 0.9])
def test_zero_gradients_decay_the_mean_as_they_should(name, beta):
    start = storable(torch.randn(2048, generator=torch.Generator().manual_seed(1)), name).abs()
    exact = start.double().mean() * beta**600
    assert decayed(name, start, beta).double().mean() == pytest.approx(float(exact), rel=0.03)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("beta", [0.999, 0.9])
def test_values_decay_beside_one_that_does_not(name, beta):
    """With beta = 0.9 the others end 1e-28 below the largest: no more than the lowest level may be left of them."""
    start = torch.rand(2048, generator=torch.Generator().manual_seed(2)) * 0.9
    keep = torch.arange(2048) % 32 == 7
    start[keep] = 1.003
    left = decayed(name, start, beta, keep)[~keep].double()
    exact = float(start[~keep].double().mean()) * beta**600
    lowest_level = {"softsign8": 1.003 / 253, "sqrt8": (1.003 / 254) ** 2}[name] * (1 + 2**-6)
    tolerance = max(0.03 * exact, 3 * float(left.std()) / len(left) ** 0.5, lowest_level if beta == 0.9 else 0)
    assert abs(float(left.mean()) - exact) <= tolerance


# layout


@every_codec
@pytest.mark.parametrize("chunk", [32, 96, 4096])
def test_same_bits_for_every_chunk_size(name, chunk, monkeypatch):
    value = storable(torch.randn(3, 5003, generator=torch.Generator().manual_seed(3)), name)
    whole = encoded(value, name)
    monkeypatch.setattr(state_tensor, "CHUNK_ELEMENTS", chunk)
    assert_same_bits(whole, encoded(value, name))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_seed_slot_and_clock_change_the_rounding(name):
    value = storable(torch.randn(4097, generator=torch.Generator().manual_seed(4)), name)
    first = encoded(value, name)
    second = first.clone()
    second.store(value)
    other_slot = StateTensor.encoded(value, CODECS[name], "other", 0)
    for other in (second, other_slot, encoded(value, name, seed=1)):
        assert not torch.equal(first.decode(), other.decode())
    assert_same_bits(first, encoded(value, name))
