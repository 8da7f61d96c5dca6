"""The fp32 configuration is as exact as eager torch, whatever the optimizer, the layout and the type.

Every run is compared with the same optimizer in float64. The error of baoc's run may be at most twice eager torch's,
plus half an ulp for each step: what rounding the parameter itself costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from optimizers import CASE_IDS, CASES, CASES_WITH_FOREACH, Case, Gradients, build, compiled_step, decoded, ulps
from torch import Tensor

STEPS = 20
LAYOUTS = ("contiguous", "transposed", "strided", "channels_last")


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout, where the number of dimensions allows it."""
    if layout == "transposed" and values.ndim >= 2:
        return values.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([values, values], -1)[..., 0]
    if layout == "channels_last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values.contiguous()


@dataclass
class Trained:
    """A finished run. `scales`: the largest magnitude that each parameter had on the way, `slot_scales` the same of slots, by
    index and key. `gradients`: the last ones,
    as the step left them. `touched`: parameters whose gradient some step changed (foreach SGD with nesterov does)."""

    optimizer: Any
    parameters: list[Tensor]
    scales: list[Tensor]
    gradients: list[Tensor | None]
    touched: set[int]
    slot_scales: dict[tuple[int, str], Tensor]

    def slot(self, index: int, key: str) -> Tensor | None:
        value = self.optimizer.state.get(self.parameters[index], {}).get(key)
        return None if value is None else decoded(value).detach()


def train(
    case: Case,
    options: Mapping[str, Any],
    starts: list[Tensor],
    gradients: Gradients,
    compile_step: Callable[[Any], Callable[[], Any]] = lambda optimizer: optimizer.step,
) -> Trained:
    """Feeds the gradients to a fresh optimizer."""
    parameters = [torch.nn.Parameter(start.clone(memory_format=torch.preserve_format)) for start in starts]
    optimizer = build(case, parameters, options)
    step = compile_step(optimizer)
    scales, touched = [largest(start) for start in starts], set()
    slot_scales: dict[tuple[int, str], Tensor] = {}
    for grads in gradients:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = None if grad is None else grad.clone(memory_format=torch.preserve_format)
        step()
        touched |= {i for i, g in enumerate(grads) if g is not None and not torch.equal(parameters[i].grad, g)}
        scales = [torch.maximum(scale, largest(p.detach())) for scale, p in zip(scales, parameters, strict=True)]
        for i, p in enumerate(parameters):
            for key in case.slots:
                if (value := optimizer.state.get(p, {}).get(key)) is not None:
                    now = largest(decoded(value).detach())
                    slot_scales[i, key] = torch.maximum(slot_scales.get((i, key), now), now)
    return Trained(optimizer, parameters, scales, [p.grad for p in parameters], touched, slot_scales)


def largest(values: Tensor) -> Tensor:
    """The largest finite magnitude; 0 if there is none."""
    finite = values[torch.isfinite(values)]
    return finite.abs().max().double() if finite.numel() else torch.zeros((), dtype=torch.float64)


def cast(values: Any, dtype: torch.dtype) -> Any:
    """The same tensors, lists of them included, in another type."""
    if isinstance(values, list):
        return [cast(value, dtype) for value in values]
    return None if values is None else values.to(dtype)


def worst(values: list[Tensor]) -> float:
    """The largest of all elements of all tensors."""
    return max((v.max().item() for v in values if v.numel()), default=0.0)


