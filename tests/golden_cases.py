"""Golden cases: six optimizers, what baoc reads, rewrites and emits for them, and the bits that training with them gives.

`python tests/golden_cases.py` writes all of it anew into tests/golden/; look at the difference before you commit it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optimizers import Lion, ThreeSlots
from torch import Tensor, optim

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.kernels.cpp.emit import CppEmitter
from baoc_compile.kernels.triton.emit import TritonEmitter
from baoc_compile.kernels.triton.emit_average import TritonAverageEmitter
from baoc_compile.runtime.session import session_of
from baoc_compile.step_text import step_text

FOLDER = Path(__file__).parent / "golden"
SHAPES = ((96, 64), (128, 33), (70,))
STEPS = 6


@dataclass(frozen=True)
class GoldenCase:
    """`text_plan`: the plan whose emitted programs are kept as text. `plans`: those whose bits are kept."""

    make: Any
    options: dict[str, Any] = field(default_factory=dict)
    text_plan: Any = "8bit"
    plans: tuple[Any, ...] = ("fp32", "bf16", "8bit", "4bit")


CASES = {
    "adamw": GoldenCase(
        optim.AdamW, {"lr": 3e-3}, plans=("fp32", "bf16", "8bit", "4bit", "8bit-learned", "4bit-learned")
    ),
    "adamw_factored": GoldenCase(
        optim.AdamW,
        {"lr": 3e-3, "foreach": False},
        {"exp_avg": "4bit", "exp_avg_sq": "factored"},
        ({"exp_avg": "4bit", "exp_avg_sq": "factored"}, {"exp_avg": "dropped", "exp_avg_sq": "row"}),
    ),
    "sgd_nesterov": GoldenCase(optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop_momentum": GoldenCase(optim.RMSprop, {"lr": 2e-3, "momentum": 0.9}),
    "lion": GoldenCase(Lion, {"lr": 1e-3, "weight_decay": 0.1}),
    "three_slots": GoldenCase(ThreeSlots, {"lr": 1e-3, "weight_decay": 0.1}),
}


def trained(case: GoldenCase, plan: Any) -> Any:
    """The optimizer after a few compiled steps on seeded gradients; its parameters come from the same generator."""
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = case.make(parameters, **case.options)
    baoc_compile.prepare(optimizer, plan=plan)
    step = torch.compile(optimizer.step, backend="baoc")
    for _ in range(STEPS):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        step()
    return optimizer


def bits(optimizer: Any) -> str:
    """A hash of all parameters and of all that is stored of the state."""
    digest = hashlib.sha256()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            _add(digest, parameter.detach())
            for key in sorted(optimizer.state[parameter]):
                value = optimizer.state[parameter][key]
                if isinstance(value, StateTensor):
                    for name in sorted(value.parts):
                        _add(digest, value.parts[name])
                elif isinstance(value, Tensor):
                    _add(digest, value)
    return digest.hexdigest()[:24]


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def golden_bits(case: GoldenCase) -> dict[str, str]:
    return {json.dumps(plan): bits(trained(case, plan)) for plan in case.plans}


def golden_texts(case: GoldenCase) -> Iterator[tuple[str, str]]:
    """File name -> text: the rules, the rewritten step, the programs of the 8-bit (or given) plan in C++ and in Triton."""
    optimizer = trained(case, case.text_plan)
    inspection = baoc_compile.inspect(optimizer)
    yield "rules.txt", "\n\n".join(map(str, inspection.rules)) + "\n"
    yield "step.txt", step_text(inspection.graphs["rewritten"]) + "\n"
    launches = session_of(optimizer).own.bound.bound.launches
    graphs = list({launch.launch.graph.title: launch.launch.graph for launch in launches}.values())
    yield "programs_cpp.txt", "\n".join(CppEmitter(graph).body for graph in graphs)
    emitters = [(TritonAverageEmitter if graph.folds else TritonEmitter)(graph) for graph in graphs]
    yield "programs_triton.txt", "\n".join(emitter.body for emitter in emitters)


def write() -> None:
    every = {}
    for name, case in CASES.items():
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
        for file, text in golden_texts(case):
            (FOLDER / name / file).write_text(text)
        every[name] = golden_bits(case)
    (FOLDER / "bits.json").write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    write()
