"""Gradient release: the bits of the plain step, gradients that are freed, and what is refused."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from small_training import SOON, Small, bits

import baoc_compile
from baoc_compile import GradientRelease, OptionError, StateError
from baoc_compile.release_gradients import Released
from baoc_compile.runtime.bound_step import BoundStep
from baoc_compile.runtime.session import session_of

SMALL = 20_000  # bytes of a part: `Small` has three of them


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(200, (64,), generator=torch.Generator().manual_seed(step))
    return tokens, (3 * tokens + 1) % 200


class Training:
    """Trains `Small`, with or without release."""

    def __init__(self, optimizer=torch.optim.AdamW, release=None, model=None, schedule=None, options=None, **prepare):
        torch.manual_seed(0)
        self.model = model() if model is not None else Small()
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 3e-3, **(options or {})})
        baoc_compile.prepare(self.optimizer, model=self.model, **(prepare or {"plan": "8bit"}))
        self.handle = None if release is None else baoc_compile.release_gradients(self.optimizer, **release)
        self.schedule = schedule(self.optimizer) if schedule else None
        self.steps = 0

    def backward(self, micro: int = 0) -> torch.Tensor:
        loss = self.model(*batch(self.steps + 1000 * micro))
        loss.backward()
        return loss

    def run(self, steps: int = 6, micro: int = 1) -> str:
        for _ in range(steps):
            for k in range(micro):
                self.backward(k)
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            self.optimizer.zero_grad()
            self.steps += 1
        return bits(self.model, self.optimizer)


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


# refused, or told


def test_what_needs_all_gradients_is_told():
    training = Training(release={})
    training.backward()
    grad = training.model.head.weight.grad
    assert grad.shape == training.model.head.weight.shape and "released" in repr(grad)
    for use in (
        lambda: torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0),
        lambda: torch.nn.utils.clip_grad_value_(training.model.parameters(), 1.0),
        lambda: grad.norm(),
        lambda: torch.zeros_like(grad).copy_(grad),
    ):
        with pytest.raises(StateError, match=r"head\.weight|out\.|into\.|norm\.|embedding\.") as told:
            use()
        assert "release_gradients" in str(told.value)
    training.optimizer.step()
    assert training.model.head.weight.grad is None


def test_gradient_scalers_are_told():
    training, scaler = Training(release={}), torch.amp.GradScaler("cpu")
    scaler.scale(training.model(*batch(0))).backward()
    with pytest.raises(StateError, match="GradScaler"):
        scaler.step(training.optimizer)


@pytest.mark.parametrize("clears", [False, True])
def test_another_backward_pass_is_told(clears):
    training = Training(release={})
    training.backward()
    if clears:
        training.optimizer.zero_grad()
    with pytest.raises(StateError, match=r"every=n"):
        training.backward()


def test_another_gradient_is_told():
    training = Training(release={})
    training.backward()
    training.model.norm.bias.grad = torch.ones(48)
    with pytest.raises(StateError, match=r"norm\.bias was given another gradient"):
        training.optimizer.step()


def test_gradients_that_no_backward_pass_made_are_stepped():
    def train(release: bool) -> str:
        training = Training(release={} if release else None)
        for p in training.model.parameters():
            p.grad = torch.ones_like(p)
        training.optimizer.step()
        training.optimizer.zero_grad()
        return training.run(2)

    assert train(True) == train(False)


class Clipped(torch.optim.SGD):
    """Divides all gradients by their common norm."""

    def step(self, closure=None):
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad / norm, alpha=-group["lr"])


class Counting(torch.optim.SGD):
    """Counts its steps in a group."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-group["lr"] / group["count"])


@pytest.mark.parametrize("optimizer, reason", [(Clipped, "all gradients"), (Counting, "share")])
def test_steps_of_all_parameters_are_refused(optimizer, reason):
    training = Training(optimizer)
    training.run(2)  # the first one makes the entry that counts
    with pytest.raises(OptionError, match=reason):
        baoc_compile.release_gradients(training.optimizer)
    training.run(1)


def test_several_ranks_are_refused(monkeypatch):
    training = Training()
    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(OptionError, match="DistributedDataParallel"):
        baoc_compile.release_gradients(training.optimizer)
    monkeypatch.undo()
    baoc_compile.release_gradients(training.optimizer)
    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    before = bits(training.model, training.optimizer)
    with pytest.raises(StateError, match="ranks"):
        training.backward()
    assert bits(training.model, training.optimizer) == before


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": 1.5}, {"every": True}, {"bucket_bytes": 0}, {"bucket_bytes": "1 MiB"}]
)
def test_bad_options(options):
    training = Training()
    with pytest.raises(OptionError, match=next(iter(options))):
        baoc_compile.release_gradients(training.optimizer, **options)


def test_bad_optimizers():
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(OptionError, match="prepare"):
        baoc_compile.release_gradients(optimizer)
    training = Training(release={})
    with pytest.raises(OptionError, match="already"):
        baoc_compile.release_gradients(training.optimizer)
    deferred = Training(memory_budget="fit")
    with pytest.raises(OptionError, match="take one step first"):
        baoc_compile.release_gradients(deferred.optimizer)
    session_of(deferred.optimizer).own.refuse("it is a test")
    with pytest.raises(OptionError, match="it is a test"):
        baoc_compile.release_gradients(deferred.optimizer)


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
