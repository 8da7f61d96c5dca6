"""Lower a program graph: to compiled C++ on a CPU, a Triton kernel on a GPU, or chunked torch operations elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from baoc_compile.core.errors import CannotEmit, CompilerMissing, warn_once
from baoc_compile.core.program_graph import Executable, ProgramGraph
from baoc_compile.kernels.cpp.program import CppProgram
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.kernels.launch import addresses, survey

log = logging.getLogger("baoc")


def start_lowering(graphs: Sequence[ProgramGraph]) -> list[Future[Executable]]:
    """Lower graphs in background threads, compilers in parallel. An interpreter that exits meanwhile waits for them."""
    pool = ThreadPoolExecutor(len(graphs) + 2)
    pool.submit(addresses.compiled.try_again)
    pool.submit(survey.compiled.try_again)
    found = [pool.submit(lower, graph) for graph in graphs]
    pool.shutdown(wait=False)
    return found


def lower(graph: ProgramGraph) -> Executable:
    """Compile a program, or fall back to torch operations, which are slower.

    The fallback is taken if the device has no kernels, the compiler is missing, or the program cannot be emitted. A
    warning says why, once.
    """
    about: object = None
    try:
        if graph.signature.device_type == "cpu":
            return CppProgram(graph)
        if graph.signature.device_type == "cuda":  # AMD GPUs too
            return _for_gpu(graph)
        reason = f"there are no kernels for devices of type {graph.signature.device_type}"
    except CompilerMissing as error:
        reason, about = str(error), CompilerMissing  # warn once, although the compilers' messages vary
    except (CannotEmit, ImportError) as error:
        reason = str(error)
    log.warning("%s runs as torch operations: %s", graph.title, reason)
    warn_once(f"baoc runs optimizer steps without compiled code, which is slow: {reason}", about)
    return TorchProgram(graph)


def _for_gpu(graph: ProgramGraph) -> Executable:
    """Compile a Triton kernel. Triton is imported here, because it may not be installed."""
    from baoc_compile.kernels.triton.program import TritonProgram
    from baoc_compile.kernels.triton.tune_launch import choose_shape

    if graph.folds:
        return TritonProgram(graph)
    return TritonProgram(graph, choose_shape(graph, torch.device(graph.signature.device)))
