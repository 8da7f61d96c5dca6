"""Random elementwise optimizers, as a user would write them: drawn as data, and stepped by plain torch calls.

An expression is a name, a number or `(operation, operand, ...)`. The names are "param", "grad", the slots', those of the
hyperparameters, and "correction", which is 1 - beta0^t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Expression = Any

#: The operations of expressions, as a user spells them.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: torch.sub(x, y),
    "mul": lambda x, y: x * y,
    "scale": lambda x, number: number * x,
    "divide": lambda x, number: x / number,
    "neg": lambda x: -x,
    "abs": lambda x: x.abs(),
    "square": lambda x: x.square(),
    "sqrt": lambda x: torch.sqrt(x),
    "sign": lambda x: x.sign(),
    "tanh": lambda x: x.tanh(),
    "clamp": lambda x, number: x.clamp(-number, number),
    "clamp_min": lambda x, number: torch.clamp(x, min=number),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "lerp": lambda x, y, number: torch.lerp(x, y, number),
    "addcmul": lambda x, y, z, number: torch.addcmul(x, y, z, value=number),
    "addcdiv": lambda x, y, z, number: torch.addcdiv(x, y, z + 1, value=number),
    "where": lambda x, y, z: torch.where(x > 0, y, z),
    "by_root": lambda x, y, eps: x / (y.sqrt() + eps),
    "by_norm": lambda x, y: x / (y.norm() + 1),
    "by_root_mean_square": lambda x, y: x.div(y.square().mean().sqrt().clamp_(min=1.0)),
    "by_largest": lambda x, y: x / (y.abs().max() + 0.1),
    "centered": lambda x: x - x.mean(),
    "by_root_in_place": lambda x, y, eps: x.clone().div_(y.sqrt().add_(eps)),
}


def _replace(value: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., None]:
    """`state[key] = value(state[key], new, beta)`."""

    def store(state: dict[str, Any], key: str, new: Tensor, beta: float) -> None:
        state[key] = value(state[key], new, beta)

    return store


#: How a slot takes a new value up.
STORES: dict[str, Callable[[dict[str, Any], str, Tensor, float], Any]] = {
    "mul_ add_": lambda state, key, new, beta: state[key].mul_(beta).add_(new, alpha=1 - beta),
    "lerp_": lambda state, key, new, beta: state[key].lerp_(new, 1 - beta),
    "addcmul_": lambda state, key, new, beta: state[key].mul_(beta).addcmul_(new, new, value=1 - beta),
    "mul_ addcdiv_": lambda state, key, new, beta: state[key].mul_(beta).addcdiv_(new, new.abs() + 1, value=1 - beta),
    "copy_": lambda state, key, new, beta: state[key].copy_(beta * state[key] + (1 - beta) * new),
    "out": lambda state, key, new, beta: torch.add(state[key] * beta, new, out=state[key]),
    "+=": lambda state, key, new, beta: state[key].add_(new),
    "= ema": _replace(lambda old, new, beta: beta * old + (1 - beta) * new),
    "= momentum": _replace(lambda old, new, beta: old * beta + new),
    "= maximum": _replace(lambda old, new, beta: torch.maximum(old * beta, new)),
    "maximum_": lambda state, key, new, beta: state[key].copy_(torch.maximum(state[key].mul_(beta), new)),
    "= new": _replace(lambda old, new, beta: new.clone()),
}

#: How the parameter takes its update up.
UPDATES: dict[str, Callable[[Tensor, Tensor, float], Any]] = {
    "add_": lambda param, update, lr: param.add_(update, alpha=-lr),
    "sub_": lambda param, update, lr: param.sub_(lr * update),
    "-=": lambda param, update, lr: param.sub_(update.mul(lr)),
    "copy_": lambda param, update, lr: param.copy_(param - lr * update),
    "addcmul_": lambda param, update, lr: param.addcmul_(update, torch.ones_like(update), value=-lr),
}

#: How a slot begins.
STARTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zeros": lambda param, grad: torch.zeros_like(param),
    "full": lambda param, grad: torch.full_like(param, 0.25),
    "gradient": lambda param, grad: grad.clone(),
    "weights": lambda param, grad: param.clone(),
    "magnitude": lambda param, grad: grad.abs(),
}


@dataclass(frozen=True)
class SlotRecipe:
    """One slot: how it begins, and what it takes up, how, at the decay `beta`."""

    key: str
    start: str
    store: str
    new: Expression
    beta: str


@dataclass(frozen=True)
class Recipe:
    """An optimizer. `counter`: its step count is an "int", a "tensor", or "none". `decay`: weight decay is "decoupled",
    "coupled" or "none". `numbers`: the hyperparameters. `operations`: how many it was drawn with."""

    slots: tuple[SlotRecipe, ...]
    update: str
    direction: Expression
    counter: str
    decay: str
    numbers: Mapping[str, float]
    operations: int


class DrawnOptimizer(torch.optim.Optimizer):
    """Steps as its recipe says."""

    def __init__(self, params: Any, recipe: Recipe):
        self.recipe = recipe
        super().__init__(params, dict(recipe.numbers))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.advance(param, self.state[param], group)

    def advance(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        recipe, grad = self.recipe, param.grad
        if recipe.decay == "decoupled":
            param.mul_(1 - group["lr"] * group["weight_decay"])
        elif recipe.decay == "coupled":
            grad = grad.add(param, alpha=group["weight_decay"])
        if not state:
            if recipe.counter != "none":
                state["t"] = 0 if recipe.counter == "int" else torch.zeros((), dtype=param.dtype)
            for slot in recipe.slots:
                state[slot.key] = STARTS[slot.start](param, grad)
        names = {**group, "param": param, "grad": grad}
        if recipe.counter != "none":
            state["t"] += 1
            names["correction"] = 1 - group["beta0"] ** state["t"]
        for slot in recipe.slots:
            STORES[slot.store](state, slot.key, evaluate(slot.new, {**names, **state}), group[slot.beta])
        UPDATES[recipe.update](param, evaluate(recipe.direction, {**names, **state}), group["lr"])


def evaluate(expression: Expression, names: Mapping[str, Any]) -> Any:
    """The value of an expression."""
    if isinstance(expression, str):
        return names[expression]
    if isinstance(expression, (int, float)):
        return expression
    return OPERATIONS[expression[0]](*[evaluate(operand, names) for operand in expression[1:]])


_number = st.one_of(st.sampled_from([0.5, 0.1, 2.0]), st.floats(0.05, 3.0))
_fraction = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.01, 0.99))
_beta = st.one_of(st.sampled_from([0.5, 0.9, 0.99, 0.999]), st.floats(0.1, 0.99))


@st.composite
def expressions(draw: st.DrawFn, signed: list[str], nonnegative: list[str], size: int, is_nonnegative: bool) -> Any:
    """With `size` operations, over these names of either sign and names of values that are never negative."""

    def one(size: int, is_nonnegative: bool = False) -> Any:
        return draw(expressions(signed, nonnegative, size, is_nonnegative))

    def several(*signs: bool) -> list[Any]:
        """Operands, with the other operations shared among them."""
        cuts = sorted(draw(st.lists(st.integers(0, size - 1), min_size=len(signs) - 1, max_size=len(signs) - 1)))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, size - 1], strict=True)]
        return [one(s, is_nonnegative) for s, is_nonnegative in zip(sizes, signs, strict=True)]

    if is_nonnegative and size == 0 and not nonnegative:
        return "square", draw(st.sampled_from(signed))
    if size == 0:
        return draw(st.sampled_from(nonnegative if is_nonnegative else [*signed, *nonnegative]))
    if is_nonnegative:
        name = draw(st.sampled_from(["abs", "square", "sqrt", "maximum", "add", "scale", "clamp_min", "lerp", "mul"]))
        if name in ("abs", "square"):
            return name, one(size - 1)
        if name == "sqrt":
            return name, one(size - 1, True)
        if name in ("scale", "clamp_min"):
            return name, one(size - 1, True), draw(_number)
        fraction = [draw(_fraction)] if name == "lerp" else []
        return name, *several(True, True), *fraction
    name = draw(st.sampled_from(_SIGNED))
    if name in ("neg", "sign", "tanh", "centered"):
        return name, one(size - 1)
    if name in ("scale", "divide", "clamp"):
        return name, one(size - 1), draw(_number)
    if name in ("by_root", "by_root_in_place"):
        return name, *several(False, True), "eps"
    if name == "where":
        return name, draw(st.sampled_from(signed)), *several(False, False)
    if name == "addcmul":
        return name, *several(False, False, False), draw(_number)
    if name == "addcdiv":
        return name, *several(False, False, True), draw(_number)
    return name, *several(False, False), *([draw(_fraction)] if name == "lerp" else [])


_SIGNED = ["neg", "sign", "tanh", "scale", "divide", "clamp", "by_root", "by_root_in_place", "where", "addcmul"]
_SIGNED += [
    "by_norm",
    "by_root_mean_square",
    "by_largest",
    "centered",
    "addcdiv",
    "add",
    "sub",
    "mul",
    "maximum",
    "minimum",
    "lerp",
]
_KEEP_SIGN = [name for name in STORES if name != "addcmul_"]  # of a slot that may take up any value


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Optimizers of 1 to 4 slots and 3 to 8 operations: each slot's taking up is one."""
    operations = draw(st.integers(3, 8))
    count = draw(st.integers(1, min(4, operations - 1)))
    cuts = sorted(draw(st.lists(st.integers(0, operations - count), min_size=count, max_size=count)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, operations - count], strict=True)]
    counter = draw(st.sampled_from(["none", "int", "tensor"]))
    numbers = {"lr": draw(st.floats(1e-3, 0.1)), "eps": draw(st.sampled_from([1e-3, 1e-2, 0.1]))}
    signed, nonnegative = ["grad", "param"], []
    slots = []
    for index, key in enumerate(draw(st.permutations(["exp_avg", "exp_avg_sq", "velocity", "trace"]))[:count]):
        numbers[f"beta{index}"] = draw(_beta)
        is_nonnegative = draw(st.booleans())
        new = draw(expressions(signed, nonnegative, sizes[index], is_nonnegative))
        store = draw(st.sampled_from(list(STORES) if is_nonnegative else _KEEP_SIGN))
        starts = ["magnitude"] if is_nonnegative else ["gradient", "weights"]
        start = draw(st.sampled_from(["zeros", "zeros", "full", *starts]))
        slots.append(SlotRecipe(key, start, store, new, f"beta{index}"))
        (nonnegative if is_nonnegative else signed).append(key)
    names = [slot.key for slot in slots]
    direction = draw(expressions([*signed, *names], nonnegative, sizes[-1], False))
    if counter != "none" and draw(st.booleans()):
        direction = ("divide", direction, "correction")
    decay = draw(st.sampled_from(["none", "coupled", "decoupled"]))
    if decay != "none":
        numbers["weight_decay"] = draw(st.sampled_from([0.01, 0.3]))
    return Recipe(tuple(slots), draw(st.sampled_from(list(UPDATES))), direction, counter, decay, numbers, operations)
