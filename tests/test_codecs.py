"""Every codec keeps its contract: error bounds, fixed points, exact bytes, unbiased rounding, true decay, and the bits
of an independent float64 reference (codec_reference.py). Learned levels: test_codebook.py; weights: test_weights.py."""

from __future__ import annotations

import codec_reference as reference
import numpy as np
import pytest
import torch
from codec_cases import (
    DECAYING,
    FOUR_BITS,
    GROUPED,
    MINIFLOATS,
    NONNEGATIVE,
    ROUNDING,
    STOCHASTIC,
    arrays,
    assert_same_bits,
    dtype_of,
    empty,
    encoded,
    storable,
    values,
)
from hypothesis import given
from hypothesis import strategies as st

from baoc_compile.core.codec import Random
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.codecs.counter_hash import element_words, fold_index, group_words, slot_salt, step_key
from baoc_compile.state import state_tensor
from baoc_compile.state.state_tensor import StateTensor

every_codec = pytest.mark.parametrize("name", ROUNDING)


@every_codec
@given(value=values(), seed=st.integers(0, 1000))
def test_error_is_within_the_bounds_of_the_docstring(name, value, seed):
    value = storable(value, name)
    state = encoded(value, name, seed, levels_seed=seed)
    exact = value.double().numpy()
    error = abs(state.decode().double().numpy() - exact)
    assert (error - reference.error_bound(name, exact, arrays(state))).max(initial=0) <= 0


@every_codec
@given(value=values(), seed=st.integers(0, 1000))
def test_error_is_within_relative_error_of_the_groups_largest_value(name, value, seed):
    """With the levels that a codebook starts with. Groups of the smallest values share one grid."""
    codec, value = CODECS[name], storable(value, name)
    state = encoded(value, name, seed)
    exact = value.double().numpy()
    error = abs(state.decode().double().numpy() - exact)
    width = codec.group_size or 1
    padded = np.pad(abs(exact), (0, -len(exact) % width)).reshape(-1, width)
    lowest = reference.lowest_largest(name) if codec.group_size else 0.0
    largest = np.repeat(np.maximum(padded.max(1), lowest), width)[: len(exact)]
    assert (error - codec.relative_error * largest * (1 + 2**-20)).max(initial=0) <= reference.TINY_BF16


@every_codec
def test_a_nan_comes_out_and_spreads_over_no_more_than_a_group_of_4_bits(name):
    """A minifloat's neighbours become 0, or what is least."""
    value, touched = with_special(float("nan"))
    if name in FOUR_BITS and name not in MINIFLOATS:
        groups = torch.arange(300) // CODECS[name].group_size
        touched = torch.isin(groups, groups[touched])
        assert not touched.all()
    assert torch.equal(encoded(value, name).decode().isnan(), touched)


