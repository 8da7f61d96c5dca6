"""Low-precision weights that learn: error bounds of split and stochastic weights, and training that does not freeze."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.core.codec import WEIGHT_KEY, Random, Slot
from baoc_compile.kernels.codecs.catalogue import CODECS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MANTISSA_BITS = {"bf16": 7, "fp16": 10}
LOWEST_EXPONENT = {"bf16": -126, "fp16": -14}
ULP = 2.0**-23  # of fp32
every_type = pytest.mark.parametrize("kind", DTYPES)
NEAREST = -(2**31)  # only the top bit: a chance above one half rounds up


def stored(codec: str, value: Tensor, words: Tensor | int = NEAREST) -> Tensor:
    """`value` as `codec` gives it back, float64."""
    column = value.reshape(-1, 1)
    words = torch.as_tensor(words, dtype=torch.int32).expand(column.numel()).reshape(-1, 1)
    return CODECS[codec].decode(CODECS[codec].encode(column, Random(words, words))).view(value.shape).double()


def normal_numbers(kind: str) -> Tensor:
    """fp32 numbers of every exponent of the type's normal numbers: ends of the binade, ties, and 500 random ones."""
    generator = np.random.default_rng(0)
    highest = 126 if kind == "bf16" else 14
    exponents = np.arange(LOWEST_EXPONENT[kind], highest + 1, dtype=np.int64)[:, None]
    tie = 1 << 22 - MANTISSA_BITS[kind]
    special = np.array([0, 1, tie - 1, tie, tie + 1, 3 * tie, 2**23 - 2 * tie, 2**23 - tie, 2**23 - 2, 2**23 - 1])
    mantissas = np.concatenate(
        [np.tile(special, (len(exponents), 1)), generator.integers(0, 2**23, (len(exponents), 500))], 1
    )
    bits = (exponents + 127 << 23 | mantissas).reshape(-1).astype(np.int32)
    value = torch.from_numpy(bits).view(torch.float32)
    return torch.cat([value, -value])


def subnormal_numbers(kind: str) -> Tensor:
    value = torch.rand(10_000, generator=torch.Generator().manual_seed(1)) * 2.0 ** LOWEST_EXPONENT[kind]
    return torch.cat([value, -value, torch.zeros(1)])


def half_unit(kind: str, value: Tensor) -> Tensor:
    """h: half a unit in the last place of `value` in the type, float64."""
    exponent = torch.frexp(value.to(DTYPES[kind]).double()).exponent - 1
    return torch.ldexp(torch.ones_like(value, dtype=torch.float64), exponent.clamp(min=LOWEST_EXPONENT[kind])) * (
        2.0 ** -(MANTISSA_BITS[kind] + 1)
    )


@every_type
def test_24_bits_are_nearest_to_1_in_100_thousand(kind):
    """h / 254 of every normal number, 1.54e-5 of a bf16 weight, and the roundings of fp32."""
    value = normal_numbers(kind)
    error = (stored(f"{kind}+8", value) - value.double()).abs()
    assert (error <= half_unit(kind, value) / 254 + ULP * value.abs()).all()
    assert (error / value.abs()).max() <= {"bf16": 1.55e-5, "fp16": 2.1e-6}[kind]


@every_type
def test_32_bits_are_every_fp32_number(kind):
    """For fp16 save ties that were rounded down (off by h / 2^15)."""
    value = normal_numbers(kind)
    error = (stored(f"{kind}+16", value) - value.double()).abs()
    tie_down = value.double() - value.to(DTYPES[kind]).double() == half_unit(kind, value)
    assert (error[~tie_down | (kind == "bf16")] == 0).all()
    assert (error <= half_unit(kind, value) / 2**15).all()


@every_type
def test_subnormal_weights_have_an_absolute_error(kind):
    """h is constant there: 2^-134 for bf16, which takes a weight of 0 for the master."""
    value = subnormal_numbers(kind)
    h = 2.0 ** {"bf16": -134, "fp16": -25}[kind]
    by_8, by_16 = ((stored(f"{kind}+{bits}", value) - value.double()).abs() for bits in (8, 16))
    is_zero = (value.abs() < 1.01 * h) & (kind == "bf16")
    assert (by_8[is_zero] <= 1.01 * h).all() and (by_16[is_zero] <= h).all()
    assert by_8[~is_zero].max() <= h / 254 + 2.0**-149 + ULP * value.abs().max()
    tie_down = value.double() - value.to(DTYPES[kind]).double() == h
    assert by_16[~is_zero & ~tie_down].max() <= (0 if kind == "bf16" else h / 2**16)
    assert by_16[~is_zero].max() <= h / 2**15


