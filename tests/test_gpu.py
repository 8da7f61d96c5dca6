"""Whole steps on a GPU, through the public interface: as exact as eager torch, without synchronization, in CUDA graphs.

Over 350 lines: a GPU is rare, and whoever has one runs and reads these together.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from optimizers import CASE_IDS, CASES, CASES_WITH_FOREACH, compiled_step, decoded, ulps
from program_cases import bits
from test_exact import STEPS, Trained, laid_out, largest, train, worst
from torch import Tensor

import baoc_compile
from baoc_compile import StateTensor

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
SHAPES = [(), (0,), (33,), (2, 3, 4, 5), (70, 9), (64, 65), (3, 4096)]

#: Rules with an elementwise function that no two libraries round alike.
TRANSCENDENTAL = {"ThreeSlots"}


def starts_and_gradients(dtype: torch.dtype = torch.float32, missing: int | None = 2) -> tuple[list, list]:
    """On the CPU; one gradient comes and goes, one parameter and its gradient are not contiguous."""
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    starts[3] = laid_out(starts[3], "channels_last")
    gradients: list[list[Tensor | None]] = []
    for t in range(STEPS):
        grads = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        grads[4] = laid_out(grads[4], "transposed")
        gradients.append([None if t % 2 and i == missing else grad for i, grad in enumerate(grads)])
    return starts, gradients


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    if isinstance(values, list):
        return [to_device(value, device, dtype) for value in values]
    return None if values is None else values.to(device, dtype)


def values_of(run: Trained, keys: Mapping[str, str]) -> dict[str, list[Tensor | None]]:
    """Parameters and slots, on the CPU."""
    found: dict[str, list[Tensor | None]] = {"parameter": [p.detach().cpu() for p in run.parameters]}
    for key in keys:
        slots = [run.slot(i, key) for i in range(len(run.parameters))]
        found[key] = [None if slot is None else slot.cpu() for slot in slots]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize(("name", "options"), CASES_WITH_FOREACH, ids=CASE_IDS)
def test_every_optimizer_is_as_exact_as_eager_torch(name, options, prepared, dtype):
    """Against float64 on the CPU: at most twice eager torch's error on this GPU, and half an ulp for each step."""
    case = CASES[name]
    starts, gradients = starts_and_gradients(dtype)
    exact = train(
        case,
        options,
        to_device(starts, torch.device("cpu"), torch.float64),
        to_device(gradients, torch.device("cpu"), torch.float64),
    )
    on_device = to_device(starts, DEVICE), to_device(gradients, DEVICE)
    eager = train(case, options, *on_device)
    ours = train(case, options, *on_device, lambda o: compiled_step(o, "fp32", prepared=prepared))
    reference, by_eager, by_us = (values_of(run, case.slots) for run in (exact, eager, ours))
    for key, expected in reference.items():
        errors, eager_errors = [], []
        for i, value in enumerate(expected):
            assert (value is None) == (by_us[key][i] is None), key
            if value is None:
                continue
            scale = exact.scales[i] if key == "parameter" else largest(value)
            errors.append(ulps(by_us[key][i], value, scale, dtype))
            eager_errors.append(ulps(by_eager[key][i], value, scale, dtype))
            assert torch.equal(by_us[key][i].isfinite(), value.isfinite()), key
        assert worst(errors) <= 2 * worst(eager_errors) + STEPS / 2, f"{key}: eager {worst(eager_errors)} ulps"
    for start, parameter in zip(starts, ours.parameters, strict=True):
        is_too_coarse = dtype != torch.float32 and parameter.numel() == 1
        assert start.numel() == 0 or is_too_coarse or not torch.equal(start, parameter.cpu())
    assert all(launched > 0 for launched in counts(ours.optimizer))


@pytest.mark.parametrize("plan", ["8bit", "bf16", "4bit", "8bit-learned"])
@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if case.slots and case.fills and n not in TRANSCENDENTAL]
)
def test_a_step_leaves_the_same_bits_as_on_the_cpu(name, plan):
    """Parameters, codes, scales and clocks after some steps, from the same start."""
    starts, gradients = starts_and_gradients(missing=None)
    options = {**CASES[name].options, **({"foreach": False} if CASES[name].has_foreach else {})}
    results = []
    for device in (torch.device("cpu"), DEVICE):
        torch._dynamo.reset()
        run = train(
            CASES[name],
            options,
            to_device(starts, device),
            to_device(gradients[:6], device),
            lambda o: compiled_step(o, plan, prepared=True),
        )
        results.append(everything_in(run.optimizer))
    on_cpu, on_gpu = results
    assert on_cpu.keys() == on_gpu.keys()
    for what, value in on_cpu.items():
        assert torch.equal(bits(value), bits(on_gpu[what])), what


