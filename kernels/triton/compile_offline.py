"""Compile an emitted kernel for a GPU that need not be present, and read the assembler's statistics.

See `benchmarks/registers.py`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from baoc_compile.kernels.build.load_triton import load_module
from baoc_compile.kernels.triton.program import TritonProgram
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: Types of the kernel's arguments. torch allocates the table's arrays, so they are aligned.
_TYPES = {"table": "*i64", "numbers": "*fp64", "instances": "*i32", "tickets": "*i32", "layouts": "*i64"}
_AVERAGE_TYPES = {
    "table": "*i64",
    "numbers": "*fp64",
    "tasks": "*i64",
    "tickets": "*i32",
    "layouts": "*i64",
    "partial_sums": "*fp64",
}


@dataclass(frozen=True)
class Compiled:
    """Statistics of a compiled kernel.

    registers: registers per thread.
    spills: bytes (NVIDIA) or registers (AMD) that did not fit.
    loads: bits of a load from global memory -> number of instructions.
    stores: bits of a store to global memory -> number of instructions.
    """

    registers: int
    spills: int
    loads: dict[int, int]
    stores: dict[int, int]


def compile_offline(program: TritonProgram, target: str, aligned: bool = True, strided: bool = False) -> Compiled:
    """Compile a program for a target and return its statistics.

    Raises what Triton and the assembler raise. Does not work under TRITON_INTERPRET=1.
    """
    built = _built(program, program.kernel, target, aligned, strided)
    return _amd(built.asm["amdgcn"]) if target.startswith("gfx") else _nvidia(built.asm["ptx"], target)


def instructions_per_element(program: TritonProgram, target: str) -> float:
    """Return the machine instructions of a whole tile over its elements, as a thread of an NVIDIA GPU runs them.

    Counted in the loop over tiles, compiled without its branch for other tiles: all instructions between the loop's label and
    the jump back to it. Subroutines for quotients and roots of extreme numbers lie outside.

    Raises as `compile_offline`, and ValueError for a program that averages.
    """
    whole = re.sub(
        r"        if \(count == BLOCK_SIZE\) & \(columns == padded\):\n    (.*\n)        else:\n.*\n",
        r"\1",
        program.source,
    )
    if program.graph.folds or whole == program.source:
        raise ValueError("only steps have tiles that are whole")
    built = _built(program, load_module(whole).step_tensors, target, aligned=True, strided=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(built.asm["cubin"])
        tool = Path(get_ptxas(TARGETS[target].arch).path).with_name("nvdisasm")
        text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    threads = program.shape.warps * TARGETS[target].warp_size
    return _longest_loop(text) / (program.shape.tile / threads)


def _longest_loop(disassembly: str) -> int:
    """Return the instructions of the longest stretch from a label to a jump back to it."""
    labels: dict[str, int] = {}
    longest = count = 0
    for line in disassembly.splitlines():
        label = re.match(r"\s*(\.L\w+):", line)
        if label:
            labels[label[1]] = count
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            count += 1
            jump = re.search(r"BRA.*`\((\.L\w+)\)", line)
            if jump and jump[1] in labels:
                longest = max(longest, count - labels[jump[1]])
    return longest


def _built(program: TritonProgram, kernel: Any, target: str, aligned: bool, strided: bool) -> Any:
    constants = program.constants(aligned, strided)
    types = _AVERAGE_TYPES if program.graph.folds else _TYPES
    signature = types | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(types))},
    )
    options = {"num_warps": program.shape.warps, "enable_fp_fusion": False}
    return triton.compile(source, target=TARGETS[target], options=options)


def _nvidia(ptx: str, target: str) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        arch = re.search(r"^\.target (\w+)", ptx, re.M)
        command = [get_ptxas(TARGETS[target].arch).path, "-v", "--gpu-name", arch[1] if arch else target]
        done = subprocess.run([*command, str(path), "-o", f"{path}.cubin"], capture_output=True, text=True, check=True)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None and spilled is not None, done.stderr
    return Compiled(int(registers[1]), int(spilled[1]), _widths(ptx, "ld"), _widths(ptx, "st"))


def _widths(ptx: str, verb: str) -> dict[int, int]:
    found = re.findall(rf"\b{verb}\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfus](\d+) ", ptx)
    return dict(Counter(int(lanes or 1) * int(bits) for lanes, bits in found))


_AMD_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}
_AMD_BITS |= {"ushort": 16, "sshort": 16, "short": 16, "ubyte": 8, "sbyte": 8, "byte": 8}


def _amd(assembly: str) -> Compiled:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spilled = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    assert registers is not None and spilled is not None

    def count(verb: str) -> dict[int, int]:
        kinds = re.findall(rf"\b(?:global|buffer|flat)_{verb}_(\w+)", assembly)
        return dict(Counter(_AMD_BITS[re.sub(r"_d16(_hi)?$", "", kind)] for kind in kinds))

    return Compiled(int(registers[1]), int(spilled[1]), count("load"), count("store"))
