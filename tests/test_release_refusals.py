"""What gradient release can't be combined with is refused, or told when a freed gradient is read."""

from __future__ import annotations

import pytest
import torch
from released_training import Training, batch
from small_training import Small, bits

import baoc_compile
from baoc_compile import OptionError, StateError
from baoc_compile.runtime.session import session_of


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
