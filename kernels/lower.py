"""Program graph -> executable: compiled C++ on a CPU, a Triton kernel on a GPU, chunked torch operations elsewhere."""

from __future__ import annotations

import logging
import warnings
from functools import cache

import torch
from baoc_compile.kernels.build_cpp import CompilerMissing
from baoc_compile.kernels.cpp_program import CppProgram
from baoc_compile.kernels.torch_program import TorchProgram
from baoc_compile.kernels.triton_expressions import CannotEmit

from baoc_compile.errors import BaocWarning
from baoc_compile.program import Executable, ProgramGraph

log = logging.getLogger("baoc")


def lower(graph: ProgramGraph) -> Executable:
    """Never fails: what can't be compiled runs in torch, slower, and a warning says why, once."""
    try:
        if graph.signature.device == "cpu":
            return CppProgram(graph)
        if graph.signature.device == "cuda":  # that of AMD's GPUs, too
            return _for_gpu(graph)
        reason = f"there are no kernels for devices of type {graph.signature.device}"
    except (CompilerMissing, CannotEmit, ImportError) as error:
        reason = str(error)
    log.warning("%s runs as torch operations: %s", graph.title, reason)
    _warn_once(reason)
    return TorchProgram(graph)


def _for_gpu(graph: ProgramGraph) -> Executable:
    """Imports Triton only here: it is not everywhere."""
    from baoc_compile.kernels.choose_shape import choose_shape
    from baoc_compile.kernels.triton_program import TritonProgram

    if graph.averages:
        return TritonProgram(graph)
    return TritonProgram(graph, choose_shape(graph, torch.device("cuda", torch.cuda.current_device())))


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"baoc runs optimizer steps without compiled code, which is slow: {reason}", BaocWarning, stacklevel=2
    )
