"""Whole steps by interpreted Triton: against C++, against float64, every operation of the dialect, and the way back to torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from optimizers import CASES, compiled_step, decoded, rule_of, ulps
from program_cases import assert_same_bits, bits

from baoc_compile.core.errors import BaocWarning, CannotEmit
from baoc_compile.core.program_graph import ProgramGraph, Signature, TensorArguments
from baoc_compile.kernels.cpp.program import CppProgram
from baoc_compile.kernels.dialect.operations import OPERATIONS as DIALECT
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.kernels.triton.program import TritonProgram
from baoc_compile.passes.programs import lower, make_programs
from baoc_compile.passes.programs.compose_program import compose_step

pytestmark = [pytest.mark.interpreted, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]
SHAPES = [(), (7, 9), (1300,)]


@pytest.fixture
def on_a_gpu(monkeypatch) -> Callable[[], list[TritonProgram]]:
    """Call it, and from then on steps are lowered to Triton; returns the programs to be."""

    def start() -> list[TritonProgram]:
        programs: list[TritonProgram] = []

        def lowered(graph):
            programs.append(TritonProgram(graph))
            return programs[-1]

        monkeypatch.setattr(lower, "CppProgram", lowered)
        monkeypatch.setattr(make_programs, "_PROGRAMS", {})
        return programs

    return start


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def trained(name: str, plan: str, steps: int = 3, compiled: bool = True) -> list[dict[str, torch.Tensor]]:
    """Parameters and state after some steps, with a learning rate that changes."""
    torch._dynamo.reset()
    parameters = [torch.nn.Parameter(start) for start in gradients(99)]
    optimizer = CASES[name].make(parameters, **CASES[name].options)
    step = compiled_step(optimizer, plan, prepared=False) if compiled else optimizer.step
    for i in range(steps):
        for parameter, grad in zip(parameters, gradients(i), strict=True):
            parameter.grad = grad
        optimizer.param_groups[0]["lr"] = 0.01 / (i + 1)
        step()
    return [{"param": p.detach(), **{k: decoded(v) for k, v in optimizer.state[p].items()}} for p in parameters]


#: A number that the step's prelude computes, a running product, state of three kinds.
FAST = {"ASGD", "NAdam", "Rprop"}
EXACT = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in CASES if n != "ThreeSlots"]


@pytest.mark.parametrize("name", EXACT)
def test_several_steps_give_the_same_bits_as_cpp(name, on_a_gpu):
    by_cpp, launched = trained(name, "8bit"), on_a_gpu()
    for ours, theirs in zip(by_cpp, trained(name, "8bit"), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, torch.Tensor):
                assert bits(value).equal(bits(theirs[key])), key
            else:
                assert value == theirs[key]
    assert launched


# against float64


def sgd(p, gradient, lr, state):
    """momentum 0.9, Nesterov's."""
    state["m"] = 0.9 * state["m"] + gradient if "m" in state else gradient
    return p - lr * (gradient + 0.9 * state["m"])


def adamw(p, gradient, lr, state):
    """torch's defaults: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01."""
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + (1 - 0.9) * gradient
    state["v"] = 0.999 * state.get("v", 0.0) + (1 - 0.999) * gradient**2
    direction = state["m"] / (1 - 0.9**t) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-8)
    return p * (1 - lr * 0.01) - lr * direction


def three_slots(p, gradient, lr, state):
    t = state["t"] = state.get("t", 0) + 1
    state["a"] = 0.9 * state.get("a", 0.0) + (1 - 0.9) * gradient
    state["b"] = 0.99 * state.get("b", 0.0) + 0.01 * gradient**2
    state["c"] = 0.5 * state.get("c", 0.0) + abs(gradient)
    direction = state["a"] / (np.sqrt(state["b"]) + 1e-4) / (1 - 0.9**t)
    return p - lr * (direction + 0.1 * np.tanh(state["c"]))


@pytest.mark.parametrize("name, rule", [("SGD-nesterov", sgd), ("AdamW", adamw), ("ThreeSlots", three_slots)])
def test_as_exact_as_eager_torch(name, rule, on_a_gpu):
    """At most twice eager torch's error, and half a unit in the last place for each step."""
    steps, launched = 4, on_a_gpu()
    eager, ours = (trained(name, "fp32", steps, compiled) for compiled in (False, True))
    assert launched
    for i, start in enumerate(gradients(99)):
        p, state = start.double().numpy(), {}
        for step in range(steps):
            p = rule(p, gradients(step)[i].double().numpy(), 0.01 / (step + 1), state)
        exact = torch.as_tensor(p)
        errors = [ulps(run[i]["param"], exact, exact.abs().max(), torch.float32).max() for run in (ours, eager)]
        assert errors[0] <= 2 * errors[1] + steps / 2


# operations


class Elementwise(torch.optim.Optimizer):
    """p = function(p, gradient)."""

    def __init__(self, parameters, function):
        super().__init__(parameters, {})
        self.function = function

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.function(p, p.grad))


