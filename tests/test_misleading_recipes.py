"""Random optimizers with control flow on numbers: each prepared run is right, or refused and equal to the plain one.

They differ in where they count, what they branch on, how their state begins, and what they write back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from misleading_base import Misleading, OneByOne
from test_misleading import check
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """An optimizer.

    counter: where the step counts.
    condition: what it branches on, and the number that it compares with.
    rules: the rules of both branches.
    first: how the buffer begins.
    writes: numbers and flags that the step writes back, besides the counter.
    """

    counter: str
    condition: tuple[str, float]
    rules: tuple[str, str]
    first: str
    writes: frozenset[str]


class Drawn(OneByOne):
    """Steps as its recipe says."""

    def __init__(self, params: Any, recipe: Recipe):
        self.recipe = recipe
        super().__init__(params, k=0, power=1.0)

    def begin(self) -> None:
        self.k, self.last, self.product = 0, 0.0, 1.0

    @torch.no_grad()
    def step(self) -> None:
        self.k += 1
        for group in self.param_groups:
            group["k"] += 1
        super().step()
        if "rate" in self.recipe.writes:
            self.last = self.param_groups[0]["lr"]
        if "power" in self.recipe.writes:
            for group in self.param_groups:
                group["power"] *= 0.97

    def counted(self, state: dict[str, Any], group: dict[str, Any]) -> Any:
        """The number of this step, by the counter of the recipe."""
        counter = self.recipe.counter
        if counter in ("attribute", "group"):
            return self.k if counter == "attribute" else group["k"]
        if counter == "get":
            state["t"] = state.get("t", 0) + 1
            return state["t"]
        if counter == "nested":
            state.setdefault("numbers", {"t": 0})["t"] += 1
            return state["numbers"]["t"]
        if "t" not in state:
            state["t"] = {"int": 0, "float": 0.0, "tensor": torch.tensor(0.0)}[counter]
        state["t"] += 1
        return state["t"].item() if counter == "tensor" else state["t"]

    def holds(self, count: Any, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Whether the step takes its first branch."""
        kind, number = self.recipe.condition
        if kind == "flag":
            state["odd"] = not state.get("odd", False)
            return state["odd"]
        return {
            "count": lambda: count < number,
            "every": lambda: count % max(2, int(number)) == 0,
            "rate": lambda: group["lr"] > number / 300,
            "last": lambda: group["lr"] > self.last,
            "power": lambda: 0.9**count > number / 10,
        }[kind]()

    def begun(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The buffer."""
        if "m" not in state:
            if self.recipe.first == "halves":
                p.mul_(0.5)
            state["m"] = {
                "gradient": lambda: p.grad.clone(),
                "parameter": lambda: p.clone(),
                "rate": lambda: torch.full_like(p, group["lr"]),
            }.get(self.recipe.first, lambda: torch.zeros_like(p))()
        return state["m"]

    def update(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        buffer, count = self.begun(p, state, group), self.counted(state, group)
        rule = self.recipe.rules[0 if self.holds(count, state, group) else 1]
        scale = group["lr"] * group["power"] * self.product
        if "product" in self.recipe.writes:
            state["product"] = state.get("product", 1.0) * 0.9
            scale *= 1 + state["product"]
        if rule == "momentum":
            buffer.mul_(0.9).add_(p.grad)
        elif rule == "ema":
            state["m"] = buffer = 0.8 * buffer + 0.2 * p.grad
        if rule == "corrected":
            p.sub_(p.grad + buffer, alpha=scale / (1 - 0.9**count))
        elif rule == "sign":
            p.sub_(p.grad.sign(), alpha=scale)
        elif rule == "decay":
            p.mul_(1 - scale).sub_(p.grad, alpha=scale / count)
        else:
            p.sub_(buffer, alpha=scale)


_rules = st.sampled_from(["momentum", "ema", "corrected", "sign", "decay"])
recipes = st.builds(
    Recipe,
    st.sampled_from(["int", "float", "tensor", "attribute", "group", "get", "nested"]),
    st.tuples(st.sampled_from(["count", "every", "rate", "last", "power", "flag"]), st.floats(2.0, 9.0)),
    st.tuples(_rules, _rules),
    st.sampled_from(["zeros", "zeros", "gradient", "parameter", "rate", "halves"]),
    st.frozensets(st.sampled_from(["rate", "power", "product"])),
)


@settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(recipe=recipes, absent=st.booleans())
def test_any_control_flow_on_numbers(recipe, absent):
    """Whatever the step branches on, counts in and writes back."""
    event(check(Misleading(Drawn, "", "", {"recipe": recipe}), absent=absent))
