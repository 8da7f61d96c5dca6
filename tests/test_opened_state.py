"""Steps as their users wrote them, on compressed state: decoded once, encoded once, whatever the step does with it."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.passes.migrate import opened_state as module
from baoc_compile.passes.migrate.find_slots import find_slots
from baoc_compile.passes.migrate.opened_state import opened_state
from baoc_compile.runtime import step_reader
from baoc_compile.runtime.lead_steps import own_function

STOCK = [(torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.RMSprop, {"momentum": 0.5})]


def trained(make: Any, foreach: bool, **options: Any) -> tuple[Any, list[Tensor]]:
    """An optimizer with 8-bit state that has taken two steps, and new gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(70, 65, generator=generator)) for _ in range(4)]
    optimizer = make(parameters, foreach=foreach, **options)
    baoc_compile.prepare(optimizer, plan="8bit")
    for _ in range(3):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        if p.grad is not None and len(optimizer.state) and optimizer._baoc_session.own.count == 2:
            break
        optimizer.step()
    return optimizer, parameters


def as_written(optimizer: Any) -> None:
    with torch.no_grad(), opened_state(optimizer):
        own_function(optimizer)(optimizer)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("make, options", STOCK)
def test_the_update_is_that_of_the_compiled_step(make, options, foreach):
    """To 1e-6 of its length, and so is the state: the same bits, but where an ulp of the value crosses a level."""
    optimizer, parameters = trained(make, foreach, **options)
    copied = copy.deepcopy(optimizer)
    others = copied.param_groups[0]["params"]
    for p, q in zip(parameters, others, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    as_written(copied)
    for p, q, b in zip(parameters, others, before, strict=True):
        assert (p - q).norm() <= 1e-6 * (p - b).norm() + 1e-7 * b.norm()
        for key, state in optimizer.state[p].items():
            if isinstance(state, StateTensor):
                other = copied.state[q][key]
                assert isinstance(other, StateTensor) and torch.equal(state.parts["clock"], other.parts["clock"])
                codes, theirs = state.parts["codes"], other.parts["codes"]
                assert (codes != theirs).float().mean() <= 1e-3


class Odd(torch.optim.Optimizer):
    """Does with its state what `self.does` says, for each parameter's dictionary."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # never read: it is called by hand
        raise NotImplementedError


def odd(count: int = 3) -> tuple[Odd, list[Any]]:
    parameters = [nn.Parameter(torch.randn(8, 40)) for _ in range(count)]
    optimizer = Odd(parameters)
    for k, p in enumerate(parameters):
        value = torch.full((8, 40), k + 1.0)
        optimizer.state[p] = {"m": StateTensor.encoded(value, CODECS["e2m5"], "m", 0), "n": 3}
    return optimizer, [optimizer.state[p] for p in parameters]


def test_what_is_only_read_keeps_its_bits():
    optimizer, entries = odd()
    before = [{k: v.clone() for k, v in e["m"].parts.items()} for e in entries]
    with opened_state(optimizer):
        assert all(type(optimizer.state[p]["m"]) is Tensor for p in optimizer.param_groups[0]["params"])
    for e, parts in zip(entries, before, strict=True):
        assert all(torch.equal(e["m"].parts[k], part) for k, part in parts.items() if k != "clock")
    assert all(optimizer.state[p] is e for p, e in zip(optimizer.param_groups[0]["params"], entries, strict=True))


@pytest.mark.parametrize("how", ["view", "data", "numpy", "list", "storage"])
def test_writes_through_what_the_step_keeps_count(how):
    """Whatever shows the memory of a decoded tensor keeps it open until the step ends, and after it."""
    optimizer, entries = odd()
    kept: list[Any] = []
    with torch.no_grad(), opened_state(optimizer):
        for p in optimizer.param_groups[0]["params"]:
            m = optimizer.state[p]["m"]
            kept.append(
                {
                    "view": lambda m=m: m.view(-1),
                    "data": lambda m=m: m.data,
                    "numpy": m.numpy,
                    "list": lambda m=m: m,
                    "storage": m.untyped_storage,
                }[how]()
            )
            del m
        for shown in kept:
            if how == "storage":
                shown.fill_(0)
            else:
                shown[...] = 0.0
    values = [e["m"].decode() if isinstance(e["m"], StateTensor) else e["m"] for e in entries]
    assert all(torch.equal(value, torch.zeros(8, 40)) for value in values)


def test_entries_that_are_replaced_removed_or_made():
    optimizer, entries = odd()
    first, second, third = optimizer.param_groups[0]["params"]
    with opened_state(optimizer):
        optimizer.state[first]["m"] = torch.full((8, 40), 5.0)
        assert optimizer.state[second].pop("m").shape == (8, 40)
        optimizer.state[second]["new"] = torch.ones(3)
        optimizer.state[third]["m"] = torch.zeros(2)
        optimizer.state[third]["n"] += 1
    assert isinstance(entries[0]["m"], StateTensor) and (entries[0]["m"].decode() == 5.0).all()
    assert entries[1].keys() == {"n", "new"}
    assert torch.equal(entries[2]["m"], torch.zeros(2)) and entries[2]["n"] == 4


def test_every_way_to_read_a_dictionary_decodes():
    optimizer, _ = odd()
    first = optimizer.param_groups[0]["params"][0]
    with opened_state(optimizer):
        for read in (
            lambda s: s.get("m"),
            lambda s: s.setdefault("m", 0),
            lambda s: next(iter(s.values())),
            lambda s: dict(s.items())["m"],
            lambda s: s.copy()["m"],
        ):
            assert type(read(optimizer.state[first])) is Tensor
        assert optimizer.state[first].get("absent", 7) == 7 and len(optimizer.state[first]) == 2


def test_a_step_that_raises_loses_nothing():
    optimizer, entries = odd()
    with pytest.raises(RuntimeError, match="in the middle"), opened_state(optimizer):
        with torch.no_grad():
            optimizer.state[optimizer.param_groups[0]["params"][0]]["m"].mul_(2.0)
        raise RuntimeError("in the middle")
    assert [float(e["m"].decode().mean()) for e in entries] == [2.0, 2.0, 3.0]
    assert all(isinstance(e["m"], StateTensor) for e in entries)


def test_nothing_waits_for_the_garbage_collector():
    optimizer, entries = odd()
    held = [weakref.ref(e["m"]) for e in entries]
    gc.disable()
    try:
        with opened_state(optimizer):
            for p in optimizer.param_groups[0]["params"]:
                optimizer.state[p]["m"].mul_(2.0)
                optimizer.state[p]["new"] = torch.zeros(3)
        for e in entries:
            e.clear()
        assert [reference() for reference in held] == [None] * 3
    finally:
        gc.enable()


class Branching(torch.optim.Optimizer):
    """Momentum that is reset where a gradient is large: a branch on values, which no recording follows."""

    def __init__(self, parameters: Any, lr: float = 0.01):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                if p.grad.norm() > 1e6:
                    state["m"].zero_()
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad.square(), 0.01)
                p.addcdiv_(state["m"], state["v"].sqrt().add_(1e-8), value=-group["lr"])


@pytest.mark.parametrize("make, most", [(Branching, 2), (torch.optim.AdamW, 8)])
def test_a_loop_has_one_parameter_in_full_precision(monkeypatch, make, most):
    """Its two slots. torch's own steps collect the state of all parameters first: here of four."""
    parameters = [nn.Parameter(torch.randn(64, 96)) for _ in range(4)]
    optimizer, alive, peak = make(parameters), set(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baoc_compile.prepare(optimizer, plan="8bit")
        for p in parameters:
            p.grad = torch.randn(64, 96)
        optimizer.step()
        optimizer.step()

    real_decoded, real_encode = module.decoded, module.encode

    def decoded(state: StateTensor) -> Tensor:
        alive.add(id(state))
        peak.append(len(alive))
        return real_decoded(state)

    def encode(state: StateTensor, value: Tensor) -> None:
        alive.discard(id(state))
        real_encode(state, value)

    monkeypatch.setattr(module, "decoded", decoded)
    monkeypatch.setattr(module, "encode", encode)
    as_written(optimizer)
    assert max(peak) == most and not alive


def test_a_step_that_collects_all_state_looks_at_each_entry_a_few_times(monkeypatch):
    optimizer, _ = odd(100)
    looked, is_held = [], module._Open.is_held
    monkeypatch.setattr(module._Open, "is_held", lambda entry: looked.append(entry) or is_held(entry))
    with opened_state(optimizer):
        collected = [optimizer.state[p]["m"] for p in optimizer.param_groups[0]["params"]]
    assert len(collected) == 100 <= len(looked) <= 400


def test_a_step_that_is_refused_has_compressed_state():
    """From its first step on, within the budget, with the codec that the sign of each slot asks for, and one notice."""
    results = []
    for prepared in (False, True):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(64, 96)) for _ in range(2)]
        optimizer = Branching(parameters)
        if prepared:
            baoc_compile.prepare(optimizer, memory_budget="30%")
        start = [p.detach().clone() for p in parameters]
        for t in range(12):
            for p in parameters:
                p.grad = torch.randn(p.shape) + 0.5
            if prepared and t == 1:  # the first step only runs as written
                with pytest.warns(baoc_compile.BaocWarning, match="runs as written.*branches on the values"):
                    optimizer.step()
            else:
                optimizer.step()
        results.append(torch.cat([(p - s).flatten() for p, s in zip(parameters, start, strict=True)]).detach())
    eager, ours = results
    assert (ours - eager).norm() <= 0.1 * eager.norm()
    for p in parameters:
        codecs = {key: value.codec.name for key, value in optimizer.state[p].items()}
        assert codecs == {"m": "e2m5", "v": "e3m5"}
    assert baoc_compile.state_bytes(optimizer) <= 0.3 * 2 * 4 * sum(p.numel() for p in parameters)


