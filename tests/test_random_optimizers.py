"""Optimizers that nobody has thought of: what baoc reads out of a random elementwise step is that step.

Every step is judged alone. Before it, the stored state is decoded and handed to the user's own class, run by eager torch
in float64 and in the parameter's type; all three take the step. The parameter may be off by at most twice eager's error
plus ulps, whatever the plan: rounding and dropping bits of state touch only what the next step finds. A stored slot may
be off by its codec's `relative_error` on top of that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import Phase, example, given, note, settings
from hypothesis import strategies as st
from optimizers import compiled_step, decoded, ulps
from random_optimizers import DrawnOptimizer, Recipe, SlotRecipe, recipes
from torch import Tensor

import baoc_compile
from baoc_compile import BaocWarning, StateTensor

STEPS = 4
SHAPE = (67, 64)
#: A rounding of the result, one of each of at most 8 operations and of what takes it up.
ULPS = 10
#: No rounding is worse than this many ulps: the function has a jump there.
JUMP = 1000


def new_optimizer(recipe: Recipe, parameters: list[Tensor]) -> DrawnOptimizer:
    """The last parameter is in a group of its own, with another learning rate."""
    last = {"params": parameters[-1:], "lr": recipe.numbers["lr"] / 2}
    return DrawnOptimizer([{"params": parameters[:-1]}, last], recipe)


def copy_in(dtype: torch.dtype, optimizer: DrawnOptimizer, gradients: list[Tensor]) -> list[tuple[Tensor, Any]]:
    """(parameter, state) after one eager step, in `dtype`, from the optimizer's parameters and decoded state."""
    originals = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [torch.nn.Parameter(p.detach().to(dtype, copy=True)) for p in originals]
    copied = new_optimizer(optimizer.recipe, parameters)
    for original, parameter, gradient in zip(originals, parameters, gradients, strict=True):
        parameter.grad = gradient.to(dtype, copy=True)
        for key, value in optimizer.state.get(original, {}).items():
            copied.state[parameter][key] = decoded(value).to(dtype, copy=True) if isinstance(value, Tensor) else value
    copied.step()
    return [(parameter.detach(), copied.state[parameter]) for parameter in parameters]


def stored_slots(state: Mapping[str, Any]) -> set[str]:
    return {key for key, value in state.items() if isinstance(value, StateTensor)}


def allowed_by_codec(value: Any, exact: Tensor, weight: Tensor) -> Tensor:
    """The codec's bound on the error of storing `exact`: relative to the largest of the group, or to the value itself.

    Or to its difference to the weight, if that is stored.
    """
    if not isinstance(value, StateTensor):
        return torch.zeros_like(exact)
    if value.codec.follows_weight:
        exact = exact - weight
    flat, width = exact.abs().reshape(-1), value.codec.group_size or 1
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % width)).view(-1, width)
    largest = padded.amax(1, keepdim=True).clamp(min=2.0**-126).expand_as(padded)
    return value.codec.relative_error * largest.reshape(-1)[: len(flat)].view(exact.shape)


def check_error(what: str, found: Tensor, eager: Tensor, exact: Tensor, before: Tensor, allowed: Any = 0.0) -> None:
    """Beyond `allowed`, and in ulps of the largest magnitude before and after the step.

    Where eager torch is wrong by a jump, such as that of `sign(x - tanh(x))` at a small x, a few elements may jump.
    """
    scale = torch.maximum(exact.abs().max(), before.abs().max().double())
    beyond = ((found.double() - exact).abs() - allowed).clamp(min=0)
    assert torch.equal(found.isfinite(), eager.isfinite()), f"{what}: not finite"
    errors, eager_errors = (ulps(x, exact, scale, torch.float32) for x in (exact + beyond, eager.double()))
    if (eager_errors > JUMP).any():
        jumps = (errors > JUMP) | (eager_errors > JUMP)
        assert jumps.sum() <= jumps.numel() / 100, f"{what}: {int(jumps.sum())} elements jump"
        errors, eager_errors = errors[~jumps], eager_errors[~jumps]
    error, eager_error = errors.max().item(), eager_errors.max().item()
    assert error <= 2 * eager_error + ULPS, f"{what}: {error} ulps, eager {eager_error}"


def check(recipe: Recipe, plan: str, seed: int, prepared: bool = True) -> baoc_compile.Inspection:
    """Takes `STEPS` compiled steps, each compared; every parameter is stepped by a program."""
    torch._dynamo.reset()  # all recipes run the same code, which Dynamo traces 8 times at most
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(SHAPE, generator=generator)) for _ in range(2)]
    optimizer = new_optimizer(recipe, parameters)
    gradients = [torch.zeros(SHAPE) for _ in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    step = compiled_step(optimizer, plan, prepared=prepared)
    for _ in range(STEPS):
        for gradient in gradients:
            gradient.copy_(torch.randn(SHAPE, generator=generator))
        exact, eager = (copy_in(dtype, optimizer, gradients) for dtype in (torch.float64, torch.float32))
        starts = [p.detach().clone() for p in parameters]
        forms = [stored_slots(optimizer.state.get(p, {})) for p in parameters]
        step()
        for i, parameter in enumerate(parameters):
            state, (exact_parameter, exact_state), (eager_parameter, eager_state) = (
                optimizer.state[parameter],
                exact[i],
                eager[i],
            )
            assert state.keys() == exact_state.keys()
            if plan != "fp32" and stored_slots(state) != forms[i]:
                continue  # this step compressed state before it used it
            check_error("parameter", parameter.detach(), eager_parameter, exact_parameter, starts[i])
            for key, value in exact_state.items():
                if key == "t":
                    assert float(state[key]) == float(value)
                    continue
                allowed = allowed_by_codec(state[key], value, parameter.detach().double())
                check_error(key, decoded(state[key]), eager_state[key], value, value, allowed)
    inspection = baoc_compile.inspect(optimizer)
    launched = {name for program in inspection.programs if program.launches for name in program.parameters}
    assert len(launched | inspection.fallbacks.keys()) == len(parameters)
    compressed = {key for p in parameters for key in stored_slots(optimizer.state[p])}
    slots = {slot.key for rule in inspection.rules for slot in rule.slots if not slot.why_exact}
    assert compressed == (slots if plan != "fp32" else set())
    return inspection


#: The parameter decays, whatever the gradient is, and a slot watches the gradient: no operation joins the two.
APART = Recipe(
    (SlotRecipe("trace", "zeros", "mul_ add_", "grad", "beta0"),),
    *("add_", "param", "none", "none"),
    {"lr": 0.05, "eps": 0.01, "beta0": 0.9},
    3,
)


@example(recipe=APART, plan="8bit", prepared=False, seed=0)
@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(
    recipe=recipes(),
    plan=st.sampled_from(["fp32", "fp32", "8bit", "8bit", "4bit", "bf16"]),
    prepared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_elementwise_optimizer(recipe, plan, prepared, seed):
    """No step of this kind is refused, and all state that may be is compressed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inspection = check(recipe, plan, seed, prepared)
    note(str(inspection))
    assert not inspection.fallbacks
    told = [str(w.message) for w in caught if issubclass(w.category, BaocWarning)]
    assert not [
        text for text in told if "does not bear the plan" not in text
    ]  # what a trial may find of a plan by name
