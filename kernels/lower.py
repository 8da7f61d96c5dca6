"""Program graph -> executable: compiled C++ on a CPU, chunked torch operations elsewhere."""

from __future__ import annotations

import logging
import warnings
from functools import cache

from baoc_compile.kernels.build_cpp import CompilerMissing
from baoc_compile.kernels.cpp_program import CppProgram
from baoc_compile.kernels.torch_program import TorchProgram

from baoc_compile.errors import BaocWarning
from baoc_compile.program import Executable, ProgramGraph

log = logging.getLogger("baoc")


def lower(graph: ProgramGraph) -> Executable:
    """Never fails: without a C++ compiler the program runs in torch, slower, and a warning says so once."""
    if graph.signature.device != "cpu":
        return TorchProgram(graph)
    try:
        return CppProgram(graph)
    except CompilerMissing as reason:
        _warn_once(str(reason))
        return TorchProgram(graph)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"baoc runs optimizer steps without compiled code, which is slow: {reason}", BaocWarning, stacklevel=2
    )
