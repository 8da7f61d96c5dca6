"""Gradient release: the bits of the plain step, gradients that are freed, and how it ends."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from released_training import SMALL, Training, batch
from small_training import SOON, Small, bits

import baoc_compile
from baoc_compile import GradientRelease
from baoc_compile.release_gradients import Released
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.runtime.session import session_of


def both(release=None, steps=6, micro=1, **options) -> None:
    """Train with and without release, and compare the bits."""
    plain = Training(**options).run(steps, micro)
    released = Training(release={"bucket_bytes": SMALL, **(release or {})}, **options)
    assert released.run(steps, micro) == plain
    assert len(released.handle.parts) >= 3 or release


# the same bits


@pytest.mark.parametrize("plan", ["fp32", "8bit", "4bit"])
def test_same_bits(plan):
    both(plan=plan)


@pytest.mark.parametrize(
    "optimizer, options",
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RAdam, {}),  # another step from the sixth on
        (torch.optim.Rprop, {}),  # state that begins as the learning rate
        (torch.optim.Adafactor, {}),  # replayed
        (torch.optim.AdamW, {"lr": torch.tensor(3e-3)}),
    ],
)
def test_same_bits_of_other_optimizers(optimizer, options):
    both(optimizer=optimizer, options=options, steps=8)


def test_same_bits_with_a_budget_and_a_new_plan():
    both(memory_budget="28%", steps=9, **SOON)


def test_same_bits_with_a_scheduler():
    both(schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)))


def test_same_bits_with_accumulation():
    both({"every": 3, "bucket_bytes": SMALL}, micro=3)
    both({"every": 3, "bucket_bytes": SMALL}, micro=2)  # all is stepped in optimizer.step()


class Halves(Small):
    """Uses one of its layers in every other pass only, and embeds with the weights of its head."""

    def __init__(self):
        super().__init__()
        self.head.weight = self.embedding.weight
        self.calls = 0

    def forward(self, tokens, targets):
        self.calls += 1
        x = self.norm(self.embedding(tokens))
        if self.calls % 2:
            x = x + self.out(torch.nn.functional.gelu(self.into(x)))
        return torch.nn.functional.cross_entropy(self.head(x), targets)


def test_same_bits_with_tied_weights_and_absent_gradients():
    both({"bucket_bytes": SMALL}, model=Halves, steps=7)
    both({"bucket_bytes": 1 << 30}, model=Halves, steps=7)


class Recomputed(Small):
    """Computes its activations again in the backward pass."""

    def forward(self, tokens, targets):
        return torch.utils.checkpoint.checkpoint(super().forward, tokens, targets, use_reentrant=False)


def test_same_bits_with_recomputed_activations():
    both(model=Recomputed)


def test_same_bits_with_frozen_and_new_parameters():
    def train(release: bool) -> str:
        training = Training(release={"bucket_bytes": SMALL} if release else None)
        training.model.norm.requires_grad_(False)
        training.run(2)
        training.model.norm.requires_grad_(True)
        extra = torch.nn.Parameter(torch.ones(200))
        training.optimizer.add_param_group({"params": [extra], "lr": 1e-2})
        head = training.model.head.forward
        training.model.head.forward = lambda x: head(x) + extra
        found = training.run(4)
        return found + str(extra.detach().sum().item())

    assert train(True) == train(False)


def test_same_bits_with_a_closure():
    def train(release: bool) -> tuple[str, list[float]]:
        training = Training(release={"bucket_bytes": SMALL} if release else None)
        losses = []
        for _ in range(5):
            losses.append(training.optimizer.step(lambda: training.backward()).item())
            training.optimizer.zero_grad()
            training.steps += 1
        return bits(training.model, training.optimizer), losses

    assert train(True) == train(False)


def test_same_bits_after_a_checkpoint():
    whole = Training().run(6)
    saved = Training(release={"bucket_bytes": SMALL})
    saved.run(3)
    resumed = Training(release={"bucket_bytes": SMALL})
    resumed.run(1)
    resumed.model.load_state_dict(saved.model.state_dict())
    resumed.optimizer.load_state_dict(deepcopy(saved.optimizer.state_dict()))
    resumed.steps = 3
    assert resumed.run(3) == whole


# what it costs, and what it saves


def test_gradients_are_freed_and_parts_are_bound_once(monkeypatch):
    bound = []
    make = BoundStep.__init__
    monkeypatch.setattr(BoundStep, "__init__", lambda self, *args: (bound.append(1), make(self, *args))[1])
    training = Training()
    parameters = list(training.model.parameters())
    peak = 0

    def measure(_):
        nonlocal peak
        alive = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, Released)]
        peak = max(peak, sum(g.numel() * g.element_size() for g in alive))

    for p in parameters:
        p.register_post_accumulate_grad_hook(measure)
    handle = baoc_compile.release_gradients(training.optimizer, bucket_bytes=SMALL)
    training.run(1)
    bound.clear()
    training.run(5)
    sizes = [sum(p.numel() * p.element_size() for p in part.parameters) for part in handle.parts]
    assert len(sizes) == 3 and sum(sizes) == sum(p.numel() * 4 for p in parameters)
    assert peak == max(sizes) < sum(sizes) / 2
    assert not bound
    assert all(p.grad is None for p in parameters)


def test_the_default_part_is_as_large_as_the_largest_gradient():
    training = Training(release={})
    assert training.handle.bucket_bytes == 4 * training.model.head.weight.numel()


# ends


@pytest.mark.parametrize("midway", [False, True])
def test_remove(midway):
    plain, released = Training(), Training(release={"bucket_bytes": SMALL})
    assert isinstance(released.handle, GradientRelease)
    released.run(3)
    if midway:
        released.backward()
    released.handle.remove()
    released.steps += midway
    assert released.run(3 - midway) == plain.run(6)
    released.backward()
    assert not any(isinstance(p.grad, Released) or p.grad is None for p in released.model.parameters())
    assert len(baoc_compile.release_gradients(released.optimizer).parts) == 0


def test_restore_ends_the_release():
    training = Training(release={})
    training.run(2)
    baoc_compile.restore(training.optimizer)
    training.backward()
    assert training.model.head.weight.grad.norm() > 0
    training.optimizer.step()


def test_a_step_that_is_refused_later_gets_its_gradients():
    training = Training(release={})
    training.run(2)
    session_of(training.optimizer).own.refuse("it is a test")
    before = bits(training.model, training.optimizer)
    training.backward()
    assert not isinstance(training.model.head.weight.grad, Released)
    training.optimizer.step()
    assert bits(training.model, training.optimizer) != before


def test_nothing_is_kept_alive():
    training = Training(release={})
    training.run(2)
    parameter, optimizer = weakref.ref(training.model.head.weight), weakref.ref(training.optimizer)
    model = training.model
    del training
    gc.collect()
    assert optimizer() is None
    model(*batch(0)).backward()
    assert model.head.weight.grad.norm() > 0
    del model
    gc.collect()
    assert parameter() is None


def test_copies_are_not_released():
    training = Training(release={})
    training.run(2)
    model, optimizer = deepcopy((training.model, training.optimizer))
    model(*batch(0)).backward()
    assert model.head.weight.grad.norm() > 0
    optimizer.step()
    assert not isinstance(model.head.weight.grad, Released)