def program_graph(function, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ProgramGraph:
    optimizer = Elementwise([torch.nn.Parameter(torch.zeros(3, 4))], function)
    (graph,) = compose_step(rule_of(optimizer), {}, Signature(device, dtype, dtype))
    return graph


def batch(dtype: torch.dtype = torch.float32) -> list[TensorArguments]:
    """All pairs of special values, and random ones."""
    infinity = float("inf")
    special = torch.tensor([0.0, -0.0, 0.3, 0.5, 1.5, 2.5, -0.5, -2.0, 1e-40, 1e30, infinity, -infinity, float("nan")])
    generator = torch.Generator().manual_seed(0)
    p = torch.cat([special.repeat_interleave(13), 3 * torch.randn(700, generator=generator)])
    grad = torch.cat([special.repeat(13), 3 * torch.randn(700, generator=generator)])
    tensors = {"param": p.to(dtype), "grad": grad.to(dtype)}
    return [TensorArguments(p.numel(), tensors, {"c0": 0.7, "c1": 2.3, "c2": -0.4})]


def _of_p(function, p, gradient):
    return function(p)


OPERATIONS = {
    "add, sub, mul, div": lambda p, g: (p + g) * (p - g) / g,
    "rsub, neg": lambda p, g: (2 - p) * -g,
    "abs, sqrt": lambda p, g: p.abs().sqrt() - g.abs(),
    "rsqrt, reciprocal": lambda p, g: p.abs().rsqrt() + g.reciprocal(),
    "sign, copysign": lambda p, g: p.sign() + torch.copysign(p, g),
    "maximum, minimum": lambda p, g: torch.maximum(p, g) + torch.minimum(p, 2 * g),
    "clamp": lambda p, g: p.clamp(-1.0, 2.0) + g.clamp_min(0.5) + g.clamp_max(0.25),
    "floor, ceil": lambda p, g: p.floor() + 0.1 * g.ceil(),
    "trunc, round": lambda p, g: p.trunc() + 0.1 * g.round(),
    "eq, ne, lt": lambda p, g: torch.where((p == g) | (p != 0.5) & (p < g), p, g),
    "le, gt, ge": lambda p, g: torch.where((p <= g) ^ (p > 0.0) ^ (g >= 0.5), p, g),
    "isnan, isinf": lambda p, g: torch.where(p.isnan(), 1.0, torch.where(g.isinf(), 2.0, p)),
    "logical": lambda p, g: torch.where(torch.logical_and(p > 0, g > 0) | torch.logical_not(p < g), p, g),
    "logical, of numbers": lambda p, g: torch.where(torch.logical_and(p, g) | torch.logical_or(g, p.isnan()), p, -g),
    "small powers": lambda p, g: p**2 + g**3 + p.abs() ** 0.5 + g**-1,
    "fmod": lambda p, g: torch.fmod(p, g),
    "lerp": lambda p, g: torch.lerp(p, g, 0.3),
}
NAMES = ("exp", "expm1", "log", "log1p", "log2", "sin", "cos", "tanh", "erf", "sigmoid")
TRANSCENDENTAL = {"pow": torch.pow, **{name: partial(_of_p, getattr(torch, name)) for name in NAMES}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("function", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_give_the_same_bits_as_cpp(function, dtype):
    graph, ours, theirs = program_graph(function, dtype=dtype), batch(dtype), batch(dtype)
    CppProgram(graph)(ours)
    TritonProgram(graph)(theirs)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("name", TRANSCENDENTAL)
def test_transcendental_operations_are_float64_ones_rounded(name):
    """To a unit in the last place; the sigmoid is three operations, of half a unit each."""
    graph, (row,) = program_graph(TRANSCENDENTAL[name]), batch()
    p, grad = (tensor.double().clone() for tensor in row.tensors.values())
    TritonProgram(graph)([row])
    exact, found = TRANSCENDENTAL[name](p, grad), row.tensors["param"]
    limits = torch.finfo(torch.float32)
    assert torch.equal(found.isnan(), exact.isnan())
    assert torch.equal(found.isinf(), exact.float().isinf())
    errors = ulps(found, exact, exact.abs().clamp(limits.tiny, limits.max), torch.float32)
    assert errors.max() <= (1.5 if name == "sigmoid" else 1.0)


def test_an_operation_without_an_equivalent_is_named_and_runs_in_torch(monkeypatch):
    graph = program_graph(lambda p, g: p - g.atan(), "cuda")
    assert DIALECT["atan"].triton is None
    with pytest.raises(CannotEmit, match="atan"):
        TritonProgram(graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("baoc_compile.core.errors._TOLD", set())
    with pytest.warns(BaocWarning, match="atan has no equivalent in Triton"):
        program = lower.lower(graph)
    assert isinstance(program, TorchProgram)
    ours, theirs = batch(), batch()
    program(ours)
    p, grad = theirs[0].tensors.values()
    assert bits(ours[0].tensors["param"]).equal(bits(p - grad.atan()))


def test_without_triton_a_gpu_runs_torch_operations(monkeypatch):
    monkeypatch.setitem(sys.modules, "baoc_compile.kernels.triton.program", None)
    monkeypatch.setattr("baoc_compile.core.errors._TOLD", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = lower.lower(program_graph(lambda p, g: p - g, "cuda"))
    assert isinstance(program, TorchProgram)
    assert any(issubclass(w.category, BaocWarning) and "triton.program" in str(w.message) for w in caught)
