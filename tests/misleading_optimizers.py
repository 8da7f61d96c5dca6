"""Optimizers that treat parameters differently: by index, name, identity, position, count, or what hangs on them."""

from __future__ import annotations

import torch
from misleading_base import OneByOne, misleads
from torch.utils.weak import WeakTensorKeyDictionary

plain_id = id


@misleads("right")
class ByIndex(OneByOne):
    """The rule depends on the parameter's number among all."""

    def update(self, p, state, group):
        index = next(i for i, q in enumerate(self.parameters) if q is p)
        p.sub_(p.grad.sign() if index % 2 else p.grad, alpha=group["lr"] * (index + 1))


@misleads("right")
class ByName(OneByOne):
    """The rule depends on the parameter's name."""

    def update(self, p, state, group):
        position = next(i for i, q in enumerate(group["params"]) if q is p)
        is_bias = "bias" in group["param_names"][position]
        p.sub_(p.grad if is_bias else p.grad * p.abs(), alpha=group["lr"])


@misleads("right")
class ByIdTable(OneByOne):
    """Scales are in a table by `id(p)`."""

    def begin(self):
        self.scales = {id(p): 0.5 + i for i, p in enumerate(self.parameters)}

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scales[id(p)])


@misleads("refused")
class ByOtherId(OneByOne):
    """The table is asked by another name of `id`, which a recorder may not lead astray, and has a default."""

    def begin(self):
        self.scales = {plain_id(p): 3.0 for p in self.parameters}

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scales.get(plain_id(p), 1.0))


@misleads("refused")
class ByHash(OneByOne):
    """The table is by `hash(p)`, and has a default."""

    def begin(self):
        self.scales = {hash(p): 3.0 for p in self.parameters}

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scales.get(hash(p), 1.0))


@misleads("right")
class ByTensorKey(OneByOne):
    """The table is by the parameter itself."""

    def begin(self):
        self.scales = {p: 0.5 + i for i, p in enumerate(self.parameters)}

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scales.get(p, 1.0))


@misleads("refused")
class ByWeakKey(OneByOne):
    """The table holds its parameters weakly."""

    def begin(self):
        self.scales = WeakTensorKeyDictionary({p: 3.0 for p in self.parameters})

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * self.scales.get(p, 1.0))


@misleads("right")
class BySet(OneByOne):
    """Some parameters are in a set."""

    def begin(self):
        self.special = set(self.parameters[1:])

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if p in self.special else p.grad, alpha=group["lr"])


@misleads("right")
class ByTag(OneByOne):
    """Parameters carry an attribute that someone hung on them."""

    def begin(self):
        for i, p in enumerate(self.parameters):
            p.scale = 2.0 + i

    def update(self, p, state, group):
        p.sub_(p.grad, alpha=group["lr"] * getattr(p, "scale", 1.0))


@misleads("right")
class ByShape(OneByOne):
    """Matrices and vectors have rules of their own."""

    def update(self, p, state, group):
        p.sub_(p.grad.sign() if p.ndim == 1 else p.grad, alpha=group["lr"] * max(1, p.shape[0] / 9))


@misleads("refused")
class ByPositionAmongPresent(OneByOne):
    """The first parameter that has a gradient takes a longer step."""

    def step(self):
        with torch.no_grad():
            present = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
            for i, (p, group) in enumerate(present):
                p.sub_(p.grad, alpha=group["lr"] * (5 if i == 0 else 1))


@misleads("refused")
class ByPresentCount(OneByOne):
    """Nothing is special until only one parameter has a gradient."""

    def step(self):
        with torch.no_grad():
            present = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
            for p, group in present:
                p.sub_(p.grad, alpha=group["lr"] * (9 if len(present) == 1 else 1))


@misleads("right")
class ByCallCount(OneByOne):
    """A counter runs over all updates, and every fourth is special."""

    def begin(self):
        self.calls = 0

    def update(self, p, state, group):
        self.calls += 1
        p.sub_(p.grad, alpha=group["lr"] * (7 if self.calls % 4 == 0 else 1))


@misleads("right")
class LateSwitch(OneByOne):
    """Another rule from step 7 on."""

    def begin(self):
        self.k = 0

    def step(self):
        self.k += 1
        super().step()

    def update(self, p, state, group):
        p.sub_(p.grad if self.k < 7 else p.grad.sign(), alpha=group["lr"])


@misleads("right")
class EveryThird(OneByOne):
    """Every third step of a parameter decays it."""

    def update(self, p, state, group):
        state["k"] = state.get("k", 0) + 1
        if state["k"] % 3 == 0:
            p.mul_(0.9)
        p.sub_(p.grad, alpha=group["lr"])