def everything_in(optimizer: Any) -> dict[str, Tensor]:
    """Parameters and every tensor that state consists of, on the CPU, by name."""
    found = {}
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        found[f"{i}"] = p.detach().cpu()
        for key, value in optimizer.state.get(p, {}).items():
            parts = value.parts if isinstance(value, StateTensor) else {"": value}
            found |= {f"{i}.{key}.{part}": t.detach().cpu() for part, t in parts.items() if isinstance(t, Tensor)}
    return found


def counts(optimizer: Any) -> list[int]:
    return [program.launches for program in baoc_compile.inspect(optimizer).programs]


def adamw(shapes: list[tuple[int, ...]] = SHAPES[2:], **options: Any) -> torch.optim.AdamW:
    """Over parameters on the GPU that have gradients."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE)) for shape in shapes]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    return torch.optim.AdamW(parameters, **options)


def parameters_in(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def prepared(optimizer: Any, plan: Any) -> Callable[[], Any]:
    baoc_compile.prepare(optimizer, plan=plan)
    return torch.compile(optimizer.step, backend="baoc")


def fill_gradients(optimizer: Any, seed: int, *, in_place: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters_in(optimizer):
        grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        if in_place:
            p.grad.copy_(grad)
        else:
            p.grad = grad


PLANS = ["fp32", "8bit", "4bit", {"exp_avg_sq": "factored", "*": "8bit"}]
every_plan = pytest.mark.parametrize("plan", PLANS, ids=str)


@every_plan
def test_everything_stays_where_it_is(plan):
    optimizer = adamw()
    step = prepared(optimizer, plan)
    step()

    def tensors() -> list[Tensor]:
        found = list(parameters_in(optimizer))
        for p in parameters_in(optimizer):
            for value in optimizer.state[p].values():
                found += value.parts.values() if isinstance(value, StateTensor) else [value]
        return found

    before = [t.data_ptr() for t in tensors()]
    assert {t.device.type for t in tensors()} == {DEVICE.type}
    for seed in range(3):
        fill_gradients(optimizer, seed, in_place=False)
        step()
    assert [t.data_ptr() for t in tensors()] == before


@pytest.mark.parametrize("new_gradients", [False, True], ids=["gradients in place", "new gradients"])
@every_plan
def test_a_step_does_not_wait_for_the_gpu(plan, new_gradients):
    """torch raises at whatever synchronizes. The rate is a tensor on the GPU, and changes."""
    optimizer = adamw(lr=torch.tensor(1e-2, device=DEVICE), capturable=True)
    step = prepared(optimizer, plan)
    for seed in range(3):
        fill_gradients(optimizer, seed, in_place=not new_gradients)
        step()
    fill_gradients(optimizer, 3, in_place=not new_gradients)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            step()
            optimizer.param_groups[0]["lr"].mul_(0.5)
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_plan
def test_a_cuda_graph_replays_what_launches_do(plan):
    """Gradients are written where they were, and the rate, on the GPU, changes between replays."""
    results = []
    for captured in (False, True):
        torch._dynamo.reset()
        optimizer = adamw(lr=torch.tensor(1e-2, device=DEVICE), capturable=True)
        step = prepared(optimizer, plan)
        warm_up(optimizer, step)
        run: Callable[[], Any] = step
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            run = graph.replay
        for seed in range(4):
            fill_gradients(optimizer, 10 + seed, in_place=True)
            optimizer.param_groups[0]["lr"].fill_(1e-2 / (1 + seed))
            run()
        torch.cuda.synchronize()
        results.append(everything_in(optimizer))
    by_launches, by_replays = results
    for what, value in by_launches.items():
        assert torch.equal(bits(value), bits(by_replays[what])), what


def warm_up(optimizer: Any, step: Callable[[], Any]) -> None:
    """On another stream, as torch asks for before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for seed in range(3):
            fill_gradients(optimizer, seed, in_place=True)
            step()
    torch.cuda.current_stream().wait_stream(stream)