@every_type
def test_stochastic_bounds(kind):
    """h / 127 for a residual of 8 bits, 2 h (a unit in the last place) without one."""
    for numbers in (normal_numbers(kind), subnormal_numbers(kind)):
        words = torch.randint(-(2**31), 2**31, numbers.shape, generator=torch.Generator().manual_seed(2))
        h = half_unit(kind, numbers)
        by_8, by_sr = ((stored(f"{kind}+{b}", numbers, words) - numbers.double()).abs() for b in ("8", "sr"))
        assert (by_8 <= h / 127 + ULP * numbers.abs() + 2.0**-149).all()
        assert (by_sr < 2 * h).all()


@pytest.mark.parametrize("codec", ["bf16+8", "fp16+8", "bf16+sr", "fp16+sr"])
def test_stochastic_weights_are_exact_on_average(codec):
    draws, generator = 10_000, torch.Generator().manual_seed(3)
    value = torch.randn(64, generator=generator) * 10.0 ** torch.linspace(-4, 3, 64)
    words = torch.randint(-(2**31), 2**31, (draws * 64,), generator=generator)
    error = stored(codec, value.repeat(draws), words).view(draws, 64) - value.double()
    rounding = 2.0**-24 * (error.abs().amax(0) + value.abs())
    assert (error.mean(0).abs() <= 4.5 * error.std(0) / draws**0.5 + rounding).all()


@pytest.mark.parametrize("codec", ["bf16+16", "fp16+16", "bf16+sr", "fp16+sr"])
def test_what_was_decoded_is_stored_as_it_is(codec):
    value = torch.cat([f(codec[:4]) for f in (normal_numbers, subnormal_numbers)])
    once = stored(codec, value)
    assert torch.equal(stored(codec, once.float(), words=12345), once)


@pytest.mark.parametrize("codec", ["bf16+8", "bf16+16", "bf16+sr", "fp16+8", "fp16+16", "fp16+sr"])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 0.0])
def test_special_numbers_stay(codec, special):
    value = torch.full((3,), special)
    assert torch.allclose(stored(codec, value), value.double(), equal_nan=True)


@pytest.mark.parametrize("codec", ["bf16+8", "bf16+16"])
@pytest.mark.parametrize("kept", [0.0, -0.0, float("inf"), -float("inf"), float("nan")])
def test_a_weight_that_is_set_by_hand_is_the_master(codec, kept):
    """A residual is left from the weight that was there before; added to the bits of -0, it might make a NaN."""
    parts = CODECS[codec].encode(
        torch.tensor([[1.001], [-0.999], [0.0]]), Random(*[torch.zeros(3, 1, dtype=torch.int32)] * 2)
    )
    parts["weight"] = torch.full_like(parts["weight"], kept)
    assert torch.equal(CODECS[codec].decode(parts).nan_to_num(7.0), torch.full((3, 1), kept).nan_to_num(7.0))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -0x3FFFFF, -1])
@pytest.mark.parametrize("codec", ["bf16+8", "bf16+16", "bf16+sr"])
def test_every_nan_stays_one(codec, bits):
    """Adding to the bits of some of them would give an infinity, or 0."""
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert stored(codec, value, words=-1).isnan().all()


@pytest.mark.parametrize("codec, per_element, clock", [("+16", 2, 0), ("+8", 1, 4), ("+sr", 0, 4)])
@pytest.mark.parametrize("shape", [(), (33,), (0, 3), (64, 65)])
@every_type
def test_bytes_beside_the_weight(kind, codec, per_element, clock, shape):
    codec = CODECS[kind + codec]
    state = StateTensor.empty(torch.Size(shape), DTYPES[kind], torch.device("cpu"), codec, WEIGHT_KEY, 0)
    expected = per_element * torch.Size(shape).numel() + clock
    assert codec.storage_bytes(torch.Size(shape)) == state.storage_bytes == expected


