"""Registers, spills, instructions and memory accesses of Triton kernels, compiled here for GPUs that need not be present.

Every configuration is compiled for each target in a process of its own, at the launch shape that is used when nothing
was measured. Writes the tables in docs/kernels.md.

    python benchmarks/registers.py [--targets sm_90 gfx942]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from baoc_compile.core.codec import WEIGHT_KEY
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.program_graph import ProgramGraph, Signature
from baoc_compile.kernels.build.cache import cache_folder
from baoc_compile.kernels.codecs.catalogue import codec_for, codec_named
from baoc_compile.passes.programs.compose_program import compose_step
from baoc_compile.passes.rules.read_step import read_step
from baoc_compile.runtime.lead_steps import own_function

REPORT = Path(__file__).resolve().parent.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- Written by benchmarks/registers.py from here -->", "<!-- to here. -->"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
Optimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters)


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, momentum=0.9)


def amsgrad(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, amsgrad=True)


#: Title -> the optimizer, slot -> format ("*": all others), the type of weights and gradients.
CONFIGURATIONS: dict[str, tuple[Optimizer, dict[str, str], torch.dtype]] = {
    "AdamW, fp32": (adamw, {"*": "fp32"}, torch.float32),
    "AdamW, bf16": (adamw, {"*": "bf16"}, torch.float32),
    "AdamW, 8bit": (adamw, {"*": "8bit"}, torch.float32),
    "AdamW, 4bit": (adamw, {"*": "4bit"}, torch.float32),
    "AdamW, 8bit-learned": (adamw, {"*": "8bit-learned"}, torch.float32),
    "AdamW, 8bit and factored": (adamw, {"exp_avg_sq": "factored", "*": "8bit"}, torch.float32),
    "AdamW, 8bit, bf16+8 weights": (adamw, {"*": "8bit", WEIGHT_KEY: "bf16+8"}, torch.bfloat16),
    "Adam with amsgrad, 8bit": (amsgrad, {"*": "8bit"}, torch.float32),
    "SGD with momentum, 8bit": (sgd, {"*": "8bit"}, torch.float32),
}


@dataclass
class Row:
    """A kernel as compiled. `wide_loads`, `wide_stores`: 128-bit accesses that whole tiles of its fp32 tensors take.

    `instructions`: of a whole tile over its elements; None on AMD GPUs and for averages.
    """

    title: str
    tile: int
    warps: int
    registers: int
    spills: int
    instructions: float | None
    loads: dict[str, int]
    stores: dict[str, int]
    wide_loads: int
    wide_stores: int


def graphs(make: Optimizer, forms: dict[str, str], dtype: torch.dtype) -> list[ProgramGraph]:
    """The programs of one step."""
    optimizer = make([torch.nn.Parameter(torch.zeros(3, 4))])
    warm = read_step(ParameterTable.of(optimizer), own_function(optimizer), frozenset([0])).warm
    rule = warm.rules[0]
    configuration = {}
    for slot in rule.slots:
        form = forms.get(slot.key, forms["*"])
        configuration[slot.key], reason = codec_for(form, slot, torch.Size((1024, 1024)), dtype)
        assert not reason, reason
    if WEIGHT_KEY in forms:
        configuration[WEIGHT_KEY] = codec_named(forms[WEIGHT_KEY])
    return compose_step(rule, configuration, Signature("cuda", dtype, dtype))


def measure(target: str) -> list[Row]:
    """Compiles all; not under TRITON_INTERPRET=1."""
    from baoc_compile.kernels.triton.compile_offline import TARGETS as KNOWN
    from baoc_compile.kernels.triton.compile_offline import compile_offline, instructions_per_element
    from baoc_compile.kernels.triton.program import TritonProgram, default_shape

    rows = []
    for title, configuration in CONFIGURATIONS.items():
        for graph in graphs(*configuration):
            program = TritonProgram(graph, default_shape(graph, KNOWN[target].warp_size))
            found = compile_offline(program, target)
            is_counted = not graph.folds and target.startswith("sm")
            lanes = [o for o in graph.operands if o.per == "element" and o.in_memory and o.dtype == torch.float32]
            rows.append(
                Row(
                    f"{title}: averages" if graph.folds else title,
                    program.shape.tile,
                    program.shape.warps,
                    found.registers,
                    found.spills,
                    instructions_per_element(program, target) if is_counted else None,
                    {str(bits): found.loads[bits] for bits in sorted(found.loads)},
                    {str(bits): found.stores[bits] for bits in sorted(found.stores)},
                    0 if graph.folds else sum(o.read for o in lanes),
                    0 if graph.folds else sum(o.written for o in lanes),
                )
            )
    return rows


def measured_apart(target: str) -> list[Row]:
    """`measure` in a process of its own: whether Triton compiles or interprets is decided once for a process."""
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache_folder().path / "offline" / target), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling for {target} failed:\n{done.stderr[-4000:]}")
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


# reporting


def widths(found: dict[str, int]) -> str:
    return ", ".join(f"{count} × {bits}" for bits, count in sorted(found.items(), key=lambda item: -int(item[0])))


def table(rows: list[Row]) -> str:
    lines = [
        "| kernel | tile, warps | registers | spills | instructions | loads | stores |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = f"{row.tile}, {row.warps}"
        count = "–" if row.instructions is None else f"{row.instructions:.0f}"
        cells = [row.title, shape, str(row.registers), str(row.spills), count, widths(row.loads), widths(row.stores)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(found: dict[str, list[Row]], page: Path) -> None:
    """Replaces what stands between the marks."""
    import triton

    sections = [f"Compiled by Triton {triton.__version__}."]
    sections += [f"### {target}\n\n{table(rows)}" for target, rows in found.items()]
    text = page.read_text()
    pattern = re.compile(rf"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    assert pattern.search(text), f"{page} has no marks to write between"
    body = "\n\n".join([BEGIN, *sections, END])
    page.write_text(pattern.sub(lambda _: body, text))
    print("\n\n".join(sections))
    print(f"\nReport: {page}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--measure", choices=TARGETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps([asdict(row) for row in measure(options.measure)]))
        return
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(options.targets, pool.map(measured_apart, options.targets), strict=True))
    report(found, options.report)


if __name__ == "__main__":
    main()
