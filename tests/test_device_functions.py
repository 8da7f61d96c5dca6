"""The functions that emitted Triton kernels are written in, interpreted: bit for bit NumPy's or torch's where they are
exact, and float64 rounded once, to within one unit in the last place, where they are not. Indices beyond 2^31.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from program_cases import BF16, FP32, FP64, bits

from baoc_compile.kernels.build.load_triton import load_module
from baoc_compile.kernels.codecs import counter_hash
from baoc_compile.kernels.dialect.operations import OPERATIONS
from baoc_compile.kernels.triton import device_functions
from baoc_compile.kernels.triton.text import HEAD

pytestmark = [pytest.mark.interpreted, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]


@triton.jit
def unary_kernel(FUNCTION: tl.constexpr, x, result, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(result + lanes, FUNCTION(tl.load(x + lanes)))


@triton.jit
def binary_kernel(FUNCTION: tl.constexpr, x, y, result, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(result + lanes, FUNCTION(tl.load(x + lanes), tl.load(y + lanes)))


@triton.jit
def remainder(x, y):
    return x % y


#: What a word of the dialect stands for, called as in emitted kernels.
WORD_KERNEL = (
    HEAD
    + """@triton.jit
def word_kernel(x, result, N: tl.constexpr):
    lanes = tl.arange(0, N)
    value = tl.load(x + lanes)
    tl.store(result + lanes, {expression})
"""
)


def padded(x: torch.Tensor) -> torch.Tensor:
    """Arrays of kernels have a power of 2 elements."""
    return torch.cat([x, x.new_ones(triton.next_power_of_2(len(x)) - len(x))])


def applied(function, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    given = padded(x)
    result = torch.empty_like(given, dtype=dtype or x.dtype)
    unary_kernel[(1,)](function, given, result, len(given))
    return result[: len(x)]


def applied_word(name: str, x: torch.Tensor) -> torch.Tensor:
    given = padded(x)
    result = torch.empty_like(given)
    source = WORD_KERNEL.format(expression=OPERATIONS[name].triton.format("value"))
    load_module(source).word_kernel[(1,)](given, result, len(given))
    return result[: len(x)]


def applied_to_two(function, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, second = padded(x), padded(y)
    result = torch.empty_like(first)
    binary_kernel[(1,)](function, first, second, result, len(first))
    return result[: len(x)]


def nasty(dtype: torch.dtype) -> torch.Tensor:
    """Zeros, halves, limits, subnormal numbers, whole numbers at the edge of the mantissa, NaN, any bits at all."""
    info = torch.finfo(dtype)
    edge = 2.0 ** (52 if dtype == FP64 else 23)
    positive = [0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 7.7, 100.5, 1 - info.eps / 2, 1 + info.eps, info.eps]
    positive += [edge / 2 + 0.5, edge - 0.5, edge, edge + 1, 2 * edge + 2]
    positive += [info.tiny, info.tiny * info.eps, info.max, float("inf")]
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**63), 2**63 - 1, (500,), generator=generator).view(dtype)
    scales = torch.tensor([1e-6, 1e-3, 1.0, 5.0, 60.0]).repeat(100)
    near = (torch.randn(500, generator=generator) * scales).to(dtype)
    values = torch.tensor(positive, dtype=dtype)
    return torch.cat([values, -values, torch.tensor([float("nan")], dtype=dtype), words, near])


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every nasty value with those of zeros, halves, limits."""
    x, y = nasty(dtype), nasty(dtype)[:45]
    return x.repeat_interleave(len(y)), y.repeat(len(x))


