"""Every operation of the dialect, by C++, by interpreted Triton and by torch: those that call themselves exact give the same
bits, the others are right to a few units in the last place."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from program_cases import FP32, bits
from torch import fx

from baoc_compile.core.program_graph import Operand, ProgramGraph, Signature, TensorArguments
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.cpp.program import CppProgram
from baoc_compile.kernels.dialect.operations import OPERATIONS
from baoc_compile.kernels.dialect.trace_codec import _trace
from baoc_compile.kernels.eager.program import TorchProgram
from baoc_compile.kernels.triton.expressions import CannotEmit
from baoc_compile.kernels.triton.program import TritonProgram

pytestmark = [pytest.mark.interpreted, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]


def integers(function):
    """Of the bits of float32."""
    return lambda p, g: function(p.view(torch.int32), g.view(torch.int32)).view(torch.float32)


def chosen(function):
    return lambda p, g: torch.where(function(p, g), p, g)


def applied(name):
    return lambda p, g: getattr(torch, name)(p)


def applied_to_both(name):
    return lambda p, g: getattr(torch, name)(p, g)


#: Operation -> new parameter, from parameter and gradient.
EXAMPLES = {
    "rsub": lambda p, g: torch.rsub(p, 1.7),
    "where": chosen(lambda p, g: p < g),
    "clamp_min": lambda p, g: torch.clamp_min(p, 0.5),
    "clamp_max": lambda p, g: torch.clamp_max(p, 0.5),
    "_to_copy": lambda p, g: p.half().float() + g.bfloat16().float(),
    "scalar_tensor": lambda p, g: p * torch.scalar_tensor(0.3),
    "bitwise_and": integers(torch.bitwise_and),
    "bitwise_or": integers(torch.bitwise_or),
    "bitwise_xor": integers(torch.bitwise_xor),
    "bitwise_not": integers(lambda p, g: torch.bitwise_not(p)),
    "bitwise_right_shift": integers(lambda p, g: torch.bitwise_right_shift(p, 5)),
    **{
        name: chosen(applied_to_both(name))
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")
    },
    **{name: chosen(applied(name)) for name in ("isnan", "isinf", "logical_not")},
    **{name: applied_to_both(name) for name in ("add", "sub", "mul", "div", "maximum", "minimum", "copysign")},
    **{name: applied_to_both(name) for name in ("pow", "atan2", "fmod")},
}
EXAMPLES |= {name: applied(name) for name in OPERATIONS if name not in EXAMPLES}


@cache
def operands() -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of special values, pairs of random ones, and of random bits."""
    infinity, largest = float("inf"), torch.finfo(torch.float32).max
    positive = [0.0, 0.3, 0.5, 1.0, 1.5, 2.5, 1e-45, 1e-40, 2.0**-126, 1e-30, 1e30, largest, infinity]
    special = torch.tensor([*positive, *(-x for x in positive), float("nan")])
    generator = torch.Generator().manual_seed(0)
    p, g = 3 * torch.randn(2, 500, generator=generator)
    x, y = torch.randint(-(2**31), 2**31, (2, 1000), generator=generator).to(torch.int32).view(torch.float32)
    n = len(special)
    return torch.cat([special.repeat_interleave(n), p, x]), torch.cat([special.repeat(n), g, y])


def program_graph(name: str) -> ProgramGraph:
    """Parameter and gradient -> new parameter."""
    graph = _trace(lambda p, g: (EXAMPLES[name](p, g),), [((3, 256), FP32)] * 2)
    for node, target in zip(graph.nodes, ("param", "grad"), strict=False):
        node.target = target
    rule = UpdateRule(fx.GraphModule({}, graph), (), (), ())
    given = Operand("param", "element", FP32, "param", written=True), Operand("grad", "element", FP32, "grad")
    return ProgramGraph(rule, {}, Signature("cpu", FP32, FP32), graph, given, ("param",))


def result(name: str, program: type) -> torch.Tensor:
    p, g = (tensor.clone() for tensor in operands())
    program(program_graph(name))([TensorArguments(p.numel(), {"param": p, "grad": g}, {})])
    return p


def names(is_exact: bool) -> list[str]:
    return [name for name, operation in OPERATIONS.items() if operation.is_exact == is_exact]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", names(True))
def test_exact_operations_give_the_same_bits_in_every_lowering(name):
    by_cpp = bits(result(name, CppProgram))
    for program in (TorchProgram, TritonProgram):
        assert by_cpp.equal(bits(result(name, program))), program.__name__


#: Units in the last place: of a function of C's library, of three operations one after the other, and more for powers.
LIMIT = 4


def float64_result(name: str) -> torch.Tensor:
    p, g = (tensor.double() for tensor in operands())
    return EXAMPLES[name](p, g)


def units_off(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of float32, which are no smaller below the normal numbers."""
    unit = torch.from_numpy(
        np.spacing(exact.abs().clamp(torch.finfo(FP32).tiny, torch.finfo(FP32).max).float().numpy())
    )
    return (found.double() - exact).abs() / unit


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("program", [TorchProgram, CppProgram, TritonProgram])
@pytest.mark.parametrize("name", names(False))
def test_the_others_are_those_of_float64_to_a_few_units(name, program):
    if program is TritonProgram and OPERATIONS[name].triton is None:
        with pytest.raises(CannotEmit, match=name):
            result(name, program)
        return
    found, exact = result(name, program), float64_result(name)
    if name == "fmod":  # torch's own is NaN where the quotient is larger
        p, g = operands()
        kept = ~((p / g).abs() >= 2.0**24)
        found, exact = found[kept], exact[kept]
    assert torch.equal(found.isnan(), exact.isnan())
    infinite = exact.float().isinf()
    assert torch.equal(found[infinite], exact[infinite].float())
    vanished = (found == 0.0) & (exact.abs() < torch.finfo(FP32).tiny)  # 1 / (1 + infinity)
    finite = ~(infinite | exact.isnan() | vanished)
    assert units_off(found[finite], exact[finite]).max() <= LIMIT


def test_both_kinds_occur():
    assert len(names(True)) > 30 and {"exp", "pow", "sigmoid"} <= set(names(False))
