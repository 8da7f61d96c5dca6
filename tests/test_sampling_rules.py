"""Hyperparameters that change, and checkpoints that are saved and loaded, while gradients are sampled.

Sampling never fails, every sampled step keeps the rule and the numbers that it ran with, and a plan follows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from small_training import SOON, Training

import baoc_compile
from baoc_compile import BaocWarning
from baoc_compile.passes.risk.shadow_run import Samples, reference_run

pytestmark = pytest.mark.filterwarnings("error::baoc_compile.BaocWarning")

#: `SOON` samples five steps from step 1 on; the plan follows the last of them, which is step 5.
FIRST, DUE = 1, 6


def set_in_groups(training: Training, **options: Any) -> None:
    for group in training.optimizer.param_groups:
        group.update(options)


def set_in_half(training: Training, **options: Any) -> None:
    """Give half of the parameters a group of their own, with other options."""
    (group,) = training.optimizer.param_groups
    half = len(group["params"]) // 2
    training.optimizer.param_groups.append({**group, "params": group["params"][half:], **options})
    group["params"] = group["params"][:half]


@dataclass
class Sampled:
    """A training up to its plan, with a change before one of its steps.

    weights: the weights before every sampled step, and after the last one.
    grads: the gradients of every sampled step.
    streams: what was sampled, as it was before the plan was solved.
    """

    training: Training
    weights: list[list[torch.Tensor]] = field(default_factory=list)
    grads: list[list[torch.Tensor]] = field(default_factory=list)
    streams: dict[int, Any] = field(default_factory=dict)

    def run(self, changes: dict[int, Callable[[Training], None]]) -> Sampled:
        configurator = self.training.configurator
        solved = configurator.solve

        def solve(*arguments: Any) -> Any:
            assert configurator.sampler is None
            return solved(*arguments)

        configurator.solve = solve
        while self.training.steps < DUE:
            changes.get(self.training.steps, lambda training: None)(self.training)
            if configurator.sampler is not None:
                self.streams = configurator.sampler.streams
            if self.training.steps >= FIRST:
                self.weights.append([p.detach().clone() for p in self.parameters])
            self.training.step()
            if self.training.steps > FIRST:
                self.grads.append([p.grad.clone() for p in self.parameters])
        self.weights.append([p.detach().clone() for p in self.parameters])
        return self

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.training.optimizer.param_groups for p in group["params"]]

    def check_plan(self) -> None:
        configurator = self.training.configurator
        assert configurator.solution is not None and configurator.sampler is None
        assert len(configurator.history) == 1
        assert baoc_compile.state_bytes(self.training.optimizer) <= configurator.solution.budget_bytes
        before = [p.detach().clone() for p in self.parameters]
        set_in_groups(self.training, lr=1e-3)
        self.training.step(2)
        assert all(not torch.equal(a, b) for a, b in zip(before, self.parameters, strict=True))

    def check_streams(self) -> None:
        """Rule, numbers and gradient of every step belong together: run again, they give what training did."""
        assert sorted(self.streams) == list(range(len(self.parameters)))
        for i, stream in self.streams.items():
            assert len(stream.grads) == len(stream.rules) == len(stream.numbers) == DUE - FIRST
            for rule, numbers in zip(stream.rules, stream.numbers, strict=True):
                assert numbers.keys() == {scalar.name for scalar in rule.inputs_of("scalar")}
            for t, grad in enumerate(stream.grads):
                assert torch.equal(grad, self.grads[t][i].view(-1)[stream.index])
            weights, updates = reference_run(Samples(stream.rules[0], [stream]), 0)
            for t, update in enumerate(updates):
                before, after = (self.weights[t + k][i].view(-1)[stream.index] for k in (0, 1))
                torch.testing.assert_close(weights[t], before, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(update, after - before, rtol=1e-3, atol=1e-6)


ADAM = torch.optim.Adam
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
CHANGES = {
    "weight decay": (ADAM, partial(set_in_groups, weight_decay=0.1), True),
    "weight decay of SGD": (MOMENTUM, partial(set_in_groups, weight_decay=0.1), True),
    "weight decay of AdamW": (torch.optim.AdamW, partial(set_in_groups, weight_decay=0.3), False),
    "weight decay of some": (ADAM, partial(set_in_half, weight_decay=0.1), True),
    "learning rate": (ADAM, partial(set_in_groups, lr=1e-3), False),
    "learning rate over 1": (MOMENTUM, partial(set_in_groups, lr=1.5), False),
    "learning rate 0": (ADAM, partial(set_in_groups, lr=0.0), False),
    "betas": (ADAM, partial(set_in_groups, betas=(0.5, 0.9)), False),
    "maximize": (ADAM, partial(set_in_groups, maximize=True), True),
    "nesterov": (MOMENTUM, partial(set_in_groups, nesterov=True), True),
}


@pytest.mark.parametrize("at", [FIRST, 3, DUE - 1])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_hyperparameters_while_sampling(what, at):
    make, change, changes_rule = CHANGES[what]
    sampled = Sampled(Training(make, width=32, memory_budget="100%", **SOON)).run({at: change})
    sampled.check_streams()
    last = sampled.streams[len(sampled.parameters) - 1]
    differs = [rule != last.rules[0] for rule in last.rules]
    if changes_rule:
        assert differs == [at > FIRST and FIRST + t >= at for t in range(DUE - FIRST)]
    elif "over 1" not in what:  # of which less can be proved
        assert not any(differs)
    if at > FIRST and what != "nesterov":
        assert last.numbers[at - FIRST] != last.numbers[at - FIRST - 1]
    sampled.check_plan()


def test_a_rule_that_changes_by_itself_while_sampling():
    """RAdam has another rule from its sixth step on."""
    sampled = Sampled(Training(torch.optim.RAdam, width=32, memory_budget="100%", **SOON)).run({})
    sampled.check_streams()
    rules = sampled.streams[0].rules
    assert rules[0] == rules[3] != rules[4]
    sampled.check_plan()


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=20),
    "LinearLR": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.5),
}


@pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step"
)  # the step was compiled before torch counts it
@pytest.mark.parametrize("at", [FIRST, 3])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_first_steps_of_a_scheduler_while_sampling(scheduler, at):
    """It is made and stepped in the window; one that cycles changes the betas too."""
    made: list[Any] = []

    def make(training: Training) -> None:
        made.append(SCHEDULERS[scheduler](training.optimizer))

    changes: dict[int, Callable[[Training], None]] = {k: lambda training: made[0].step() for k in range(at + 1, DUE)}
    sampled = Sampled(Training(ADAM, width=32, memory_budget="100%", **SOON)).run({**changes, at: make})
    sampled.check_streams()
    numbers = [tuple(sorted(n.items())) for n in sampled.streams[0].numbers]
    assert len(set(numbers)) == len(numbers), "every step has its own numbers"
    sampled.check_plan()


# checkpoints


def loaded(saved: Any) -> Training:
    """A new training that goes on from a checkpoint."""
    other = Training(ADAM, width=32, memory_budget="30%", **SOON)
    model, optimizer, steps = copy.deepcopy(saved)
    other.model.load_state_dict(model)
    other.optimizer.load_state_dict(optimizer)
    other.steps = steps
    return other


def checkpoint(training: Training) -> Any:
    return copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict(), training.steps))


@pytest.mark.parametrize("change_at", [None, 3, 5])
@pytest.mark.parametrize("cut", [2, 4, 5])
def test_a_checkpoint_of_the_window_goes_on_with_its_samples(cut, change_at):
    """Weight decay begins before or after the cut. Where the rule is another one by then, its samples are given up."""
    change: dict[int, Callable[[Training], None]] = {}
    if change_at is not None:
        change[change_at] = partial(set_in_groups, weight_decay=0.1)
    uncut = Training(ADAM, width=32, memory_budget="30%", **SOON)
    while uncut.steps < DUE:
        change.get(uncut.steps, lambda training: None)(uncut)
        if uncut.steps == cut:
            saved = checkpoint(uncut)
        uncut.step()
    other = loaded(saved)
    assert other.configurator.steps == cut
    kept = saved[1]["baoc"]["configurator"]["sampler"]["streams"]
    while other.steps < DUE:
        if other.steps != cut:
            change.get(other.steps, lambda training: None)(other)
        other.step()
        if other.configurator.sampler is not None:
            for i, stream in other.configurator.sampler.streams.items():
                ours = [rule.key for rule in stream.rules]
                assert ours[: len(kept[i]["rules"])] == list(kept[i]["rules"])
                assert len(ours) == len(stream.numbers) == len(stream.grads) == other.steps - FIRST
                for rule, numbers in zip(stream.rules, stream.numbers, strict=True):
                    assert numbers.keys() == {scalar.name for scalar in rule.inputs_of("scalar")}
    assert other.configurator.solution is not None
    assert baoc_compile.state_bytes(other.optimizer) <= other.configurator.solution.budget_bytes
    was_other = change_at is not None and change_at <= cut  # the rule of the samples is that of the optimizer no more
    if not was_other:
        assert other.plan() == uncut.plan()
        other.step(2)
        uncut.step(2)
        assert other.bits() == uncut.bits()
    assert not other.configurator.is_sampling


def test_a_checkpoint_of_the_window_is_loaded_into_the_same_optimizer():
    """Going back to an earlier step of the window gives the same plan and bits again."""
    training = Training(ADAM, width=32, memory_budget="30%", **SOON)
    training.step(3)
    saved = checkpoint(training)
    training.step(DUE - 3)
    expected = training.plan(), training.bits()
    for _ in range(2):
        model, optimizer, steps = copy.deepcopy(saved)
        training.model.load_state_dict(model)
        training.optimizer.load_state_dict(optimizer)
        training.steps = steps
        training.step(DUE - 3)
        assert (training.plan(), training.bits()) == expected


def test_gradients_that_are_absent_while_sampling_are_given_up():
    training = Training(ADAM, width=32, memory_budget="30%", **SOON)
    training.step(3)
    streams = training.configurator.sampler.streams
    (head,) = (i for i, p in enumerate(training.model.parameters()) if p is training.model.head.weight)
    assert head in streams
    training.model.head.weight.requires_grad_(False)
    training.step(1)
    training.model.head.weight.requires_grad_(True)
    training.step(1)
    assert training.configurator.sampler.streams.keys() == streams.keys() - {head}
    training.step(1)
    assert training.configurator.solution is not None


def test_a_refused_step_ends_the_window():
    """A step that runs as written is not sampled; nothing is planned, and nothing fails."""
    training = Training(ADAM, width=32, memory_budget="30%", **SOON)
    training.step(3)
    with pytest.warns(BaocWarning, match="for a test"):
        training.session.own.refuse("for a test")
    training.step(DUE)
    assert training.configurator.solution is None