def check(
    case: Case, options: Mapping[str, Any], starts: list[Tensor], gradients: Gradients, *, prepared: bool
) -> Trained:
    """Trains in float64, eagerly and with baoc, and compares parameters, slots and counters. Returns baoc's run."""
    torch._dynamo.reset()
    dtype = starts[0].dtype
    # float64 is its own reference: there eager's error, in ulps, is taken from float32
    eager_dtype = torch.float32 if dtype == torch.float64 else dtype
    exact = train(case, options, cast(starts, torch.float64), cast(gradients, torch.float64))
    eager = train(case, options, cast(starts, eager_dtype), cast(gradients, eager_dtype))
    ours = train(case, options, starts, gradients, lambda o: compiled_step(o, "fp32", prepared=prepared))

    unit = torch.float32 if dtype == torch.float64 and has_float32_scalars(case, exact) else dtype
    stepped = [i for i in range(len(starts)) if any(grads[i] is not None for grads in gradients)]

    def compare(what: str, values: Callable[[Trained, int], Tensor | None], scale: Callable[[int], Tensor]) -> None:
        errors, eager_errors = [], []
        for index in stepped:
            reference, found = values(exact, index), values(ours, index)
            assert (reference is None) == (found is None), f"{what} exists in one run only"
            if reference is None:
                continue
            by_eager = values(eager, index)
            valid = torch.isfinite(by_eager)
            errors.append(torch.where(valid, ulps(found, reference, scale(index), unit), 0.0))
            eager_errors.append(ulps(by_eager, reference, scale(index), eager_dtype))
            assert not (found.isnan() & reference.isfinite() & valid).any(), f"{what}: NaN"
        assert worst(errors) <= 2 * worst(eager_errors) + STEPS / 2, f"{what}: eager {worst(eager_errors)} ulps"

    assert ours.touched <= exact.touched, "changed a gradient that torch leaves as it is"
    compare("gradient", lambda run, i: run.gradients[i], lambda i: largest(exact.gradients[i]))
    compare("parameter", lambda run, i: run.parameters[i].detach(), lambda i: exact.scales[i])
    for key in case.slots:
        compare(key, lambda run, i, key=key: run.slot(i, key), lambda i, key=key: exact.slot_scales[i, key])
    for index, (theirs, mine) in enumerate(zip(exact.parameters, ours.parameters, strict=True)):
        if index not in stepped:
            assert torch.equal(mine, starts[index])
            continue
        expected = {k: v for k, v in exact.optimizer.state.get(theirs, {}).items() if k not in case.slots}
        found = {k: v for k, v in ours.optimizer.state.get(mine, {}).items() if k not in case.slots}
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            if key in ("step", "t"):
                assert float(found[key]) == float(value)
            elif value is not None:
                torch.testing.assert_close(float(found[key]), float(value), rtol=STEPS / 2 * 2**-23, atol=0.0)
    return ours


def has_float32_scalars(case: Case, run: Trained) -> bool:
    """torch keeps NAdam's `mu_product` and ASGD's `eta` in float32 whatever the parameter's type: no run is better."""
    entries = {key for state in run.optimizer.state.values() for key, value in state.items() if value is not None}
    return not entries <= {*case.slots, "step", "t"}


def normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def every_optimizer() -> list:
    """Prepared and not; the half that mixes nothing new (foreach and not prepared, or the reverse) is slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(
            name,
            options,
            prepared,
            id=f"{case_id}{'-prepared' if prepared else ''}",
            marks=slow if options.get("foreach", prepared) != prepared else (),
        )
        for (name, options), case_id in zip(CASES_WITH_FOREACH, CASE_IDS, strict=True)
        for prepared in (False, True)
    ]


@pytest.mark.parametrize(("name", "options", "prepared"), every_optimizer())
def test_every_optimizer(name, options, prepared):
    """Two groups, five shapes; one gradient comes and goes. All parameters move."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(), (0,), (33,), (2, 3, 4, 5), (70, 9)]
    starts = [normal(shape, generator, torch.float32) for shape in shapes]
    starts[3] = laid_out(starts[3], "channels_last")
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(STEPS)]
    for grads in gradients[1::2]:
        grads[2] = None
    ours = check(CASES[name], options, starts, gradients, prepared=prepared)
    for start, parameter in zip(starts, ours.parameters, strict=True):
        assert start.numel() == 0 or not torch.equal(start, parameter)


@dataclass(frozen=True)
class Tensors:
    """One parameter and its gradients. `missing`: the steps at which there is none."""

    shape: tuple[int, ...]
    layout: str
    grad_layout: str
    missing: str


_shapes = st.one_of(
    st.lists(st.integers(0, 7), max_size=4).map(tuple), st.sampled_from([(), (33,), (31, 3), (2, 3, 4, 5)])
)
_tensors = st.builds(
    Tensors,
    _shapes,
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["never", "never", "odd steps", "always"]),
)
_dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def dynamo_is_exact(name: str, tensors: list[Tensors], dtype: torch.dtype) -> bool:
    """False where torch 2.13 goes wrong before any backend is called.

    It misses the retrace for SGD's new momentum buffer beside a parameter without state; and it computes the step's
    scalars in float32 once the graph is broken, by Adamax's non-contiguous `out=` or a step without any gradient.
    """
    if CASES[name].make is torch.optim.SGD:
        return all(t.missing != "always" for t in tensors)
    is_whole = any(t.missing == "never" for t in tensors)
    if CASES[name].make is torch.optim.Adamax:
        is_whole = is_whole and all(t.layout == "contiguous" for t in tensors)
    return dtype != torch.float64 or is_whole


