"""Sampling and shadow runs, against what training really does; statistics and candidates of blocks."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import baoc_compile
from baoc_compile.core.block import Block
from baoc_compile.core.codec import GROUP_SIZE
from baoc_compile.kernels.codecs.catalogue import codec_named, full_precision
from baoc_compile.passes.plan.list_candidates import list_candidates
from baoc_compile.passes.risk.average_increments import IncrementMeans
from baoc_compile.passes.risk.block_statistics import block_statistics
from baoc_compile.passes.risk.gradient_stream import GradientStream
from baoc_compile.passes.risk.sample_gradients import GradientSampler, choose_elements, elements_per_block
from baoc_compile.passes.risk.shadow_run import Samples, reference_run, shadow_updates
from baoc_compile.passes.risk.slot_values import moments_of, signal_to_noise
from baoc_compile.runtime.session import session_of

SHAPES = [(96, 64), (64,), (40, 33)]


class Recorded:
    """AdamW over given gradients under `plan`, sampled in its last `steps` + 1 steps."""

    def __init__(self, plan, steps: int = 6, warm: int = 3):
        generator = torch.Generator().manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
        scales = [torch.rand(s, generator=generator) + 0.1 for s in SHAPES]
        self.grads = [
            [scale * torch.randn(s, generator=generator) for s, scale in zip(SHAPES, scales, strict=True)]
            for _ in range(warm + steps + 1)
        ]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-2, weight_decay=0.1)
        baoc_compile.prepare(self.optimizer, plan=plan)
        self.step = torch.compile(self.optimizer.step, backend="baoc")
        for t in range(warm):
            self.train(t)
        session = session_of(self.optimizer)
        bound = session.own.bound
        self.rules = bound.rules
        blocks = [Block(f"b{i}", (i,)) for i in range(len(SHAPES))]
        self.sampler = GradientSampler(session.table(), self.rules, blocks, steps, 0, 1 << 24)
        self.history = []
        for t in range(warm, warm + steps + 1):
            self.sampler.begin_step()
            self.history.append([p.detach().clone() for p in self.parameters])
            with bound.observed(partial(self.sampler.observe, rules=bound.rules, numbers_of=bound.numbers_of)):
                self.train(t)
            self.sampler.end_step()
        self.history.append([p.detach().clone() for p in self.parameters])

    def train(self, t: int) -> None:
        for parameter, grad in zip(self.parameters, self.grads[t], strict=True):
            parameter.grad = grad.clone()
        self.step()

    def samples(self, i: int) -> Samples:
        return Samples(self.rules[i], [self.sampler.streams[i]])


@pytest.fixture(scope="module")
def exact() -> Recorded:
    return Recorded("fp32")


@pytest.mark.parametrize("i", range(len(SHAPES)))
def test_the_reference_run_is_what_training_did(exact, i):
    assert exact.sampler.is_complete
    weights, updates = reference_run(exact.samples(i), 0)
    at = exact.sampler.streams[i].index
    for t in range(len(updates)):
        before, after = (exact.history[t + k][i].view(-1)[at] for k in (0, 1))
        assert torch.allclose(weights[t], before, rtol=1e-6, atol=1e-6)
        assert torch.allclose(updates[t], after - before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shared", ["factored", "row", "column", "tensor"])
def test_shadows_of_shared_state_use_the_means_of_whole_tensors(exact, shared):
    """A run that really shares the second moment, from the state that the exact run had when sampling began."""
    i, steps = 0, 6
    real = Recorded({"exp_avg": "fp32", "exp_avg_sq": shared}, steps=1, warm=1)
    session, key = session_of(real.optimizer), "exp_avg_sq"
    start = Recorded("fp32", steps=1, warm=2)  # the exact run's state after 3 steps, to copy
    for p, q in zip(real.parameters, start.parameters, strict=True):
        first = exact.history[0][[r is p for r in real.parameters].index(True)]
        p.data.copy_(first)
        del q
    state = session.table().state(i)
    moments = {k: torch.zeros(SHAPES[i]) for k in ("exp_avg", key)}
    for t in range(3):  # AdamW's own recurrences
        g = exact.grads[t][i]
        moments["exp_avg"].mul_(0.9).add_(g, alpha=0.1)
        moments[key].mul_(0.999).addcmul_(g, g, value=0.001)
    with torch.no_grad():
        state["exp_avg"].copy_(moments["exp_avg"])
        state[key].store(moments[key])
        state["step"].fill_(3.0)
    codecs = {"exp_avg": full_precision(torch.float32), key: codec_named(shared)}
    samples = exact.samples(i)
    weights, _ = reference_run(samples, 0)
    updates = shadow_updates(samples, codecs, weights, 0)
    at = exact.sampler.streams[i].index
    for t in range(steps):
        real.parameters[i].data.copy_(exact.history[t][i])
        for k, p in enumerate(real.parameters):
            p.grad = exact.grads[3 + t][k].clone()
        before = real.parameters[i].detach().clone()
        real.step()
        moved = (real.parameters[i].detach() - before).view(-1)[at]
        assert torch.allclose(updates[t], moved, rtol=2e-3, atol=2e-6), t


def test_shadows_of_rounded_state_err_as_the_codec_does(exact):
    samples = exact.samples(0)
    weights, updates = reference_run(samples, 0)
    errors = []
    for name in ("bf16", "8bit", "4bit"):
        rule = exact.rules[0]
        codecs = {
            s.key: baoc_compile.kernels.codecs.catalogue.codec_for(name, s, torch.Size(SHAPES[0]), torch.float32)[0]
            for s in rule.slots
        }
        e = shadow_updates(samples, codecs, weights, 0) - updates
        errors.append(float(e[1:].norm() / updates[1:].norm()))
    assert errors == sorted(errors)
    assert 1e-4 < errors[0] < 0.02 < errors[2] < 1.0


# sampling


@given(numel=st.integers(1, 5000), count=st.integers(0, 5000), seed=st.integers(0, 9))
def test_chosen_elements_are_whole_groups_in_order(numel, count, seed):
    index = choose_elements(numel, count, torch.Generator().manual_seed(seed))
    assert len(index) % GROUP_SIZE == 0
    assert int(index.max()) < numel
    groups = index.view(-1, GROUP_SIZE)
    assert (groups[:, 0] % GROUP_SIZE == 0).all()
    assert (groups[1:, 0] > groups[:-1, 0]).all()
    if numel >= GROUP_SIZE:
        assert (groups.diff(dim=1) == 1).all()
        assert len(index) <= max(count + GROUP_SIZE // 2, GROUP_SIZE)
    again = choose_elements(numel, count, torch.Generator().manual_seed(seed))
    assert torch.equal(index, again)


@given(
    numel=st.integers(1, 10**9),
    blocks=st.integers(1, 500),
    steps=st.integers(3, 64),
    size=st.integers(1 << 16, 1 << 28),
)
def test_samples_fit_the_buffer(numel, blocks, steps, size):
    count = elements_per_block(numel, blocks, steps, 2, size)
    assert count % GROUP_SIZE == 0
    assert count <= 65536
    assert blocks * count * (4 * (3 * steps + 7) + 8) <= size


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_increments_are_averaged_exactly(exact, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    param, grad = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    stream = exact.sampler.streams[0]
    means = IncrementMeans(exact.rules[0], "exp_avg_sq").of(param, grad, stream.counters, stream.numbers[0])
    square = 0.001 * grad.double().numpy() ** 2
    assert math.isclose(means.decay, 0.999, rel_tol=1e-9)
    np.testing.assert_allclose(means.rows.numpy(), square.mean(1), rtol=1e-5)
    np.testing.assert_allclose(means.columns.numpy(), square.mean(0), rtol=1e-5)
    np.testing.assert_allclose(float(means.mean), square.mean(), rtol=1e-5)


def test_signal_to_noise_of_planted_structure():
    v = torch.rand(50, 1).add(0.1).expand(50, 70).clone()
    ratios = moments_of(v, torch.empty(50, 70)).snr
    assert ratios["row"] > 1e5
    assert ratios["column"] < 20
    variance, mean = v.double().var(0, correction=0), v.double().mean(0)
    assert math.isclose(ratios["column"], float((mean**2 / variance).mean()), rel_tol=1e-4)
    assert signal_to_noise(torch.zeros(3), torch.zeros(3)) == 1e6


def test_a_stream_survives_a_checkpoint(exact, tmp_path):
    stream = exact.sampler.streams[0]
    torch.save(stream.state_dict(), tmp_path / "stream.pt")
    saved, rule = torch.load(tmp_path / "stream.pt", weights_only=True), exact.rules[0]
    loaded = GradientStream.from_state_dict(saved, {rule.key: rule})
    assert loaded.numbers == stream.numbers
    assert loaded.rules == stream.rules == [rule] * 7
    assert loaded.counters == stream.counters
    with pytest.raises(KeyError):
        GradientStream.from_state_dict(saved, {})
    assert all(torch.equal(a, b) for a, b in zip(loaded.tensors, stream.tensors, strict=True))


def test_block_statistics_are_their_formulas(exact):
    stream = exact.sampler.streams[0]
    found = block_statistics([stream])
    g, w = torch.stack(stream.grads).double().numpy(), stream.weights.double().numpy()
    squares, total = (g**2 * w).sum(), (g.sum(0) ** 2 * w).sum()
    steps = len(g)
    assert math.isclose(found.stability, (total - squares) / ((steps - 1) * squares), rel_tol=1e-9)
    groups = 0.5 * np.log((g**2).mean(0).reshape(-1, GROUP_SIZE).mean(1))
    assert math.isclose(found.anisotropy, groups.std(ddof=1), rel_tol=1e-9)
    steady = GradientStream(**{**vars(stream), "grads": [stream.grads[0]] * 5})
    assert math.isclose(block_statistics([steady]).stability, 1.0, rel_tol=1e-9)
    assert block_statistics([steady]).noise < 1e-9
    assert math.isnan(block_statistics([]).noise)


# candidates


@pytest.mark.parametrize("shape", [(256, 160), (160,), (), (32, 16, 3, 3), (5000,)])
def test_candidates_are_few_and_fall_in_size(exact, shape):
    slots = exact.rules[0].slots
    full = {s.key: full_precision(torch.float32) for s in slots}
    found = list_candidates(slots, torch.Size(shape), torch.float32, full)
    assert found[0].expected_harm == 0.0
    assert 2 <= len(found) <= 15
    sizes = [c.storage_bytes(torch.Size(shape)) for c in found]
    assert sizes == sorted(sizes, reverse=True)
    for c in found:
        assert not any(codec.why_not(s, torch.Size(shape)) for s, codec in zip(slots, c.codecs.values(), strict=True))
        assert c.codecs["exp_avg_sq"].mechanism != "dropping"
    odd = {"exp_avg": codec_named("codebook8"), "exp_avg_sq": codec_named("ucodebook8")}
    assert odd in [dict(c.codecs) for c in list_candidates(slots, torch.Size(shape), torch.float32, odd)]
