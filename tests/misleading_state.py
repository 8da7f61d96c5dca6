"""Optimizers whose state is unusual: first steps, numbers and flags in containers, replaced tensors."""

from __future__ import annotations

import torch
from misleading_base import OneByOne, misleads


@misleads("right")
class FirstCopiesGradient(OneByOne):
    """The buffer begins as a copy of the gradient."""

    def update(self, p, state, group):
        if "buffer" not in state:
            state["buffer"] = p.grad.clone()
        else:
            state["buffer"].mul_(0.9).add_(p.grad, alpha=0.3)
        p.sub_(state["buffer"], alpha=group["lr"])


@misleads("right")
class FirstHalves(OneByOne):
    """The first step halves the parameter."""

    def update(self, p, state, group):
        if not state:
            state["m"] = torch.zeros_like(p)
            p.mul_(0.5)
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(state["m"], alpha=group["lr"])


@misleads("right")
class FirstHalvesByRate(OneByOne):
    """The first step halves the parameter, and the rule depends on the learning rate."""

    def update(self, p, state, group):
        if not state:
            state["m"] = torch.zeros_like(p)
            p.mul_(0.5)
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(state["m"].sign() if group["lr"] > 0.012 else state["m"], alpha=group["lr"])


@misleads("refused")
class FirstThenData(OneByOne):
    """Numbers begin the state; a large learning rate makes the step look at data."""

    def update(self, p, state, group):
        if not state:
            state["m"] = torch.zeros_like(p)
            p.mul_(0.5)
        state["m"].mul_(0.9).add_(p.grad)
        scale = float(p.grad.norm()) if group["lr"] > 0.012 else 1.0
        p.sub_(state["m"], alpha=group["lr"] * scale)


@misleads("right")
class FirstRate(OneByOne):
    """The state begins with the learning rate of the first step."""

    def update(self, p, state, group):
        if not state:
            state["sizes"] = torch.full_like(p, group["lr"])
            state["first"] = group["lr"]
        state["sizes"].mul_(1.1)
        p.sub_(p.grad * state["sizes"] + state["first"] * p)


@misleads("right")
class Anchor(OneByOne):
    """The state is the parameter as it was at first."""

    def update(self, p, state, group):
        if not state:
            state["anchor"] = p.clone()
        p.sub_(p.grad + 0.5 * (p - state["anchor"]), alpha=group["lr"])


@misleads("right")
class PreviousParameter(OneByOne):
    """Keeps the parameter of the step before."""

    def update(self, p, state, group):
        previous = state.get("previous", p).clone()
        state["previous"] = p.clone()
        p.add_(0.5 * (p - previous)).sub_(p.grad, alpha=group["lr"])


@misleads("refused")
class KeepsGradient(OneByOne):
    """Keeps the gradient itself."""

    def update(self, p, state, group):
        change = p.grad - state.get("last", torch.zeros_like(p))
        p.sub_(p.grad + 0.1 * change, alpha=group["lr"])
        state["last"] = p.grad


@misleads("right")
class NumbersInState(OneByOne):
    """An int, a float, a flag and a string are state."""

    def update(self, p, state, group):
        if not state:
            state.update(k=0, size=1.0, fresh=True, phase="cold")
        scale = 2.0 if state["fresh"] else 1.0
        p.sub_(p.grad if state["phase"] == "cold" else p.grad.sign(), alpha=group["lr"] * scale * state["size"])
        state["k"] += 1
        state["size"] *= 0.95
        state["fresh"] = False
        state["phase"] = "warm" if state["k"] >= 4 else "cold"


@misleads("right")
class FlagBesideCount(OneByOne):
    """A flag that every step flips, beside a counter."""

    def update(self, p, state, group):
        if not state:
            state["k"], state["odd"], state["m"] = 0, False, torch.zeros_like(p)
        state["k"] += 1
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(state["m"] if state["odd"] else p.grad, alpha=group["lr"])
        state["odd"] = not state["odd"]


@misleads("right")
class NestedFlag(OneByOne):
    """A flag in a dictionary in the state, which every step flips."""

    def update(self, p, state, group):
        if not state:
            state["m"], state["on"] = torch.zeros_like(p), {"odd": False}
        state["m"].mul_(0.9).add_(p.grad)
        p.sub_(state["m"] if state["on"]["odd"] else p.grad, alpha=group["lr"])
        state["on"]["odd"] = not state["on"]["odd"]


@misleads("right")
class NestedNumbers(OneByOne):
    """Numbers in lists and dictionaries in the state."""

    def update(self, p, state, group):
        if not state:
            state["numbers"] = {"k": 0, "powers": [1.0, 1.0]}
        numbers = state["numbers"]
        numbers["k"] += 1
        numbers["powers"][0] *= 0.9
        numbers["powers"][1] *= 0.99
        p.sub_(p.grad, alpha=group["lr"] * numbers["powers"][0] / numbers["powers"][1] / numbers["k"])


