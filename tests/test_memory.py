"""State memory: never allocated in full with `prepare`, freed after the first step without, nothing large in a step.

Allocations are read off torch's own profiler, which reports every one of the CPU allocator.
"""

from __future__ import annotations

import copy
import gc
import itertools
import weakref

import pytest
import torch

import baoc_compile

SHAPE = (1024, 512)  # 2 MiB in float32
FULL_BYTES = SHAPE[0] * SHAPE[1] * 4


def allocations(function) -> list[int]:
    """Sizes of all tensors allocated while `function` runs."""
    return [size for size in changes(function) if size > 0]


def changes(function) -> list[int]:
    """Bytes of all allocations while `function` runs, and of what is freed as negative numbers, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]


def model_and_optimizer(optimizer=torch.optim.AdamW):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(SHAPE)) for _ in range(2)]
    for p in parameters:
        p.grad = torch.randn(SHAPE)
    return parameters, optimizer(parameters)


def test_the_profiler_sees_an_allocation():
    assert max(allocations(lambda: torch.empty(SHAPE))) == FULL_BYTES


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Rprop])
def test_prepare_never_allocates_full_state(optimizer):
    _, prepared = model_and_optimizer(optimizer)
    step = torch.compile(prepared.step, backend="baoc")

    def run():
        baoc_compile.prepare(prepared, plan="8bit")
        for _ in range(3):
            step()

    sizes = allocations(run)
    assert sizes, "prepare allocates the codes"
    assert max(sizes) < FULL_BYTES // 2
    assert baoc_compile.state_bytes(prepared) < 0.28 * 2 * FULL_BYTES * len(
        prepared.state[prepared.param_groups[0]["params"][0]]
    )


def test_without_prepare_full_state_is_freed_after_the_first_step():
    parameters, optimizer = model_and_optimizer()
    optimizer.step()  # torch creates full-precision state
    full = [weakref.ref(optimizer.state[p][key]) for p in parameters for key in ("exp_avg", "exp_avg_sq")]
    step = torch.compile(optimizer.step, backend="baoc")
    step()
    gc.collect()
    assert [r() for r in full] == [None] * 4
    assert baoc_compile.state_bytes(optimizer) < 0.28 * 4 * FULL_BYTES


def test_transient_memory_of_a_step_does_not_grow_with_the_tensor():
    _, optimizer = model_and_optimizer()
    baoc_compile.prepare(optimizer)
    step = torch.compile(optimizer.step, backend="baoc")
    step()
    assert sum(allocations(step)) < 16384, (
        "the second step records the optimizer's own step again, without its elements"
    )
    assert sum(allocations(step)) < 1024


@pytest.mark.parametrize("plan, most", [("fp32", 0), ("8bit", 1)])
def test_a_replayed_piece_frees_what_it_is_done_with(plan, most):
    """It takes what the step takes, and the decoded slot of one parameter; nothing waits for the garbage collector."""
    peaks = []
    for prepared in (False, True):
        _, optimizer = model_and_optimizer(torch.optim.Muon)
        if prepared:
            baoc_compile.prepare(optimizer, plan=plan)
        for _ in range(3):  # the second step records the optimizer's own step again
            optimizer.step()
        gc.collect()
        gc.disable()
        try:
            found = list(itertools.accumulate(changes(optimizer.step)))
        finally:
            gc.enable()
        assert found[-1] <= 0.01 * FULL_BYTES
        peaks.append(max(found) / FULL_BYTES)
    assert optimizer._baoc_session.own.bound.bound.replays
    assert peaks[1] <= peaks[0] + most + 0.01


def test_transient_memory_of_the_torch_lowering_is_bounded(monkeypatch):
    """Where there is no compiler, chunks keep the step's memory below a constant."""
    import baoc_compile.passes.programs.make_programs as make_programs
    from baoc_compile.kernels.eager.program import CHUNK_ELEMENTS, TorchProgram
    from baoc_compile.passes.programs import lower

    monkeypatch.setattr(lower, "lower", TorchProgram)
    monkeypatch.setattr(make_programs, "_PROGRAMS", {})
    _, optimizer = model_and_optimizer()
    baoc_compile.prepare(optimizer)
    step = torch.compile(optimizer.step, backend="baoc")
    step()
    assert max(allocations(step)) <= 8 * CHUNK_ELEMENTS < FULL_BYTES


def test_replaced_state_is_freed():
    """load_state_dict must not leave the old codes alive in an earlier compiled step."""
    parameters, optimizer = model_and_optimizer()
    baoc_compile.prepare(optimizer)
    step = torch.compile(optimizer.step, backend="baoc")
    step()
    old = weakref.ref(optimizer.state[parameters[0]]["exp_avg"].parts["codes"])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step()
    gc.collect()
    assert old() is None
