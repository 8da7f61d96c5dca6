"""Shared slots: the step uses their projection onto means, as an independent float64 optimizer in NumPy does.

Eager fp32 torch is the measure: baoc's error against that reference may be twice eager's against its own float64 run,
plus half an ulp for each step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from optimizers import ulps
from torch import Tensor

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.runtime.session import session_of

STEPS = 100
FORMS = ["row", "column", "head:4", "column_head:8", "run:16", "tensor", "factored"]
SHAPES = [(96, 64), (32, 8, 4, 4), (4608,), (10, 10)]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


# the reference


def project(form: str, value: np.ndarray) -> np.ndarray:
    """Every element becomes the mean of its set."""
    name, _, size = form.partition(":")
    d, matrix = int(size or 1), value.reshape(len(value), -1)
    rows, columns = matrix.shape
    parts, axes = {
        "row": ((rows, columns), 1),
        "column": ((rows, columns), 0),
        "head": ((rows // d, d * columns), 1),
        "column_head": ((rows, columns // d, d), (0, 2)),
        "run": ((-1, d), 1),
        "tensor": ((1, -1), 1),
        "exact": ((-1, 1), 1),
    }[name]
    sets = value.reshape(parts)
    return np.broadcast_to(sets.mean(axes, keepdims=True), sets.shape).reshape(value.shape)


class Average:
    """s' = P(decay * s + increment), kept as the means that P needs."""

    def __init__(self, form: str, shape: tuple[int, ...]):
        self.means = {
            name: np.zeros(shape) for name in (("row", "column", "tensor") if form == "factored" else (form,))
        }

    def updated(self, decay: float, increment: np.ndarray) -> np.ndarray:
        for name, mean in self.means.items():
            self.means[name] = decay * mean + project(name, increment)
        return self.value

    @property
    def value(self) -> np.ndarray:
        if len(self.means) == 1:
            return next(iter(self.means.values()))
        row, column, mean = self.means.values()
        return np.divide(row * column, mean, out=np.zeros_like(mean), where=mean > 0)


class AdamW:
    """float64 AdamW of one parameter."""

    def __init__(self, start: Tensor, forms: dict[str, str]):
        self.p, self.t = start.double().numpy().copy(), 0
        self.m, self.v = (Average(forms[key], self.p.shape) for key in ("exp_avg", "exp_avg_sq"))

    def step(self, grad: Tensor) -> None:
        g, lr, (b1, b2) = grad.double().numpy(), OPTIONS["lr"], OPTIONS["betas"]
        self.t += 1
        m, v = self.m.updated(b1, (1 - b1) * g), self.v.updated(b2, (1 - b2) * g * g)
        m, v = m / (1 - b1**self.t), v / (1 - b2**self.t)
        self.p = self.p * (1 - lr * OPTIONS["weight_decay"]) - lr * m / (np.sqrt(v) + 1e-8)


# runs


def starts_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def gradients_of(shapes: Sequence[tuple[int, ...]], steps: int = STEPS, dtype: torch.dtype = torch.float32) -> list:
    """Rows, columns and tensors differ in size; the first index has no gradient, and some steps have none at all."""
    generator = torch.Generator().manual_seed(2)
    scales = [torch.exp(torch.randn(shape, generator=generator)) for shape in shapes]
    gradients = []
    for t in range(steps):
        grads = [torch.randn(scale.shape, generator=generator) * scale for scale in scales]
        for grad in grads:
            grad[0] = 0.0
        gradients.append([(grad * (t % 11 != 0)).to(dtype) for grad in grads])
    return gradients


