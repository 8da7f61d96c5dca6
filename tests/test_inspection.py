"""What a user can look at, in a process that has never imported baoc_compile by itself, and what it costs to make."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import baoc_compile
from baoc_compile import StateError


def trained(count=4, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(
            torch.nn.Linear(80, 64 if i % 2 == 0 else 80) if i % 2 == 0 else torch.nn.Linear(64, 80)
            for i in range(count)
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    baoc_compile.prepare(optimizer, model=model, **options)
    step = torch.compile(optimizer.step, backend="baoc")
    model(torch.randn(8, 80)).square().mean().backward()
    step()
    return model, optimizer, step


def test_works_without_importing_the_package():
    script = """
import sys, torch
p = torch.nn.Parameter(torch.ones(80, 64))
optimizer = torch.optim.AdamW([p])
step = torch.compile(optimizer.step, backend="baoc")
p.grad = torch.ones(80, 64)
for _ in range(3): step()
assert (p < 1).all()
print(type(optimizer.state[p]["exp_avg"]).__name__)
"""
    assert "baoc_compile" not in script
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["StateTensor"]


def test_inspection_of_optimizer_step_and_function():
    _, optimizer, step = trained()

    def whole():
        optimizer.step()

    views = [baoc_compile.inspect(x) for x in (optimizer, step, torch.compile(whole, backend="baoc"))]
    assert len({str(v) for v in views}) == 1
    inspection = views[0]
    assert list(inspection.graphs) == ["recorded", "rewritten"]
    assert inspection.state_bytes == baoc_compile.state_bytes(optimizer)
    assert len(inspection.rules) == 1 and len(inspection.programs) == 2  # large and small tensors
    served = [name for program in inspection.programs for name in program.parameters]
    assert sorted(served) == sorted(name for name, _ in trained()[0].named_parameters())


def test_the_rewritten_graph_says_what_is_updated_and_how_it_is_stored():
    _model, optimizer, _ = trained()  # an optimizer does not keep the model's names alive
    inspection = baoc_compile.inspect(optimizer)
    text = str(inspection)
    for word in (
        "0.weight",
        "3.bias",
        "exp_avg: stored as e2m5",
        "exp_avg_sq: stored as e3m5",
        inspection.rules[0].key,
    ):
        assert word in text
    code = inspection.graphs["rewritten"].print_readable(print_output=False)
    assert "baoc.fused_update" in code and "0_weight_exp_avg_codes" in code
    nodes = [n for n in inspection.graphs["rewritten"].graph.nodes if n.op == "call_function"]
    assert len(nodes) == len(inspection.programs) and all("baoc" in n.meta for n in nodes)
    assert all(n.target is torch.ops.baoc.fused_update.default for n in nodes)


def test_the_recorded_graph_says_what_the_step_computes():
    """The same calls for every tensor, with the numbers as inputs."""
    model, optimizer, _ = trained()
    inspection = baoc_compile.inspect(optimizer)
    graph = inspection.graphs["recorded"].graph
    calls = [n.target.__name__ for n in graph.nodes if n.op == "call_function"]
    count = len(list(model.parameters()))
    assert calls[: len(calls) // count] * count == calls
    assert {"mul_", "lerp_", "addcmul_", "addcdiv_"} <= set(calls)
    inputs = " ".join(n.name for n in graph.nodes if n.op == "placeholder")
    assert all(name in inputs for name in ("0_weight_param", "3_bias_exp_avg_sq", "0_weight_grad"))


def test_sources_are_those_of_the_program():
    _, optimizer, _ = trained()
    for program in baoc_compile.inspect(optimizer).programs:
        assert 'extern "C" void run' in program.source and program.title in program.source


def test_nothing_compiled_is_a_clear_error():
    with pytest.raises(StateError, match="call the step once"):
        baoc_compile.inspect(torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]))


def test_state_bytes_is_exact():
    _, optimizer, _ = trained()
    total = 0
    for entries in optimizer.state.values():
        for value in entries.values():
            tensors = value.parts.values() if isinstance(value, baoc_compile.StateTensor) else [value]
            total += sum(t.untyped_storage().nbytes() for t in tensors)
    assert baoc_compile.state_bytes(optimizer) == total


def test_two_groups_that_differ_in_numbers_share_a_rule_and_a_program():
    params = [torch.nn.Parameter(torch.randn(80, 64)) for _ in range(2)]
    groups = [
        {"params": params[:1], "lr": 1e-2, "weight_decay": 0.1},
        {"params": params[1:], "lr": 1e-3, "weight_decay": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups)
    step = torch.compile(optimizer.step, backend="baoc")
    for p in params:
        p.grad = torch.ones_like(p)
    step()
    inspection = baoc_compile.inspect(optimizer)
    assert len(inspection.rules) == len(inspection.programs) == 1


def _calls(count: int) -> tuple[int, int]:
    """(function calls until the first step has run, programs) of `count` parameters."""
    params = [torch.nn.Parameter(torch.randn(64, 65 + i % 3)) for i in range(count)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(params)
    calls = 0

    def count_call(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count_call)
    try:
        baoc_compile.prepare(optimizer)
        optimizer.step()
    finally:
        sys.setprofile(None)
    return calls, len(baoc_compile.inspect(optimizer).programs)


def test_passes_are_linear_in_the_number_of_parameters():
    """Counted, not timed; benchmarks/first_call.py times them."""
    _calls(2)  # what is done once in a process
    (few, programs), (many, programs_of_many) = _calls(12), _calls(48)
    assert 0 < few < many <= 48 / 12 * few
    assert programs == programs_of_many == 1