def test_a_step_between_replays_does_not_disturb_them():
    """It has gradients of its own, at other addresses; the graph still reads those that it was captured with."""
    results = []
    for captured in (False, True):
        torch._dynamo.reset()
        optimizer = adamw(lr=torch.tensor(1e-2, device=DEVICE), capturable=True)
        step = prepared(optimizer, "8bit")
        warm_up(optimizer, step)
        static = [p.grad for p in parameters_in(optimizer)]
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                step()
        for seed in range(4):
            is_replay = captured and seed % 2 == 0
            if seed % 2 == 0:
                for p, grad in zip(parameters_in(optimizer), static, strict=True):
                    p.grad = grad
            fill_gradients(optimizer, 10 + seed, in_place=seed % 2 == 0)
            graph.replay() if is_replay else step()
        torch.cuda.synchronize()
        results.append(everything_in(optimizer))
    for what, value in results[0].items():
        assert torch.equal(bits(value), bits(results[1][what])), what


def test_a_step_on_another_stream():
    """Work is put on the current stream, tables included."""
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        torch._dynamo.reset()
        optimizer = adamw()
        step = prepared(optimizer, "8bit")
        step()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for seed in range(3):
                fill_gradients(optimizer, seed, in_place=False)
                torch.cuda._sleep(10_000_000)  # whatever does not wait for this stream comes too early
                step()
                optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        results.append(everything_in(optimizer))
    for what, value in results[0].items():
        assert torch.equal(bits(value), bits(results[1][what])), what


def test_parameters_on_a_gpu_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    results = []
    for device in (torch.device("cuda", 0), torch.device("cuda", 1)):
        torch._dynamo.reset()
        starts, gradients = starts_and_gradients(missing=None)
        case = CASES["AdamW"]
        run = train(
            case,
            {"foreach": False},
            to_device(starts, device),
            to_device(gradients[:4], device),
            lambda o: compiled_step(o, "8bit", prepared=True),
        )
        results.append(everything_in(run.optimizer))
    for what, value in results[0].items():
        assert torch.equal(bits(value), bits(results[1][what])), what


@pytest.mark.parametrize("plan", ["fp32", "8bit", "4bit"])
def test_memory_stays_within_parameters_gradients_and_planned_state(plan):
    """From `prepare` on, full-precision state is never there. Launch shapes are measured before, with a small optimizer."""
    shape, tensors = (1024, 1024), 32

    def run(shapes: list[tuple[int, ...]], steps: int) -> tuple[int, int, int]:
        torch._dynamo.reset()
        optimizer = adamw(shapes)
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step = prepared(optimizer, plan)
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        parts = sum(
            len(value.parts) if isinstance(value, StateTensor) else 1
            for state in optimizer.state.values()
            for value in state.values()
        )
        return torch.cuda.max_memory_allocated() - before, baoc_compile.state_bytes(optimizer), parts

    run([shape], 1)
    peak, planned, parts = run([shape] * tensors, 4)
    slack = (
        512 * parts + 2**22
    )  # torch hands out memory in units of 512 bytes; tables, and chunks while state is filled
    assert peak <= planned + slack
    if plan != "fp32":
        assert planned + slack < 2 * 4 * shape[0] * shape[1] * tensors / 2


def test_gradients_of_a_step_are_freed():
    """With `set_to_none` the memory of a step's gradients is there for the next backward pass."""
    optimizer = adamw([(1024, 1024)] * 4)
    step = prepared(optimizer, "8bit")
    step()
    for seed in range(3):
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        before = torch.cuda.memory_allocated()
        fill_gradients(optimizer, seed, in_place=False)
        step()
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        assert torch.cuda.memory_allocated() - before < 2**20


def test_learned_codebooks_are_refreshed_on_the_gpu():
    """Levels move away from where they started, and what is decoded stays near an exact run."""
    optimizer = adamw([(3, 4096)], lr=1e-2)
    step = prepared(optimizer, "8bit-learned")
    (p,) = parameters_in(optimizer)
    state = optimizer.state[p]["exp_avg"]
    before = state.parts["levels"].clone()
    for seed in range(20):
        fill_gradients(optimizer, seed, in_place=False)
        step()
    assert not torch.equal(before, optimizer.state[p]["exp_avg"].parts["levels"])
    assert decoded(optimizer.state[p]["exp_avg"]).isfinite().all()
