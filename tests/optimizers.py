"""The optimizers under test, how their hyperparameters are drawn, and small loops that train with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, optim

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import UpdateRule
from baoc_compile.passes.rules.read_step import read_step
from baoc_compile.passes.rules.reading import Reading
from baoc_compile.runtime.lead_steps import own_function


class Lion(optim.Optimizer):
    """Sign momentum (arXiv 2302.06675), as a user writes it: no `_init_group`, no foreach."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                exp_avg = state["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = exp_avg * beta1 + p.grad * (1 - beta1)
                p.add_(update.sign(), alpha=-group["lr"])
                exp_avg.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class ThreeSlots(optim.Optimizer):
    """Three slots, one of them replaced instead of changed, and a step count that is a Python number."""

    def __init__(self, params, lr=1e-2, beta=0.9, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, beta=beta, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta = group["beta"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["t"] = 0
                    state["a"], state["b"], state["c"] = (torch.zeros_like(p) for _ in range(3))
                state["t"] += 1
                grad = p.grad + group["weight_decay"] * p
                state["a"] = beta * state["a"] + (1 - beta) * grad
                state["b"].mul_(0.99).addcmul_(grad, grad, value=0.01)
                state["c"].mul_(0.5).add_(grad.abs())
                direction = state["a"] / (state["b"].sqrt() + 1e-4) / (1 - beta ** state["t"])
                p.add_(direction + 0.1 * state["c"].tanh(), alpha=-group["lr"])


class Plain:
    """Heavy-ball momentum with no base class: `param_groups`, `state` and `step` are all that it has."""

    def __init__(self, params, lr=1e-2, momentum=0.9):
        groups = list(params)
        groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
        self.param_groups = [{"lr": lr, "momentum": momentum, **group} for group in groups]
        self.state = defaultdict(dict)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                state["velocity"].mul_(group["momentum"]).add_(p.grad)
                p.sub_(state["velocity"], alpha=group["lr"])


@dataclass(frozen=True)
class Case:
    """One optimizer under test.

    `options` make this variant and are always given; `drawn`: strategies for all others. `slots`: state of the
    parameter's shape -> the codec that "8bit" has to give it. `fills`: can `prepare` make its state?
    """

    make: Callable[..., Any]
    slots: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, st.SearchStrategy] = field(default_factory=dict)
    has_foreach: bool = True
    fills: bool = True

    def hyperparameters(self) -> st.SearchStrategy[dict[str, Any]]:
        """The variant's own options, and some of the drawn ones (the others keep the optimizer's defaults)."""
        foreach = {"foreach": st.booleans()} if self.has_foreach else {}
        return st.fixed_dictionaries({}, optional={**self.drawn, **foreach}).map(
            lambda drawn: {**drawn, **self.options}
        )


_decay = st.one_of(st.sampled_from([0.0, 0.9, 0.99, 0.999]), st.floats(0.1, 0.99))
_lr = {"lr": st.floats(1e-3, 0.1)}
_common = _lr | {"maximize": st.booleans(), "weight_decay": st.sampled_from([0.0, 0.01, 0.3])}
_betas = _common | {"betas": st.tuples(_decay, _decay), "eps": st.sampled_from([1e-8, 1e-5])}
_rms = _common | {"alpha": st.floats(0.5, 0.999)}
_moments = {"exp_avg": "e2m5", "exp_avg_sq": "e3m5"}
_exact_moments = {"square_avg": "fp32", "grad_avg": "fp32"}

CASES: dict[str, Case] = {
    "SGD": Case(optim.SGD, {}, {"lr": 0.01}, _common),
    "SGD-momentum": Case(optim.SGD, {"momentum_buffer": "e2m5"}, {"momentum": 0.9}, _common),
    "SGD-dampening": Case(
        optim.SGD,
        {"momentum_buffer": "e2m5"},
        {"momentum": 0.9, "dampening": 0.3},
        _common | {"dampening": st.floats(0.1, 1.0)},
        fills=False,
    ),
    "SGD-nesterov": Case(optim.SGD, {"momentum_buffer": "e2m5"}, {"momentum": 0.9, "nesterov": True}, _common),
    "Adam": Case(optim.Adam, _moments, {}, _betas),
    "Adam-amsgrad": Case(optim.Adam, _moments | {"max_exp_avg_sq": "e3m5"}, {"amsgrad": True}, _betas),
    "AdamW": Case(optim.AdamW, _moments, {}, _betas),
    "NAdam": Case(optim.NAdam, _moments, {}, _betas | {"momentum_decay": st.floats(1e-3, 0.1)}),
    "NAdam-decoupled": Case(optim.NAdam, _moments, {"decoupled_weight_decay": True, "weight_decay": 0.1}, _betas),
    "RAdam": Case(optim.RAdam, _moments, {}, _betas | {"decoupled_weight_decay": st.booleans()}),
    "Adamax": Case(optim.Adamax, {"exp_avg": "e2m5", "exp_inf": "e3m5"}, {}, _betas),
    "Adagrad": Case(
        optim.Adagrad,
        {"sum": "e3m5"},
        {},
        _common | {"lr_decay": st.floats(0.0, 0.1), "initial_accumulator_value": st.sampled_from([0.0, 0.1])},
    ),
    "RMSprop": Case(optim.RMSprop, {"square_avg": "e3m5"}, {}, _rms),
    "RMSprop-momentum": Case(optim.RMSprop, {"square_avg": "e3m5", "momentum_buffer": "e2m5"}, {"momentum": 0.9}, _rms),
    "RMSprop-centered": Case(optim.RMSprop, _exact_moments, {"centered": True}, _rms),
    "RMSprop-centered-momentum": Case(
        optim.RMSprop,
        _exact_moments | {"momentum_buffer": "e2m5"},
        {"centered": True, "momentum": 0.9},
        _rms,
    ),
    "Adadelta": Case(
        optim.Adadelta, {"square_avg": "e3m5", "acc_delta": "e3m5"}, {}, _common | {"rho": _decay, "lr": st.just(1.0)}
    ),
    "ASGD": Case(optim.ASGD, {"ax": "e2m5"}, {"t0": 5.0, "lambd": 0.01}, _common | {"alpha": st.floats(0.5, 1.0)}),
    "Rprop": Case(
        optim.Rprop,
        {"prev": "e2m5", "step_size": "e3m5"},
        {},
        _lr | {"maximize": st.booleans(), "etas": st.just((0.4, 1.3)), "step_sizes": st.just((1e-4, 0.5))},
    ),
    "Lion": Case(
        Lion,
        {"exp_avg": "e2m5"},
        {},
        _lr | {"betas": st.tuples(_decay, _decay), "weight_decay": st.floats(0.0, 0.3)},
        has_foreach=False,
    ),
    "ThreeSlots": Case(
        ThreeSlots,
        {"a": "e2m5", "b": "e3m5", "c": "e3m5"},
        {},
        _lr | {"beta": st.floats(0.1, 0.99), "weight_decay": st.floats(0.0, 0.3)},
        has_foreach=False,
    ),
    "Plain": Case(Plain, {"velocity": "e2m5"}, {}, _lr | {"momentum": _decay}, has_foreach=False),
}

#: Every case once, or twice where there is a foreach implementation: (name, options), with readable test ids.
CASES_WITH_FOREACH = [
    (name, {**case.options, **foreach})
    for name, case in CASES.items()
    for foreach in ([{"foreach": False}, {"foreach": True}] if case.has_foreach else [{}])
]
CASE_IDS = [f"{name}{'-foreach' if options.get('foreach') else ''}" for name, options in CASES_WITH_FOREACH]

Gradients = Sequence[Sequence[Tensor | None]]  # step by step, one for each parameter


def two_groups(parameters: Sequence[Tensor], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last parameters get a learning rate of their own."""
    half = len(parameters) // 2
    return [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 2 * options.get("lr", 0.01)}]


def build(case: Case, parameters: Sequence[Tensor], options: Mapping[str, Any]) -> Any:
    """The optimizer, over one parameter group or, if there is more than one parameter, two."""
    return case.make(two_groups(parameters, options) if len(parameters) > 1 else parameters, **options)


def compiled_step(optimizer: Any, plan: str, *, prepared: bool) -> Callable[[], Any]:
    """`optimizer.step` under baoc, with every state slot stored as `plan` says."""
    if prepared:
        baoc_compile.prepare(optimizer, plan=plan)
    return torch.compile(optimizer.step, backend="baoc", options={"plan": plan})


def reading_of(optimizer: Any, *indices: int) -> Reading:
    """How the optimizer steps the parameters with these indices, by default the first, once their state exists."""
    return read_step(ParameterTable.of(optimizer), own_function(optimizer), frozenset(indices or (0,))).warm


def rule_of(optimizer: Any) -> UpdateRule:
    """The update rule of the first parameter."""
    reading = reading_of(optimizer)
    assert 0 in reading.rules, reading.reasons
    return reading.rules[0]


def decoded(value: Any) -> Any:
    """The tensor that a state entry stands for."""
    return value.decode() if isinstance(value, StateTensor) else value


def ulps(a: Tensor, b: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """|a - b| in units of the last place that `dtype` has at `scale`; 0 where either is not finite."""
    difference = (a.double() - b.double()).abs() / (scale.double() * torch.finfo(dtype).eps)
    return torch.where(torch.isfinite(a) & torch.isfinite(b), difference, 0.0).nan_to_num(nan=0.0)


def codec_names(state: Mapping[str, Any]) -> dict[str, str]:
    """How every entry of one parameter's state is stored."""
    return {key: _codec_name(value) for key, value in state.items() if value is not None}


def _codec_name(value: Any) -> str:
    if isinstance(value, StateTensor):
        return value.codec.name
    return "fp32" if isinstance(value, Tensor) and value.ndim else "counter"
