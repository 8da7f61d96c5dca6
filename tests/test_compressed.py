"""The 8-bit and bf16 configurations, step by step: what is stored is the codec of the exact new state.

Before every step the stored state is decoded and handed to the same optimizer in float64; after the step the stored
codes must be what the NumPy reference of the codec makes of that optimizer's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import codec_reference
import numpy as np
import pytest
import torch
from codec_reference import to_numpy
from optimizers import CASES, Case, build, compiled_step, decoded, ulps
from torch import Tensor

import baoc_compile
from baoc_compile import StateTensor

STEPS = 10


def new_parameters() -> list[Tensor]:
    """Of 4,096 elements and more, in sizes that no group divides, two of them not contiguous."""
    generator = torch.Generator().manual_seed(3)
    flat, matrix, wide, image = (
        torch.randn(shape, generator=generator) for shape in [(4096,), (67, 64), (1399, 3), (16, 16, 4, 5)]
    )
    return [flat, matrix, wide.T, image.contiguous(memory_format=torch.channels_last)]


def copy_in(dtype: torch.dtype, case: Case, options: Mapping[str, Any], optimizer: Any) -> tuple[Any, list[Tensor]]:
    """The same eager optimizer with the same (decoded) state, and its parameters, in `dtype`."""
    originals = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [torch.nn.Parameter(p.detach().to(dtype).clone()) for p in originals]
    copied = build(case, parameters, options)
    for original, parameter in zip(originals, parameters, strict=True):
        parameter.grad = original.grad.to(dtype, copy=True)
        for key, value in optimizer.state.get(original, {}).items():
            plain = decoded(value).detach().clone() if isinstance(value, Tensor) else value
            copied.state[parameter][key] = plain.to(dtype) if key in case.slots and plain is not None else plain
    return copied, parameters


def encoded(stored: StateTensor, values: Tensor, clock: int) -> dict[str, np.ndarray]:
    """What the codec of `stored` makes of `values`, by the reference."""
    rows = values.shape[0] if values.ndim > 1 else 1
    return codec_reference.encode_rows(stored.codec.name, to_numpy(values).reshape(rows, -1), stored.salt, clock)


class Mismatches:
    """Counts groups with another exponent than the reference's, and in the other groups elements with another code.

    Where the rule takes differences of nearly equal numbers, float32 itself moves codes: what eager torch's new state
    does to them, `by_eager`, may happen here twice as often.
    """

    def __init__(self) -> None:
        self.exponents = self.groups = self.codes = self.elements = 0

    def add(
        self, found: dict[str, np.ndarray], expected: dict[str, np.ndarray], shape: torch.Size, signed: bool
    ) -> int:
        """Returns the largest difference of a code."""
        name = "codes" if "codes" in expected else "values"
        off = distance(found[name], expected[name], signed)
        if "exponents" in expected:
            other = distance(found["exponents"], expected["exponents"], False)
            assert other.max() <= 1
            self.exponents, self.groups = self.exponents + (other > 0).sum(), self.groups + other.size
            rows, columns = (shape[0], shape[1:].numel()) if len(shape) > 1 else (1, shape.numel())
            same = np.repeat((other == 0).reshape(rows, -1), codec_reference.GROUP_SIZE, axis=1)[:, :columns]
            off = off[same.reshape(-1)]
        self.codes, self.elements = self.codes + (off > 0).sum(), self.elements + off.size
        return off.max()

    def check(self, by_eager: Mismatches) -> None:
        assert self.elements > 0
        assert self.exponents <= 2 * by_eager.exponents + 1 + self.groups / 10_000
        assert self.codes <= 2 * by_eager.codes + 1 + self.elements / 10_000


def distance(a: np.ndarray, b: np.ndarray, signed: bool) -> np.ndarray:
    """How many codes, or bf16 numbers, apart."""

    def ordered(x: np.ndarray) -> np.ndarray:
        wide, sign = x.astype(np.int64), 0x8000 if x.dtype == np.uint16 else 0x80 if signed else 0
        return np.where(wide & sign, -(wide & ~sign), wide)

    return abs(ordered(a) - ordered(b))


@pytest.mark.parametrize("plan", ["8bit", "bf16"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.slots])
def test_every_step_stores_what_the_codec_makes_of_the_exact_state(name, plan):
    case = CASES[name]
    options = {**case.options, **({"foreach": plan == "8bit"} if case.has_foreach else {})}
    parameters = [torch.nn.Parameter(p) for p in new_parameters()]
    for p in parameters:
        p.grad = torch.empty_like(p)
    optimizer = build(case, parameters, options)
    step = compiled_step(optimizer, plan, prepared=True)
    codecs = {key: codec if codec == "fp32" or plan == "8bit" else plan for key, codec in case.slots.items()}
    counts = {key: (Mismatches(), Mismatches()) for key, codec in codecs.items() if codec != "fp32"}
    generator = torch.Generator().manual_seed(4)
    for _ in range(STEPS):
        for p in parameters:
            p.grad.copy_(torch.randn(p.shape, generator=generator))  # a new tensor would make Dynamo retrace Plain
        exact, exact_parameters = copy_in(torch.float64, case, options, optimizer)
        eager, eager_parameters = copy_in(torch.float32, case, options, optimizer)
        clocks = [{k: v.parts["clock"].item() for k, v in compressed(optimizer, p).items()} for p in parameters]
        step()
        exact.step()
        eager.step()
        for p, reference, by_eager, before in zip(parameters, exact_parameters, eager_parameters, clocks, strict=True):
            if before.keys() != counts.keys():
                continue  # the optimizer makes its own state, and this step compresses it before it uses it
            scale = reference.abs().max()
            error, eager_error = (ulps(x, reference, scale, torch.float32).max().item() for x in (p, by_eager))
            assert error <= 2 * eager_error + 2
            for key, clock in before.items():
                stored = optimizer.state[p][key]
                assert stored.parts["clock"] == clock + 1
                expected = encoded(stored, exact.state[reference][key], clock)
                rounded = encoded(stored, eager.state[by_eager][key], clock)
                about = p.shape, getattr(stored.codec, "signed", False)
                largest = counts[key][1].add(rounded, expected, *about)
                found = {name: to_numpy(stored.parts[name]) for name in expected}
                found |= {"codes": found["codes"].view(np.uint8)} if "codes" in found else {}
                assert counts[key][0].add(found, expected, *about) <= max(1, 2 * largest)
    for p in parameters:
        assert {k: codec_of(optimizer.state[p][k]) for k in codecs} == codecs
    for ours, eagers in counts.values():
        ours.check(eagers)


def compressed(optimizer: Any, parameter: Tensor) -> dict[str, StateTensor]:
    state = optimizer.state.get(parameter, {})
    return {key: value for key, value in state.items() if isinstance(value, StateTensor)}


def codec_of(value: Tensor) -> str:
    return value.codec.name if isinstance(value, StateTensor) else "fp32"


def test_slots_that_must_agree_exactly_say_so():
    """Centered RMSprop takes the root of E[g^2] - E[g]^2: rounding either would give NaN."""
    parameter = torch.nn.Parameter(torch.randn(4096))
    parameter.grad = torch.randn(4096)
    optimizer = torch.optim.RMSprop([parameter], centered=True, momentum=0.9)
    compiled_step(optimizer, "8bit", prepared=True)()
    (rule,) = baoc_compile.inspect(optimizer).rules
    for key in ("square_avg", "grad_avg"):
        assert "square root" in rule.slot(key).why_exact
        assert not isinstance(optimizer.state[parameter][key], StateTensor)
    assert rule.slot("momentum_buffer").why_exact == ""


@pytest.mark.parametrize("plan", ["8bit", "bf16"])
@pytest.mark.parametrize("beta1", [0.9, 0.99])
def test_zero_gradients_decay_the_stored_state_as_the_exact_one(plan, beta1):
    """After 30 warm steps, 600 steps without a gradient: the means decay by beta^600, down to 1e-28, to within 3%."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(32_768, generator=generator)
    parameters = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())]
    ours, exact = (torch.optim.AdamW([p], betas=(beta1, 0.999)) for p in parameters)
    step = compiled_step(ours, plan, prepared=True)
    for t in range(630):
        grad = torch.randn(start.shape, generator=generator) if t < 30 else torch.zeros_like(start)
        parameters[0].grad, parameters[1].grad = grad, grad.double()
        step()
        exact.step()
    for key in ("exp_avg", "exp_avg_sq"):
        stored, expected = ours.state[parameters[0]][key], exact.state[parameters[1]][key]
        assert isinstance(stored, StateTensor)
        assert stored.decode().double().abs().mean() == pytest.approx(expected.abs().mean().item(), rel=0.03)


def test_state_is_compressed_after_a_step_without_gradients():
    """torch gives up tracing a step that once found no gradient; the next ones run eagerly on compressed state."""
    parameter = torch.nn.Parameter(torch.ones(4096))
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    step = compiled_step(optimizer, "8bit", prepared=True)
    for has_gradient in (True, False, True, True):
        parameter.grad = torch.ones(4096) if has_gradient else None
        step()
    buffer = optimizer.state[parameter]["momentum_buffer"]
    assert codec_of(buffer) == "e2m5"
    exact = 1 + 0.9 * (1 + 0.9)  # three gradients of 1; equal values are the group's largest, rounded to bf16
    assert (buffer.decode() / exact - 1).abs().max() < 3 * 2**-7
