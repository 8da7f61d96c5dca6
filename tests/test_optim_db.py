"""torch's own table of optimizers and options: every input that eager torch accepts on a CPU, under baoc.

The learning rate changes between `prepare` and the first step, and at every step.
"""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from optimizers import decoded, ulps
from torch import Tensor, nn

import baoc_compile
from baoc_compile import BaocWarning
from baoc_compile.runtime.session import session_of

STEPS = 20
#: Classes whose step may run as written: they branch on the values of tensors, or need sparse gradients.
REFUSED = ("Adafactor", "LBFGS", "SparseAdam")
#: Classes whose updates are not elementwise.
WHOLE = ("Muon", *REFUSED)


class _Anything:
    """Takes the place of whatever torch's table imports from the rest of torch's test suite."""

    def __init__(self, *args: Any, **options: Any):
        pass


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


def table_of_torch() -> ModuleType:
    """torch's table, without its test suite: that asks for more packages, and sets up hypothesis for itself."""
    internal = "torch.testing._internal"
    others = [f"{internal}.common_{name}" for name in ("device_type", "methods_invocations", "utils")]
    with patch.dict(sys.modules, {name: _Module(name) for name in others}):
        return importlib.import_module(f"{internal}.common_optimizers")


def starts_for(cls: type, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Parameters of these shapes; matrices only for Muon, which takes nothing else."""
    generator = torch.Generator().manual_seed(1)
    shapes = tuple(shape for shape in shapes if cls.__name__ != "Muon" or len(shape) == 2)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def gradients_for(starts: Sequence[Tensor], steps: int, signal: float = 0.0) -> list[list[Tensor]]:
    """Step by step: noise around a mean of this size."""
    generator = torch.Generator().manual_seed(2)
    means = [signal * torch.randn(start.shape, generator=generator) for start in starts]
    return [[m + torch.randn(m.shape, generator=generator) for m in means] for _ in range(steps)]


class Run:
    """One optimizer over parameters of its own. Every step gets its gradients and a learning rate."""

    def __init__(self, cls: type, options: Mapping[str, Any], starts: Sequence[Tensor]):
        self.parameters = [nn.Parameter(start.clone()) for start in starts]
        self.optimizer = cls(self.parameters, **copy.deepcopy(dict(options)))
        self.scales = [start.abs().max().double() for start in starts]
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.lr = self.lr.item() if isinstance(self.lr, Tensor) else self.lr
        self.steps = 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        for group in self.optimizer.param_groups:
            lr = self.lr * (0.5 + 0.07 * self.steps)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        for parameter, grad in zip(self.parameters, gradients, strict=True):
            grad = grad.to(parameter.dtype)
            is_sparse = type(self.optimizer).__name__ == "SparseAdam"
            parameter.grad = grad.to_sparse() if is_sparse else grad.clone()
        self.optimizer.step(*([self.closure] if type(self.optimizer).__name__ == "LBFGS" else []))
        self.scales = [
            torch.maximum(s, p.detach().abs().max().double()) for s, p in zip(self.scales, self.parameters, strict=True)
        ]

    def closure(self) -> Tensor:
        """A quadratic loss, with its gradient."""
        loss = sum((p.square() * torch.arange(1, p.numel() + 1).view(p.shape)).sum() for p in self.parameters)
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def train(self, gradients: Sequence[Sequence[Tensor]]) -> Run:
        for step in gradients:
            self.step(step)
        return self


def is_accepted(cls: type, options: Mapping[str, Any]) -> bool:
    """Whether eager torch makes such an optimizer on a CPU, and steps it twice."""
    starts = starts_for(cls, (3, 2))
    try:
        Run(cls, options, starts).train(gradients_for(starts, 2))
    except Exception:
        return False
    return True


def every_input() -> Iterator[Any]:
    """Every input that eager accepts, under every implementation that the class has."""
    table = table_of_torch()
    tensor_lr = table.OptimizerInput(params=None, kwargs={"lr": torch.tensor(0.001)})
    for info in table.optim_db:
        seen = set()
        for given in (*info.optim_inputs_func("cuda"), tensor_lr):  # those for a CPU, and more
            for impl in ("foreach=False", "foreach=True", "fused=True"):
                option, value = impl.split("=")
                options = dict(given.kwargs)
                if option in info.supported_impls:
                    options[option] = value == "True"
                if repr(options) in seen or given.params is not None or not is_accepted(info.optim_cls, options):
                    continue
                seen.add(repr(options))
                text = ",".join(f"{k}={v.item() if isinstance(v, Tensor) else v}" for k, v in options.items())
                tensor = "tensor-" if isinstance(options.get("lr"), Tensor) else ""
                yield pytest.param(info.optim_cls, options, id=f"{info.optim_cls.__name__}-{tensor}{text}")


INPUTS = list(every_input())


def worst(values: Sequence[Tensor]) -> float:
    return max(v.max().item() for v in values)


def prepared(run: Run, **options: Any) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BaocWarning)
        baoc_compile.prepare(run.optimizer, **options)
    return run


def refused(run: Run) -> str:
    return session_of(run.optimizer).own.refused


def test_the_table_has_what_it_should():
    """A release of torch that changes its table must not empty these tests."""
    assert len({p.values[0] for p in INPUTS}) >= 14 and len(INPUTS) >= 150


@pytest.mark.filterwarnings("ignore::baoc_compile.BaocWarning")
@pytest.mark.parametrize(("cls", "options"), INPUTS)
def test_full_precision_is_as_exact_as_eager(cls, options):
    """No further from float64 than twice eager's error, and half an ulp a step. A step that is refused: eager's bits."""
    starts = starts_for(cls, (33,), (7, 9), (1,))
    gradients = gradients_for(starts, STEPS)
    eager = Run(cls, options, starts).train(gradients)
    ours = prepared(Run(cls, options, starts), plan="fp32").train(gradients)
    if refused(ours):
        assert cls.__name__ in REFUSED, refused(ours)
        for mine, theirs in zip(ours.parameters, eager.parameters, strict=True):
            assert torch.equal(mine, theirs)
        return
    exact = Run(cls, options, [start.double() for start in starts]).train(gradients)

    def errors(run: Run) -> list[Tensor]:
        found = zip(run.parameters, exact.parameters, exact.scales, strict=True)
        return [ulps(p.detach(), e.detach(), scale, torch.float32) for p, e, scale in found]

    for mine, theirs in zip(ours.parameters, eager.parameters, strict=True):
        assert not (mine.isnan() & ~theirs.isnan()).any()
    assert worst(errors(ours)) <= 2 * worst(errors(eager)) + STEPS / 2, f"eager: {worst(errors(eager))} ulps"


@pytest.mark.filterwarnings("ignore::baoc_compile.BaocWarning")
@pytest.mark.parametrize(("cls", "options"), INPUTS)
def test_a_budget_trains_like_eager(cls, options):
    """Ten steps at 30 % of the state go where eager goes, those of steps that run as written, too."""
    starts = starts_for(cls, (64, 65), (5000,))
    gradients = gradients_for(starts, 10, signal=1.0)
    eager = Run(cls, options, starts).train(gradients)
    # what RMSprop subtracts from each other stays exact
    budget = "100%" if options.get("centered") else "30%"
    ours = prepared(Run(cls, options, starts), memory_budget=budget).train(gradients)
    assert not refused(ours) or cls.__name__ in REFUSED, refused(ours)
    for mine, theirs, start in zip(ours.parameters, eager.parameters, starts, strict=True):
        cosine = torch.cosine_similarity(*((p.detach() - start).double().flatten() for p in (mine, theirs)), dim=0)
        assert cosine >= 0.99


# the numbers that programs get


class Numbers(torch.overrides.TorchFunctionMode):
    """Collects the numbers that functions over tensors with dimensions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[float] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, dict(kwargs or {})))
        if any(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves) and "__get__" not in str(function):
            self.found |= {float(leaf) for leaf in leaves if type(leaf) in (int, float)}
            numbers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.ndim]
            self.found |= {leaf.item() for leaf in numbers}
        return function(*args, **(kwargs or {}))