def test_refusals_name_their_reason():
    weight = Slot(WEIGHT_KEY, weight_dtype=torch.bfloat16)
    assert CODECS["bf16+8"].why_not(weight, torch.Size([1])) == CODECS["nearest"].why_not(weight, torch.Size([1])) == ""
    assert "torch.float16 weights, not torch.bfloat16" in CODECS["fp16+8"].why_not(weight, torch.Size([1]))
    assert all("is for weights" in CODECS[n].why_not(Slot("s"), torch.Size([1])) for n in ("bf16+sr", "nearest"))


@pytest.mark.parametrize("bits, bound", [(8, 1.55e-5), (16, 1.2e-7)])
def test_a_state_tensor_keeps_what_the_weight_lacks(bits, bound):
    """`store_weight` splits an fp32 master weight, whole chunks and a rest of it."""
    value = torch.randn(3, 30_000, generator=torch.Generator().manual_seed(4))
    codec = CODECS[f"bf16+{bits}"]
    state = StateTensor.empty(value.shape, torch.bfloat16, value.device, codec, WEIGHT_KEY, 0)
    weight = torch.empty_like(value, dtype=torch.bfloat16)
    state.store_weight(value, weight)
    assert ((state.decode_weight(weight) / value - 1).abs() <= bound).all()
    assert ((weight.float() - value).abs() <= half_unit("bf16", value) * (1 + 2.0**-8)).all()


# training


def sgd_on_bf16(form: str, start: Tensor, grad: Tensor, lr: float, steps: int) -> tuple[Tensor, Tensor]:
    """The weight after `steps` of compiled SGD with one gradient, and its fp32 value."""
    parameter = torch.nn.Parameter(start.bfloat16())
    parameter.grad = grad.bfloat16()
    optimizer = torch.optim.SGD([parameter], lr=lr)
    baoc_compile.prepare(optimizer, plan={"param": form})
    step = torch.compile(optimizer.step, backend="baoc")
    for _ in range(steps):
        step()
    master = baoc_compile.master_weights(optimizer)
    return parameter.detach().float(), master.get(parameter, parameter.detach().float())


@pytest.mark.parametrize("form, tolerance", [("32bit", 1e-4), ("24bit", 0.02), ("stochastic", 0.03), ("nearest", None)])
def test_ten_thousand_small_updates_move_a_weight(form, tolerance):
    """Updates of 1e-5 to weights near 1: bf16 alone, whose unit there is 2^-8 and 2^-7, stays where it was."""
    steps, lr = 10_000, 1e-5
    start = torch.linspace(0.95, 1.05, 1024).bfloat16().float()
    grad = torch.where(torch.arange(1024) % 2 == 0, 1.0, -0.5)
    weight, master = sgd_on_bf16(form, start, grad, lr, steps)
    if tolerance is None:
        assert torch.equal(weight, start)
        return
    in_fp32 = start.clone()
    for _ in range(steps):
        in_fp32 -= lr * grad
    for half in (slice(0, None, 2), slice(1, None, 2)):
        moved, exact = (master - start)[half].double().mean(), (in_fp32 - start)[half].double().mean()
        assert moved == pytest.approx(float(exact), rel=tolerance)
    if form != "stochastic":
        assert ((master - in_fp32).abs() <= (1e-6 if form == "32bit" else 0.02)).all()
        assert ((weight - master).abs() <= half_unit("bf16", weight)).all()


def test_adamw_on_split_weights_tracks_adamw_on_fp32_weights():
    """Weights of 32 bits, state in fp32, the same gradients: what differs is a rounding now and then."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(64, 65, generator=generator).bfloat16()
    ours, fp32 = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    optimizer, exact = (torch.optim.AdamW([p], lr=1e-3, weight_decay=0.1) for p in (ours, fp32))
    baoc_compile.prepare(optimizer, plan={"param": "32bit"})
    step = torch.compile(optimizer.step, backend="baoc")
    ours.grad, fp32.grad = torch.empty_like(ours), torch.empty_like(fp32)
    for _ in range(100):
        ours.grad.copy_(torch.randn(start.shape, generator=generator))
        fp32.grad.copy_(ours.grad)
        step()
        exact.step()
    (master,) = baoc_compile.master_weights(optimizer).values()
    assert (master - fp32).norm() <= 1e-6 * fp32.norm()
    assert (master - fp32).abs().max() <= 1e-5 * fp32.abs().max()
    assert (ours.float() - fp32).norm() > 1e-4 * fp32.norm()  # what the weight alone would be off