def run(optimizer, gradients, step: Callable | None = None) -> list[Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    for grads in gradients:
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad.to(p.dtype, copy=True)
        (step or optimizer.step)()
    return [p.detach() for p in parameters]


def adamw(starts: Sequence[Tensor], dtype: torch.dtype | None = None, **options) -> torch.optim.AdamW:
    parameters = [torch.nn.Parameter(start.to(dtype or start.dtype, copy=True)) for start in starts]
    return torch.optim.AdamW(parameters, **OPTIONS | options)


@cache
def stock_adamw(dtype: torch.dtype) -> list[Tensor]:
    return run(adamw(starts_of(SHAPES), dtype), gradients_of(SHAPES))


def compiled(optimizer, plan) -> Callable:
    torch._dynamo.reset()
    baoc_compile.prepare(optimizer, plan=plan)
    return torch.compile(optimizer.step, backend="baoc", options={"plan": plan})


def assert_as_exact_as_eager(ours, reference: Sequence, eager: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    for p, wanted, by_eager, by_exact in zip(ours, map(torch.as_tensor, reference), eager, exact, strict=True):
        scale = by_exact.abs().max()
        error = ulps(p, wanted, scale, torch.float32).max()
        allowed = 2 * ulps(by_eager, by_exact, scale, torch.float32).max() + STEPS / 2
        assert error <= allowed, f"{tuple(p.shape)}: {error} ulps, allowed {allowed}"


def forms_in(optimizer) -> list[dict[str, str]]:
    """The exact reference needs what was really decided: small and misfitting tensors stay in fp32."""
    found = []
    for stored in session_of(optimizer).storage.parameters.values():
        codecs = stored.codecs
        found.append({key: codec.name if codec.mechanism == "sharing" else "exact" for key, codec in codecs.items()})
    return found


PLANS = [{"exp_avg": "fp32", "exp_avg_sq": form} for form in FORMS]
PLANS += [{"exp_avg": "row", "exp_avg_sq": "column"}, {"exp_avg": "row", "exp_avg_sq": "factored"}]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(plan.values()))
def test_adamw_equals_its_float64_definition(plan):
    starts, gradients = starts_of(SHAPES), gradients_of(SHAPES)
    ours = adamw(starts)
    found = run(ours, gradients, compiled(ours, plan))
    forms = forms_in(ours)
    assert [f["exp_avg_sq"] for f in forms[:2]] == [plan["exp_avg_sq"]] * 2
    references = [AdamW(start, form) for start, form in zip(starts, forms, strict=True)]
    for grads in gradients:
        for reference, grad in zip(references, grads, strict=True):
            reference.step(grad)
    eager, exact = (stock_adamw(dtype) for dtype in (torch.float32, torch.float64))
    assert_as_exact_as_eager(found, [r.p for r in references], eager, exact)
    for p, reference in zip(ours.param_groups[0]["params"], references, strict=True):
        for key, wanted in (("exp_avg", reference.m.value), ("exp_avg_sq", reference.v.value)):
            stored = ours.state[p][key]
            stored = stored.decode() if isinstance(stored, StateTensor) else stored
            error = (stored - torch.as_tensor(wanted)).abs().max()
            assert error <= STEPS * 2**-23 * abs(wanted).max(), key  # one rounding for each storing, of few factors


@pytest.mark.parametrize("form", ["row", "column", "factored"])
def test_what_does_not_fit_stays_in_full_precision_and_says_why(form):
    ours = adamw(starts_of(SHAPES))
    baoc_compile.prepare(ours, plan={"exp_avg": "fp32", "exp_avg_sq": form})
    *_, vector, small = (p.slots["exp_avg_sq"] for p in session_of(ours).storage.parameters.values())
    assert vector.codec.name == small.codec.name == "fp32"
    assert "at least 2 dimensions" in vector.reason and "(4608,)" in vector.reason
    assert "fewer than 4096" in small.reason


def test_sizes_must_divide():
    for form, shape in [("head:5", (96, 64)), ("column_head:7", (96, 64)), ("run:1000", (96, 64))]:
        ours = adamw(starts_of([shape]))
        baoc_compile.prepare(ours, plan={"exp_avg": "fp32", "exp_avg_sq": form})
        assert f"so {form} does not fit" in session_of(ours).storage.of(0).slots["exp_avg_sq"].reason


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_shared_by_rows(nesterov):
    shapes, mu, lr, decay = SHAPES[:2], 0.9, 0.01, 0.1
    starts, gradients = starts_of(shapes), gradients_of(shapes)

    def sgd(dtype=torch.float32):
        parameters = [torch.nn.Parameter(start.to(dtype, copy=True)) for start in starts]
        return torch.optim.SGD(parameters, lr=lr, momentum=mu, weight_decay=decay, nesterov=nesterov)

    ours = sgd()
    found = run(ours, gradients, compiled(ours, {"momentum_buffer": "row"}))
    references = [start.double().numpy() for start in starts]
    buffers = [Average("row", shape) for shape in shapes]
    for grads in gradients:
        for i, grad in enumerate(grads):
            g = grad.double().numpy() + decay * references[i]
            buffer = buffers[i].updated(mu, g)
            references[i] = references[i] - lr * (g + mu * buffer if nesterov else buffer)
    eager, exact = (run(sgd(dtype), gradients) for dtype in (torch.float32, torch.float64))
    assert_as_exact_as_eager(found, references, eager, exact)


@pytest.mark.parametrize("form", ["column_head:8", "factored"])
def test_layout_and_order_of_parameters_decide_nothing(form):
    shapes, plan = SHAPES[:2], {"exp_avg": "fp32", "exp_avg_sq": form}
    starts, gradients = starts_of(shapes), gradients_of(shapes, 5)
    strided = [starts[0].mT.contiguous().mT, starts[1].contiguous(memory_format=torch.channels_last)]
    plain, other, reverse = adamw(starts), adamw(strided), adamw(starts[::-1])
    expected = run(plain, gradients, compiled(plain, plan))
    parameters = other.param_groups[0]["params"]
    assert not any(p.is_contiguous() for p in parameters)
    assert all(map(torch.equal, run(other, gradients, compiled(other, plan)), expected))
    backwards = run(reverse, [grads[::-1] for grads in gradients], compiled(reverse, plan))
    assert all(map(torch.equal, backwards[::-1], expected))


@pytest.mark.parametrize("form", ["row", "factored"])
def test_bf16_parameters_are_the_exact_ones_rounded_once(form):
    """From the parameter that was there, every step rounds the reference's result to nearest."""
    shapes = SHAPES[:2]
    starts, gradients = starts_of(shapes, torch.bfloat16), gradients_of(shapes, 20, torch.bfloat16)
    ours = adamw(starts)
    step = compiled(ours, {"exp_avg": "fp32", "exp_avg_sq": form})
    references = [AdamW(start, {"exp_avg": "exact", "exp_avg_sq": form}) for start in starts]
    for grads in gradients:
        for reference, p, grad in zip(references, ours.param_groups[0]["params"], grads, strict=True):
            reference.p = p.detach().double().numpy()
            reference.step(grad)
        for p, reference in zip(run(ours, [grads], step), references, strict=True):
            assert (abs(p.double().numpy() - reference.p) <= 2**-8 * (1 + 1e-3) * abs(reference.p) + 1e-9).all()


@pytest.mark.parametrize("form", FORMS)
def test_zero_gradients_move_nothing(form):
    ours = adamw(starts_of([(96, 64)]), weight_decay=0.0)
    (p,) = run(ours, [[torch.zeros(96, 64)]] * 3, compiled(ours, {"exp_avg": "fp32", "exp_avg_sq": form}))
    assert torch.equal(p, starts_of([(96, 64)])[0])


@pytest.mark.parametrize(
    ("form", "entries"),
    list(zip(FORMS, [96 + 32, 64 + 128, 24 + 8, 8 + 16, 384 + 256 + 288, 3, 96 + 64 + 1 + 32 + 128 + 1], strict=True)),
)
def test_state_takes_4_bytes_for_each_mean(form, entries):
    ours = adamw(starts_of(SHAPES[:3]))
    step = compiled(ours, {"exp_avg": "fp32", "exp_avg_sq": form})
    shared = [ours.state[p]["exp_avg_sq"] for p in ours.param_groups[0]["params"]]
    assert sum(s.storage_bytes for s in shared if isinstance(s, StateTensor)) == 4 * entries
    numel = sum(p.numel() for p in ours.param_groups[0]["params"])
    full = sum(s.numel() for s in shared if not isinstance(s, StateTensor))
    before = baoc_compile.state_bytes(ours)
    assert before == 4 * (entries + numel + full) + 4 * len(shared)  # beside exp_avg, and step counts
    run(ours, gradients_of(SHAPES[:3], 2), step)
    assert baoc_compile.state_bytes(ours) == before


@pytest.mark.parametrize("foreach", [False, True], ids=["", "foreach"])
@pytest.mark.parametrize("form", ["column", "run:16", "factored"])
def test_an_uncompiled_step_does_the_same(form, foreach):
    shapes, plan = SHAPES[:2], {"exp_avg": "row", "exp_avg_sq": form}
    gradients = gradients_of(shapes, 10)
    ours, eager = (adamw(starts_of(shapes), foreach=foreach) for _ in range(2))
    baoc_compile.prepare(eager, plan=plan)
    for a, b in zip(run(ours, gradients, compiled(ours, plan)), run(eager, gradients), strict=True):
        assert ulps(a, b, a.abs().max(), torch.float32).max() <= 10
    assert isinstance(eager.state[eager.param_groups[0]["params"][0]]["exp_avg_sq"], StateTensor)


@pytest.mark.parametrize("plan", [{"exp_avg": "dropped", "exp_avg_sq": "factored"}, {"exp_avg": "row", "*": "run:16"}])
def test_checkpoints(plan):
    """A cut run ends with the bits of an uncut one; what is exported loads into stock AdamW, which goes on."""
    starts, gradients = starts_of(SHAPES), gradients_of(SHAPES, 6)
    uncut, cut = adamw(starts), adamw(starts)
    expected = run(uncut, gradients, compiled(uncut, plan))
    half = run(cut, gradients[:3], compiled(cut, plan))
    file = io.BytesIO()
    torch.save(cut.state_dict(), file)
    file.seek(0)
    resumed = adamw(half)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(torch.equal, run(resumed, gradients[3:], compiled(resumed, plan)), expected))
    stock = adamw(expected)
    stock.load_state_dict(baoc_compile.export_state_dict(resumed))
    for p, q in zip(stock.param_groups[0]["params"], resumed.param_groups[0]["params"], strict=True):
        for key, value in resumed.state[q].items():
            plain = value.decode() if isinstance(value, StateTensor) else value
            assert type(stock.state[p][key]) is Tensor and torch.equal(stock.state[p][key], plain)
    assert all(p.isfinite().all() for p in run(stock, gradients[3:]))
