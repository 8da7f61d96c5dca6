"""Codecs that share and drop: which elements have a mean in common, exact bytes, and refusals that name their reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from codec_cases import NONNEGATIVE, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from baoc_compile import StateError
from baoc_compile.core.codec import Slot
from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.state.state_tensor import StateTensor

SHAPE = (12, 2, 5)
#: Codec -> subscripts whose letters after -> the mean keeps, of the shape beside it.
MEANS = {
    "row": ("abc->a", SHAPE),
    "column": ("abc->bc", SHAPE),
    "head:4": ("abc->a", (3, 4, 10)),
    "column_head:5": ("abc->b", (12, 2, 5)),
    "run:15": ("ab->a", (8, 15)),
    "tensor": ("a->", (120,)),
}
RECURRENT = Slot("s", nonnegative=True, why_not_shared="", why_not_dropped="")


def float64_means(value: torch.Tensor, name: str) -> torch.Tensor:
    """Every element's mean over its set, computed with einsum in the sets' own shape."""
    subscripts, shape = MEANS[name]
    sets, kept = subscripts.split("->")
    split = value.double().reshape(shape)
    total = torch.einsum(subscripts, split)
    spread = total.reshape([n if axis in kept else 1 for axis, n in zip(sets, shape, strict=True)]).expand(shape)
    return (spread / (split.numel() / total.numel())).reshape(value.shape)


@pytest.mark.parametrize("name", MEANS)
@given(seed=st.integers(0, 2**31), magnitude=st.floats(-30, 29))
def test_sharing_stores_means_and_storing_them_changes_nothing(name, seed, magnitude):
    value = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * 10.0**magnitude
    state = StateTensor.encoded(value, codec_named(name), "slot", 0)
    exact = float64_means(value, name)
    noise = 2.0**-50 * value.abs().max() + 2.0**-149
    assert ((state.decode() - exact).abs() <= 2.0**-24 * exact.abs() + noise).all()
    again = state.clone()
    again.store(state.decode())
    assert_same_bits(state, again)


@given(seed=st.integers(0, 2**31), magnitude=st.floats(-15, 14), is_product=st.booleans())
def test_factored_is_the_product_of_row_and_column_means(seed, magnitude, is_product):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(SHAPE, generator=generator).square() * 10.0 ** (2 * magnitude)
    if is_product:
        value = value[:, :1, :1] * torch.rand(SHAPE[1:], generator=generator)
    exact = float64_means(value, "row") * float64_means(value, "column") / value.double().mean()
    state = StateTensor.encoded(value, codec_named("factored"), "slot", 0)
    assert torch.allclose(state.decode().double(), exact, rtol=6 * 2.0**-24, atol=2.0**-149)
    if is_product:
        assert torch.allclose(state.decode(), value, rtol=8 * 2.0**-24, atol=2.0**-149)


@pytest.mark.parametrize("name", [*MEANS, "factored"])
@pytest.mark.parametrize("shape", [(0, 4, 5), (4, 0)])
def test_sharing_of_nothing_is_nothing(name, shape):
    state = StateTensor.encoded(torch.zeros(shape), codec_named(name), "slot", 0)
    assert state.storage_bytes == 0 and state.decode().shape == shape


def test_factored_reads_zero_where_all_is_zero():
    assert (StateTensor.encoded(torch.zeros(SHAPE), codec_named("factored"), "slot", 0).decode() == 0).all()


@pytest.mark.parametrize(
    "name, stored",
    {
        "row": 48,
        "column": 40,
        "head:4": 12,
        "column_head:5": 8,
        "run:15": 32,
        "tensor": 4,
        "factored": 92,
        "dropped": 0,
    }.items(),
)
def test_shared_bytes_are_exact(name, stored):
    codec = codec_named(name)
    state = StateTensor.empty(torch.Size(SHAPE), torch.float32, torch.device("cpu"), codec, "slot", 0)
    assert codec.storage_bytes(SHAPE) == state.storage_bytes == stored
    assert codec.why_not(RECURRENT, torch.Size(SHAPE)) == ""


@pytest.mark.parametrize(
    "name, slot, shape, reason",
    [
        *((name, RECURRENT, (120,), "at least 2 dimensions") for name in ("row", "column", "factored", "head:4")),
        ("head:5", RECURRENT, SHAPE, "5 does not divide 12"),
        ("column_head:4", RECURRENT, SHAPE, "4 does not divide 10"),
        ("run:7", RECURRENT, SHAPE, "7 does not divide 120"),
        ("factored", replace(RECURRENT, nonnegative=False), SHAPE, "'s' stays >= 0"),
        *((name, Slot("s", nonnegative=True), SHAPE, "not known as a rule") for name in ("row", "factored", "dropped")),
        ("dropped", replace(RECURRENT, why_not_dropped="no steady state"), SHAPE, "no steady state"),
        *((name, replace(RECURRENT, why_exact="exactly"), SHAPE, "exactly") for name in ("row", "dropped", "e3m5")),
        *(
            (name, Slot("param", weight_dtype=torch.bfloat16), SHAPE, "not weights")
            for name in ("fp32", "row", "dropped")
        ),
        *((name, replace(RECURRENT, nonnegative=False), SHAPE, "'s' stays >= 0") for name in NONNEGATIVE),
    ],
)
def test_refusals_name_their_reason(name, slot, shape, reason):
    assert reason in codec_named(name).why_not(slot, torch.Size(shape))


def test_a_dropped_slot_reads_zero_and_refuses_values():
    state = StateTensor.empty(torch.Size(SHAPE), torch.float32, torch.device("cpu"), codec_named("dropped"), "slot", 0)
    assert torch.equal(state.decode(), torch.zeros(SHAPE))
    with pytest.raises(StateError, match="only baoc's own step"):
        state.store(torch.ones(SHAPE))
