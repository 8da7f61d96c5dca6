"""The launch shape of a kernel, measured once on the GPU that it runs on and remembered on disk."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch

from baoc_compile.core.codec import GROUP_SIZE, Sharing
from baoc_compile.core.program_graph import Operand, ProgramGraph, TensorArguments
from baoc_compile.kernels.build.cache import cache_folder
from baoc_compile.kernels.triton.program import LaunchShape, TritonProgram, default_shape

log = logging.getLogger("baoc")

#: Shapes to measure besides `default_shape`: elements of a tile, tiles of a program instance, threads.
CANDIDATES = ((512, 4, 128), (1024, 8, 256), (1024, 8, 128), (2048, 4, 256))
_ELEMENTS = 1 << 23
_ROUNDS = 5


def choose_shape(graph: ProgramGraph, device: torch.device) -> LaunchShape:
    """Return the fastest candidate over 8 million elements of scratch memory (at most 200 MB)."""
    folder = cache_folder()
    source = TritonProgram(graph).source
    key = f"{torch.cuda.get_device_name(device)}/{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    shape = _shape_of(folder.entries("launch_shapes.json").get(key))
    if shape is None:
        warp = 64 if torch.version.hip else 32
        others = (LaunchShape(tile, tiles, threads // warp) for tile, tiles, threads in CANDIDATES)
        shapes = dict.fromkeys((default_shape(graph), *others))
        with torch.cuda.device(device):
            seconds = {shape: _milliseconds(TritonProgram(graph, shape), device) for shape in shapes}
        shape = min(seconds, key=lambda shape: seconds[shape])
        log.info("%s: %s, of %s", graph.title, shape, seconds)
        folder.add_entries("launch_shapes.json", {key: [shape.tile, shape.tiles, shape.warps]})
    return shape


def _shape_of(entry: Any) -> LaunchShape | None:
    """Return a remembered shape; None if the entry is missing or malformed."""
    is_one = isinstance(entry, list) and len(entry) == 3 and all(type(n) is int and n > 0 for n in entry)
    return LaunchShape(*entry) if is_one else None


def _milliseconds(program: TritonProgram, device: torch.device) -> float:
    table = program.table([_scratch(program.graph, device)])
    program.run(table)
    times = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        program.run(table)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[_ROUNDS // 2]


def _scratch(graph: ProgramGraph, device: torch.device) -> TensorArguments:
    """Return one tensor of zeros for every operand: the same instructions and bytes as with real ones."""

    def entries(operand: Operand) -> tuple[int, ...]:
        if operand.per == "scalar":
            return ()
        if operand.per == "codebook" and operand.part is not None:
            return (operand.part.count,)
        if operand.per == "shared":
            return (1,)
        return (_ELEMENTS // (GROUP_SIZE if operand.per == "group" else 8 // operand.bits),)

    tensors = {o.name: torch.zeros(entries(o), dtype=o.dtype, device=device) for o in graph.pointers}
    sharing = {o.name: Sharing(_ELEMENTS, 1) for o in graph.shared}
    return TensorArguments(_ELEMENTS, tensors, {}, sharing)