def elementwise_inputs() -> list[Any]:
    return [p for p in INPUTS if p.values[0].__name__ not in WHOLE and not p.values[1].get("fused")]


@pytest.mark.parametrize(("cls", "options"), elementwise_inputs())
def test_programs_get_the_numbers_of_eager(cls, options):
    """At the first steps and at a late one, to the bit: all that a program is given, eager gives to torch's functions."""
    starts = starts_for(cls, (33,))
    gradients = gradients_for(starts, 8)
    eager, ours = Run(cls, options, starts), prepared(Run(cls, options, starts), plan="fp32")
    for k, step in enumerate(gradients):
        with Numbers() as theirs:
            eager.step(step)
        if k < 2:  # not bound yet, or bound to another reading
            ours.step(step)
            continue
        assert not refused(ours), refused(ours)
        bound, mine = session_of(ours.optimizer).own.bound, []

        def observe(launch: Any, present: Any, bound=bound, mine=mine) -> None:
            counters = {i.name for i in bound.rules[0].inputs_of("scalar") if i.counts_steps}
            mine.append({value for name, value in bound.numbers_of(0).items() if name not in counters})

        with bound.observed(observe):
            ours.step(step)
        assert session_of(ours.optimizer).own.bound is not bound or len(mine) == 1
        for numbers in mine:
            assert numbers <= theirs.found, f"step {k + 1}"
            assert theirs.found - numbers <= {0.0, 1.0, -1.0, 2.0}, f"step {k + 1}"
    assert mine


@pytest.mark.parametrize(("cls", "options"), elementwise_inputs())
def test_state_at_full_precision_has_eagers_keys(cls, options):
    """State has the entries, types and counters that eager's has."""
    starts = starts_for(cls, (33,))
    gradients = gradients_for(starts, 3)
    eager = Run(cls, options, starts).train(gradients)
    ours = prepared(Run(cls, options, starts), plan="fp32").train(gradients)
    mine, theirs = ours.optimizer.state[ours.parameters[0]], eager.optimizer.state[eager.parameters[0]]
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        found = decoded(mine[key])
        assert type(found) is type(value), key
        if isinstance(value, Tensor):
            assert found.dtype == value.dtype and found.shape == value.shape
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
        else:
            assert found == value
