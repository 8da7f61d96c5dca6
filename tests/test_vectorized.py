"""The compiler turns the loops over a program's elements into vector instructions. Nothing else would show it: a loop that it
gives up gives the same bits, several times slower. g++ 12 gives up conversions from and to fp16, and look-ups of 256 levels."""

from __future__ import annotations

import re
import subprocess

import pytest
from program_cases import FP16, PROGRAMS, SHARING, cpp, graphs_of

from baoc_compile.kernels.build.compile_cpp import FLAGS, compiler

LOOP = re.compile(r"for \(int lane = 0;")
DONE = re.compile(r":(\d+):\d+: optimized: loop vectorized")


def is_gcc() -> bool:
    return (
        "Free Software Foundation"
        in subprocess.run([*compiler().split(), "--version"], capture_output=True, text=True).stdout
    )


GIVEN_UP = [w for w in (*PROGRAMS, *SHARING) if FP16 in (w.dtype, w.grad_dtype) or w.form == "8bit-learned"]


@pytest.mark.parametrize("which", [w for w in (*PROGRAMS, *SHARING) if w not in GIVEN_UP], ids=str)
def test_loops_over_elements_are_vectorized(which, tmp_path):
    if not is_gcc():
        pytest.skip("other compilers report in other words")
    for graph in graphs_of(which):
        file = tmp_path / "program.cpp"
        file.write_text(cpp(graph).source)
        command = [
            *compiler().split(),
            *FLAGS,
            "-fopt-info-vec-optimized",
            "-S",
            "-o",
            str(tmp_path / "program.s"),
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        vectorized = {int(found) for found in DONE.findall(done.stderr)}  # lines of or in a loop
        lines = file.read_text().splitlines()
        loops = [i for i, line in enumerate(lines, 1) if LOOP.search(line)]
        ends = [next(j for j in range(i, len(lines)) if lines[j] == "      }") + 1 for i in loops]
        missed = [i for i, end in zip(loops, ends, strict=True) if not vectorized & set(range(i, end))]
        assert loops and not missed, f"{graph.title}: lines {missed}"