def test_state_that_something_else_holds_stays_as_it_is():
    """A copy in the dictionary would no longer be what the attribute shows. The step calls that of its base class."""
    baoc_compile.prepare(
        Branching([nn.Parameter(torch.randn(64, 96))]), plan="fp32"
    )  # the base class has a step of ours, too

    class Holding(Branching):
        def step(self, closure: Any = None) -> None:
            super().step()
            self.held = [self.state[p]["m"] for p in self.param_groups[0]["params"]]

    parameters = [nn.Parameter(torch.randn(64, 96))]
    optimizer = Holding(parameters)
    baoc_compile.prepare(optimizer, memory_budget="60%")
    with pytest.warns(baoc_compile.BaocWarning, match="runs as written"):
        for _ in range(3):
            parameters[0].grad = torch.randn(64, 96)
            optimizer.step()
    assert type(optimizer.state[parameters[0]]["m"]) is Tensor is type(optimizer.held[0])
    assert optimizer.state[parameters[0]]["m"] is optimizer.held[0]
    assert isinstance(optimizer.state[parameters[0]]["v"], StateTensor)


def test_state_that_is_held_later_is_left_alone_from_then_on():
    """What the step holds outside of its state is the state: writes through it count."""

    class HoldingLate(Branching):
        def step(self, closure: Any = None) -> None:
            super().step()
            for p in self.param_groups[0]["params"]:
                self.count = getattr(self, "count", 0) + 1
                if self.count == 4:
                    self.held = self.state[p]["m"]
                if self.count > 4:
                    self.held.mul_(0.5)

    results = []
    for prepared in (False, True):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(64, 96))
        optimizer = HoldingLate([parameter])
        if prepared:
            baoc_compile.prepare(optimizer, memory_budget="30%")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for t in range(8):
                parameter.grad = torch.randn(64, 96)
                optimizer.step()
                if prepared and t == 2:
                    assert isinstance(optimizer.state[parameter]["m"], StateTensor)
        results.append(optimizer.state[parameter]["m"].clone())
        assert optimizer.held is optimizer.state[parameter]["m"]
    assert (results[1] - results[0]).norm() <= 0.05 * results[0].norm()


def test_state_that_is_settled_is_not_looked_for_again(monkeypatch):
    """But new state is: that of a new group, and what the step puts in the place of other state."""
    looked = []

    def counted(*args: Any) -> Any:
        looked.append(None)
        return find_slots(*args)

    monkeypatch.setattr(step_reader, "find_slots", counted)
    first, second, tiny = (nn.Parameter(torch.randn(shape)) for shape in ((64, 96), (96, 64), (3,)))
    optimizer = Branching([first, tiny])
    baoc_compile.prepare(optimizer, memory_budget="30%")

    def step() -> int:
        looked.clear()
        for p in (first, second, tiny):
            p.grad = torch.randn(p.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        return len(looked)

    assert [step() for _ in range(5)] == [0, 1, 0, 0, 0]  # the first step is read again at the second
    optimizer.add_param_group({"params": [second]})
    assert [step() for _ in range(3)] == [1, 0, 0]
    assert isinstance(optimizer.state[second]["m"], StateTensor) and type(optimizer.state[tiny]["m"]) is Tensor
    optimizer.state[first]["m"] = optimizer.state[first]["m"].decode()
    assert [step() for _ in range(3)] == [1, 0, 0]
    assert isinstance(optimizer.state[first]["m"], StateTensor)