@misleads("refused")
class TupleInState(OneByOne):
    """Numbers in a tuple in the state, which every step replaces."""

    def update(self, p, state, group):
        k, power = state.get("pair", (0, 1.0))
        state["pair"] = (k + 1, power * 0.9)
        p.sub_(p.grad, alpha=group["lr"] * power / (k + 1))


@misleads("refused")
class BuffersInList(OneByOne):
    """Two buffers in a list, which change places."""

    def update(self, p, state, group):
        if not state:
            state["buffers"] = [torch.zeros_like(p), torch.zeros_like(p)]
        first, second = state["buffers"]
        first.mul_(0.5).add_(p.grad)
        p.sub_(first + second, alpha=group["lr"])
        state["buffers"] = [second, first]


@misleads("refused")
class BuffersSwap(OneByOne):
    """Two slots change places at every step."""

    def update(self, p, state, group):
        if not state:
            state["a"], state["b"] = torch.zeros_like(p), torch.ones_like(p)
        state["a"].mul_(0.5).add_(p.grad)
        p.sub_(state["a"] + 0.1 * state["b"], alpha=group["lr"])
        state["a"], state["b"] = state["b"], state["a"]


@misleads("refused")
class Replaced(OneByOne):
    """The whole state is replaced at every step."""

    def update(self, p, state, group):
        old = state.get("m", torch.zeros_like(p))
        self.state[p] = {"m": old * 0.9 + p.grad, "k": state.get("k", 0) + 1}
        p.sub_(self.state[p]["m"], alpha=group["lr"] / self.state[p]["k"])


@misleads("right")
class TensorCountReplaced(OneByOne):
    """A 0-dim tensor is replaced at every step."""

    def update(self, p, state, group):
        state["k"] = state.get("k", torch.tensor(0.0)) + 1
        p.sub_(p.grad, alpha=group["lr"] / state["k"].item())


@misleads("right")
class FlagBesideCountFromStart(OneByOne):
    """The same as `FlagBesideCount`, with state that exists before the first step."""

    def begin(self):
        for p in self.parameters:
            self.state[p].update(k=0, odd=False)

    def update(self, p, state, group):
        state["k"] += 1
        p.sub_(p.grad.sign() if state["odd"] else p.grad, alpha=group["lr"] / state["k"])
        state["odd"] = not state["odd"]


@misleads("right")
class NestedFlagFromStart(OneByOne):
    """The same as `NestedFlag`, with state that exists before the first step."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["on"] = {"odd": False}

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if state["on"]["odd"] else p.grad, alpha=group["lr"])
        state["on"]["odd"] = not state["on"]["odd"]


@misleads("right")
class NestedNumbersFromStart(OneByOne):
    """The same as `NestedNumbers`, with state that exists before the first step."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["numbers"] = {"k": 0, "powers": [1.0, 1.0]}

    def update(self, p, state, group):
        numbers = state["numbers"]
        numbers["k"] += 1
        numbers["powers"][0] *= 0.9
        p.sub_(p.grad if numbers["k"] < 5 else p.grad.sign(), alpha=group["lr"] * numbers["powers"][0])


@misleads("right")
class GlobalNumbers(OneByOne):
    """Numbers under a string in the state, made at the first step."""

    def step(self):
        numbers = self.state.setdefault("numbers", {})
        numbers["short"] = 0.5 * self.param_groups[0]["lr"] + 0.5 * numbers.get("short", 0.0)
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=self.state["numbers"]["short"])


@misleads("right")
class CountReplacedFromStart(OneByOne):
    """A 0-dim tensor that exists before the first step is replaced at every step."""

    def begin(self):
        for p in self.parameters:
            self.state[p]["k"] = torch.tensor(0.0)

    def update(self, p, state, group):
        state["k"] = state["k"] + 1
        p.sub_(p.grad, alpha=group["lr"] / state["k"].item())


@misleads("right")
class SharedOptions(OneByOne):
    """A dictionary of options that groups and defaults share, empty, or with a number that the step changes."""

    def begin(self):
        self.empty, self.options = {}, {"k": 0}
        for group in self.param_groups:
            group["empty"], group["options"] = self.empty, self.options

    def step(self):
        self.param_groups[0]["options"]["k"] += 1
        super().step()

    def update(self, p, state, group):
        scaled = p.grad.mul(1.0, **group["empty"])
        p.sub_(scaled if self.options["k"] < 7 else scaled.sign(), alpha=group["lr"] / group["options"]["k"])


@misleads("right")
class SharedOptionsReplaced(OneByOne):
    """A dictionary that two places share until the step gives one of them another."""

    def begin(self):
        self.options = {"scale": 1.0}
        self.param_groups[0]["options"] = self.options

    def step(self):
        super().step()
        self.options = {"scale": self.options["scale"] * 0.5}

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.options["scale"] * self.param_groups[0]["options"]["scale"])