def drawn_problem(name: str, data: st.DataObject) -> None:
    """Draws options, tensors in any shapes, layouts and types, and whether the optimizer is prepared."""
    options = data.draw(CASES[name].hyperparameters(), label="options")
    tensors = data.draw(st.lists(_tensors, min_size=1, max_size=3), label="tensors")
    dtype, seed = data.draw(_dtypes, label="dtype"), data.draw(st.integers(0, 99), label="seed")
    assume(dynamo_is_exact(name, tensors, dtype))
    generator = torch.Generator().manual_seed(seed)
    starts = [laid_out(normal(t.shape, generator, dtype), t.layout) for t in tensors]
    gradients = [
        [
            None
            if t.missing == "always" or (t.missing == "odd steps" and step % 2)
            else laid_out(normal(t.shape, generator, dtype), t.grad_layout)
            for t in tensors
        ]
        for step in range(STEPS)
    ]
    check(CASES[name], options, starts, gradients, prepared=data.draw(st.booleans(), label="prepared"))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(data=st.data())
def test_any_problem(name, data):
    """Any shapes, layouts, types, hyperparameters and missing gradients."""
    drawn_problem(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60)
@given(data=st.data())
def test_any_problem_thoroughly(name, data):
    """The same with more examples."""
    drawn_problem(name, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["SGD-momentum", "AdamW", "Lion"])
def test_steps_without_any_gradient(name, dtype):
    """A step at which every gradient is missing changes nothing, and neither do the steps after it stop working."""
    generator = torch.Generator().manual_seed(2)
    gradients = [[normal((33,), generator, dtype)] if t % 3 != 1 else [None] for t in range(STEPS)]
    check(CASES[name], CASES[name].options, [normal((33,), generator, dtype)], gradients, prepared=False)


def test_prepared_parameters_of_which_one_never_has_a_gradient():
    """State that `prepare` fills for some parameters only must not hide from Dynamo what the others' becomes."""
    generator = torch.Generator().manual_seed(6)
    shapes = [(3,), (4,), ()]
    starts = [normal(shape, generator, torch.float32) for shape in shapes]
    gradients = [[None, *(torch.randn(shape, generator=generator) for shape in shapes[1:])] for _ in range(STEPS)]
    check(CASES["SGD-momentum"], CASES["SGD-momentum"].options, starts, gradients, prepared=True)


def in_parts(optimizer: Any, prepared: bool) -> Callable[[], Any]:
    compiled_step(optimizer, "fp32", prepared=prepared)
    options = {"plan": "fp32", "inner_backend": "eager"}
    return torch.compile(optimizer.step, backend="baoc", options=options)


@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
def test_a_step_that_dynamo_traces_in_parts(prepared):
    """Adamax over a non-contiguous parameter breaks the graph, and Dynamo's scalars are float32 then.

    The parts go to the inner backend: "eager", because torch 2.13's own "aot_eager" and "inductor" turn the 0-dim
    float64 parameter into NaN here, without baoc too.
    """
    generator = torch.Generator().manual_seed(7)
    starts = [
        laid_out(normal((31, 3), generator, torch.float64), "transposed"),
        normal((), generator, torch.float64),
    ]
    gradients = [[normal(start.shape, generator, torch.float64) for start in starts] for _ in range(STEPS)]
    options = {"foreach": False, "eps": 1e-5}
    exact = train(CASES["Adamax"], options, starts, gradients)
    ours = train(CASES["Adamax"], options, starts, gradients, lambda o: in_parts(o, prepared))
    for p, expected, scale in zip(ours.parameters, exact.parameters, exact.scales, strict=True):
        assert torch.equal(p.isfinite(), expected.isfinite())
        assert ulps(p, expected, scale, torch.float32).max() <= STEPS / 2