@every_codec
@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinity_comes_out_and_its_group_is_kept_or_nan(name, sign):
    if name in NONNEGATIVE and sign < 0:
        pytest.skip("not a non-negative value")
    value, touched = with_special(sign * float("inf"))
    decoded = encoded(value, name).decode()
    assert (decoded[touched] == sign * float("inf")).all()
    kept = (decoded - value)[~touched].abs() <= 2 * CODECS[name].relative_error
    if name in MINIFLOATS:
        kept |= (
            decoded[~touched].isfinite()
            & torch.isin(torch.arange(300) // 32, torch.arange(300)[touched] // 32)[~touched]
        )
    assert (kept | decoded[~touched].isnan()).all()


def with_special(special: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of 1 to 2, one of the first group of any size, one of a later and the very last special; and where."""
    touched = torch.isin(torch.arange(300), torch.tensor([3, 40, 299]))
    return torch.linspace(1, 2, 300).masked_fill(touched, special), touched


@every_codec
@given(
    value=values().filter(lambda v: v.numel() == 0 or v.abs().max() == 0 or v.abs().max() >= 1e-30),
    seed=st.integers(0, 1000),
)
def test_what_was_decoded_encodes_to_itself(name, value, seed):
    state = encoded(storable(value, name), name, levels_seed=seed)
    again = state.clone()
    again.store(state.decode())
    if "clock" in again.parts:
        again.parts["clock"].copy_(state.parts["clock"])
    assert_same_bits(state, again)


@pytest.mark.parametrize("name", NONNEGATIVE)
@given(value=values(), seed=st.integers(0, 1000))
def test_positive_values_stay_positive(name, value, seed):
    """A second moment that reads 0 beside a momentum that does not divides an update by eps alone."""
    value = value.abs()
    normal = value >= torch.finfo(torch.float32).tiny
    assert (encoded(value, name, levels_seed=seed).decode()[normal] > 0).all()


#: Bytes of shapes (), (33,) and (4097,).
BYTES = {
    "fp32": (4, 132, 16388),
    "fp64": (8, 264, 32776),
    "bf16": (6, 70, 8198),
    "16 bits": (7, 72, 8327),
    "8 bits": (6, 39, 4230),
    "4 bits": (6, 23, 2182),
    "codebook8": (521, 555, 4873),
    "codebook4": (43, 61, 2347),
}


@every_codec
@pytest.mark.parametrize("shape", [(), (33,), (4097,), (0,), (3, 5, 7)])
def test_storage_bytes_are_exact(name, shape):
    codec, state = CODECS[name], encoded(torch.ones(shape), name)
    held = sum(part.untyped_storage().nbytes() for part in state.parts.values())
    assert codec.storage_bytes(shape) == state.storage_bytes == held
    expected = BYTES[f"{codec.bits} bits" if name in MINIFLOATS else name if name in BYTES else name.removeprefix("u")]
    assert held == dict(zip([(), (33,), (4097,)], expected, strict=True)).get(shape, held)


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bits_are_two_to_a_byte(name):
    """Codes 0 to 15 of distinct levels: what is stored says which comes first."""
    state = encoded(torch.ones(17), name)
    if name in MINIFLOATS:
        state.parts["codes"].copy_(torch.tensor([low + 16 * (low + 1) for low in range(0, 16, 2)] + [15]))
        expected = reference.decode(name, arrays(state), 17)
        assert np.array_equal(state.decode().numpy(), expected) and len(set(expected.tolist())) >= 15
        return
    levels = state.codec.as_levels(state.parts["levels"])
    state.store(torch.from_numpy(np.append(levels, 1.0) if state.codec.signed else np.append(levels, 1.0) ** 2).float())
    assert state.parts["codes"].tolist() == [low + 16 * (low + 1) for low in range(0, 16, 2)] + [15]


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
    """What is decoded has at most 5 roundings."""
    width = reference.GROUP_SIZE
    numel = width * 5_000 + 7
    generator = torch.Generator().manual_seed(clock)
    magnitude = 10.0 ** (60 * torch.rand(numel // width + 1, 1, generator=generator) - 30)
    value = (torch.randn(numel // width + 1, width, generator=generator) * magnitude).reshape(-1)[:numel]
    value = storable(value, name).to(dtype_of(name))
    state, expected, stored = beside_reference(value, name, 3, clock, levels_seed=clock)
    decoded, wanted = state.decode().double().numpy(), reference.decode(name, stored, numel)
    assert np.all(abs(decoded - wanted) <= 5 * 2.0**-24 * abs(wanted))
    agreeing = np.ones(numel, dtype=bool)
    for part in sorted(expected, reverse=True):  # scales before codes
        difference = abs(as_order(stored[part]) - as_order(expected[part]))
        if part in ("scales", "exponents"):
            agreeing = np.repeat(difference == 0, width)[:numel]
        else:
            difference = difference[agreeing]
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= len(difference) / 10_000


def beside_reference(value: torch.Tensor, name: str, seed: int, clock: int, levels_seed: int):
    """A state that has stored `value` at `clock`, what the reference would have stored, and what was."""
    state = empty(value, name, seed, levels_seed)
    if "clock" in state.parts:
        state.parts["clock"].fill_(clock)
    state.store(value.to(dtype_of(name)))
    salt = reference.slot_salt(seed, "slot")
    stored = arrays(state)
    return state, reference.encode(name, value.double().numpy(), salt, clock, stored.get("levels")), stored


def as_order(array: np.ndarray) -> np.ndarray:
    """Numbers whose differences count steps of the stored type."""
    if array.dtype.kind == "f":
        array = array.view(f"i{array.itemsize}")
    return array.astype(object if array.itemsize == 8 else np.int64)


@every_codec
@given(value=values(special=True), seed=st.integers(0, 2**31), clock=st.integers(0, 2**31 - 2))
def test_nasty_values_equal_the_float64_reference(name, value, seed, clock):
    """Where no probability is near the word it is compared with, that is nearly always: at most one step anywhere."""
    _, expected, stored = beside_reference(storable(value, name), name, seed, clock, levels_seed=seed)
    for part, array in expected.items():
        difference = abs(as_order(stored[part]) - as_order(array))
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
    codebooks = {p.name: codec.initial(p, group.shape, group.device) for p in codec.parts if p.per == "codebook"}
    stored = codec.encode_with(codebooks, group.expand(clocks, -1).contiguous(), random)
    return codec.decode({**codebooks, **stored}).double()


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_rounding_is_exact_on_average(name, magnitude):
    """For each element, but for those within a bf16 step of the group's largest: a scale below it clips them.

    Non-negative values below a minifloat's lowest level read as that, and so do all below a 4-bit codebook's.
    """
    clocks = 20_000
    group = storable(torch.randn(32, generator=torch.Generator().manual_seed(5)), name) * magnitude
    group = group[(group.abs() == group.abs().max()) | (group.abs() < group.abs().max() * (1 - 2**-6))]
    if name in MINIFLOATS and name in NONNEGATIVE:
        small = reference.minifloat(name)
        group = group[group >= group.max() * 2.0 ** (3 - 2**small.exponent - small.mantissa)]
    stored = stored_at_many_clocks(name, group, clocks)
    standard_error = stored.std(0) / clocks**0.5
    bias = (stored.mean(0) - group.double()).abs()
    assert (bias <= 4 * standard_error).all()


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


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize("beta", [0.999, 0.9])
def test_zero_gradients_decay_the_mean_as_they_should(name, beta):
    start = storable(torch.randn(2048, generator=torch.Generator().manual_seed(1)), name).abs()
    exact = start.double().mean() * beta**600
    left = decayed(name, start, beta).double().view(-1, 32).mean(1)
    tolerance = max(0.03 * float(exact), 3 * float(left.std()) / len(left) ** 0.5)
    assert abs(float(left.mean()) - float(exact)) <= tolerance


@pytest.mark.parametrize("name", [name for name in DECAYING if name in GROUPED])
@pytest.mark.parametrize("beta", [0.999, 0.9])
def test_values_decay_beside_one_that_does_not(name, beta):
    """With beta = 0.9 the others end 1e-28 below the largest: no more than the lowest level may be left of them."""
    start = torch.rand(2048, generator=torch.Generator().manual_seed(2)) * 0.9
    keep = torch.arange(2048) % 32 == 7
    start[keep] = 1.003
    left = decayed(name, start, beta, keep)[~keep].double()
    exact = float(start[~keep].double().mean()) * beta**600
    lowest = {"e2m5": 2.0**-7, "e3m5": 2.0**-11, "codebook8": 1 / 253}.get(name, 1 / 254**2)
    lowest_level = 1.003 * lowest * (1 + 2**-6)
    tolerance = max(0.03 * exact, 3 * float(left.std()) / len(left) ** 0.5, lowest_level if beta == 0.9 else 0)
    assert abs(float(left.mean()) - exact) <= tolerance


# layout


@every_codec
@pytest.mark.parametrize("chunk", [128, 384, 4096])
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
    other_slot = StateTensor.empty(value.shape, value.dtype, value.device, CODECS[name], "other", 0)
    other_slot.store(value)
    for other in (second, other_slot, encoded(value, name, seed=1)):
        assert not torch.equal(first.decode(), other.decode())
    assert_same_bits(first, encoded(value, name))