def assert_correct(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Equal but for the last place, against the same function in float64."""
    rounded = exact.to(found.dtype)
    assert torch.equal(found.isnan(), rounded.isnan())
    finite = rounded.isfinite()
    assert torch.equal(found[~finite].nan_to_num(nan=0.0), rounded[~finite].nan_to_num(nan=0.0))
    unit = torch.from_numpy(np.spacing(rounded[finite].abs().numpy())).double()
    assert ((found[finite].double() - rounded[finite].double()).abs() <= unit).all()
    zero = rounded == 0
    assert torch.equal(found[zero & (found == 0)].signbit(), rounded[zero & (found == 0)].signbit())


EXACT = {
    "negative": torch.neg,
    "square_root": lambda x: torch.from_numpy(np.sqrt(x.numpy())),
    "truncate": torch.trunc,
    "round_to_even": torch.round,
    "sign_of": lambda x: (x > 0).to(x.dtype) - (x < 0).to(x.dtype),
}
EXACT_OF_TWO = {
    "divide": lambda x, y: torch.from_numpy(np.divide(x.numpy(), y.numpy())),
    "larger": torch.maximum,
    "smaller": torch.minimum,
    "with_sign_of": torch.copysign,
}
#: Words of the dialect that are computed in float64 and rounded.
ROUNDED = {name: getattr(torch, name) for name in ("exp", "log", "log2", "sin", "cos", "erf", "expm1", "log1p", "tanh")}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_exact_functions(name, dtype):
    x = nasty(dtype)
    assert bits(applied(getattr(device_functions, name), x)).equal(bits(EXACT[name](x)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [FP32, FP64], ids=str)
@pytest.mark.parametrize("name", EXACT_OF_TWO)
def test_exact_functions_of_two(name, dtype):
    x, y = pairs(dtype)
    found, expected = applied_to_two(getattr(device_functions, name), x, y), EXACT_OF_TWO[name](x, y)
    if name in ("larger", "smaller"):  # of 0 and -0 either may be larger
        found, expected = found + 0.0, expected + 0.0
    assert bits(found).equal(bits(expected))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ROUNDED)
def test_transcendental_functions(name):
    x = nasty(FP32)
    assert_correct(applied_word(name, x), ROUNDED[name](x.double()))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_power():
    x, y = pairs(FP32)
    found = applied_to_two(device_functions.power, x, y)
    assert_correct(found, torch.from_numpy(np.power(x.double().numpy(), y.double().numpy())))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_power_in_double():
    """exp(y log x) loses as many units as |y log x| is large: bias corrections know beta^t to 2^-50 of 1."""
    x = torch.tensor([0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999]).double().repeat_interleave(400)
    y = torch.arange(1, 401).double().repeat(7)
    found, exact = applied_to_two(device_functions.power, x, y), torch.from_numpy(np.power(x.numpy(), y.numpy()))
    assert (found - exact).abs().max() <= 2.0**-50


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_remainder_has_the_sign_of_the_dividend():
    x, y = pairs(FP32)
    assert bits(applied_to_two(remainder, x, y)).equal(bits(torch.from_numpy(np.fmod(x.numpy(), y.numpy()))))


def test_bfloat16():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    floats = applied(device_functions.bfloat16_to_float, every, FP32)
    assert bits(floats).equal(bits(every.to(torch.int16).view(BF16).float()))
    halfway = floats.view(torch.int32) + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]).int().view(-1, 1)
    x = torch.cat([halfway.view(FP32).reshape(-1), nasty(FP32)])
    found = applied(device_functions.float_to_bfloat16, x, torch.int32).to(torch.int16).view(BF16)
    assert bits(found).equal(bits(x.to(BF16)))


# indices


@triton.jit
def fold_kernel(index, result, N: tl.constexpr):
    rows = tl.arange(0, N // 32)[:, None] * 32
    lanes = rows + tl.arange(0, 32)[None, :]
    tl.store(result + lanes, device_functions.fold_index(tl.load(index), lanes, rows))


@triton.jit
def set_kernel(given, result, N: tl.constexpr, FULL: tl.constexpr):
    start, lanes = tl.load(given), tl.arange(0, N)
    found = device_functions.set_index(start, lanes, start + lanes, tl.load(given + 1), tl.load(given + 2), N, FULL)
    tl.store(result + lanes, found)


@triton.jit
def offset_kernel(start, layout, result, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(result + lanes, device_functions.offsets(tl.load(start), lanes, layout))


edges = st.sampled_from([2**31, 2**32, 2**40, 2**31 - 512, 2**32 - 96])
large = st.one_of(st.integers(0, 1 << 12), edges, st.integers(0, 2**45))


@given(index=large)
def test_fold_index(index):
    index -= index % 32  # where groups start
    result = torch.empty(512, dtype=torch.int32)
    fold_kernel[(1,)](torch.tensor([index]), result, 512)
    assert result.equal(counter_hash.fold_index(torch.arange(index, index + 512)))
    expected = [((i & 0xFFFFFFFF) ^ ((i >> 32) * 0x85EBCA6B & 0xFFFFFFFF)) for i in range(index, index + 512)]
    assert [int(word) & 0xFFFFFFFF for word in result] == expected


@given(start=large, run=st.one_of(st.integers(1, 2000), large.filter(bool)), cycle=st.integers(1, 2**31 - 1))
def test_set_index(start, run, cycle):
    for full in (True, False):
        result = torch.empty(256, dtype=torch.int32)
        set_kernel[(1,)](torch.tensor([start, run, cycle]), result, 256, full)
        assert result.tolist() == [i // run % cycle for i in range(start, start + 256)]


@given(start=large, sizes=st.lists(st.integers(1, 5000), max_size=6), seed=st.integers(0, 99))
def test_offsets_of_strided_elements(start, sizes, seed):
    strides = torch.randint(0, 2**33, (len(sizes),), generator=torch.Generator().manual_seed(seed)).tolist()
    layout = [len(sizes), *sizes, *[1] * (6 - len(sizes)), *strides, *[1] * (6 - len(sizes))]
    result = torch.empty(128, dtype=torch.int64)
    offset_kernel[(1,)](torch.tensor([start]), torch.tensor(layout), result, 128)
    for i, found in zip(range(start, start + 128), result.tolist(), strict=True):
        rest, expected = i, 0 if sizes else i
        for size, stride in zip(sizes, strides, strict=True):
            rest, digit = divmod(rest, size)
            expected += digit * stride
        if rest == 0 or not sizes:  # an element that the tensor has
            assert found == expected
