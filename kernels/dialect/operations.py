"""The operations that rules and codecs are written in, with their C++ and Triton.

Every operation is elementwise over its operands, whether these are per element, per group, per tensor or codebook
entries (see `ValueMeta`). Two are not: `amax` reduces a group, and `take` reads entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: Operations that change no value; rules leave them out.
NO_OPS = {
    "alias",
    "detach",
    "clone",
    "expand",
    "view",
    "_unsafe_view",
    "reshape",
    "lift_fresh",
    "lift_fresh_copy",
    "contiguous",
}


@dataclass(frozen=True)
class Operation:
    """One elementwise operation.

    name: torch's operator name, without overload.
    cpp: C++ template. `{0}`, `{1}`... are operands already cast, `{t}` is the result's C++ type, `{o}` that of the
        operands, `{f}` the suffix of C's functions for the result.
    triton: Triton template. Names without `tl.` are functions of `device_functions`; None if Triton lacks the
        operation.
    is_exact: exact or correctly rounded (IEEE 754), so that torch, C++ and Triton give the same bits. Other operations
        are accurate to a few units in the last place.
    is_predicate: operands keep their own type and the result is a truth value.
    """

    name: str
    cpp: str
    triton: str | None
    is_exact: bool = True
    is_predicate: bool = False


_EVERY = (
    Operation("add", "({0} + {1})", "{0} + {1}"),
    Operation("sub", "({0} - {1})", "{0} - {1}"),
    Operation("rsub", "({1} - {0})", "{1} - {0}"),
    Operation("mul", "({0} * {1})", "{0} * {1}"),
    Operation("div", "({0} / {1})", "divide({0}, {1})"),
    Operation("neg", "(-{0})", "negative({0})"),
    Operation("abs", "magnitude({0})", "tl.abs({0})"),
    Operation("sqrt", "__builtin_sqrt{f}({0})", "square_root({0})"),
    Operation("reciprocal", "({t}(1) / {0})", "divide(1.0, {0})"),
    Operation("sign", "{t}(({0} > 0) - ({0} < 0))", "sign_of({0})"),
    Operation("maximum", "(({0} != {0} || {0} > {1}) ? {0} : {1})", "larger({0}, {1})"),
    Operation("minimum", "(({0} != {0} || {0} < {1}) ? {0} : {1})", "smaller({0}, {1})"),
    Operation("clamp_min", "(({0} != {0} || {0} > {1}) ? {0} : {1})", "larger({0}, {1})"),
    Operation("clamp_max", "(({0} != {0} || {0} < {1}) ? {0} : {1})", "smaller({0}, {1})"),
    Operation("where", "({0} ? {1} : {2})", "tl.where({0}, {1}, {2})"),
    Operation("floor", "__builtin_floor{f}({0})", "tl.floor({0})"),
    Operation("ceil", "__builtin_ceil{f}({0})", "tl.ceil({0})"),
    Operation("trunc", "__builtin_trunc{f}({0})", "truncate({0})"),
    Operation("round", "__builtin_nearbyint{f}({0})", "round_to_even({0})"),
    Operation("copysign", "__builtin_copysign{f}({0}, {1})", "with_sign_of({0}, {1})"),
    Operation("eq", "({0} == {1})", "{0} == {1}", is_predicate=True),
    Operation("ne", "({0} != {1})", "{0} != {1}", is_predicate=True),
    Operation("lt", "({0} < {1})", "{0} < {1}", is_predicate=True),
    Operation("le", "({0} <= {1})", "{0} <= {1}", is_predicate=True),
    Operation("gt", "({0} > {1})", "{0} > {1}", is_predicate=True),
    Operation("ge", "({0} >= {1})", "{0} >= {1}", is_predicate=True),
    Operation("isnan", "({0} != {0})", "{0} != {0}", is_predicate=True),
    Operation("isinf", "(magnitude({0}) == {o}(__builtin_inf()))", 'tl.abs({0}) == float("inf")', is_predicate=True),
    Operation("logical_and", "({0} && {1})", "({0} != 0) & ({1} != 0)", is_predicate=True),
    Operation("logical_or", "({0} || {1})", "({0} != 0) | ({1} != 0)", is_predicate=True),
    Operation("logical_not", "(!{0})", "{0} == 0", is_predicate=True),
    Operation("bitwise_and", "{t}({0} & {1})", "{0} & {1}"),
    Operation("bitwise_or", "{t}({0} | {1})", "{0} | {1}"),
    Operation("bitwise_xor", "{t}({0} ^ {1})", "{0} ^ {1}"),
    Operation("bitwise_not", "{t}(~{0})", "~{0}"),
    Operation("bitwise_right_shift", "{t}({0} >> {1})", "{0} >> {1}"),
    Operation("_to_copy", "{0}", "{0}"),
    Operation("scalar_tensor", "{0}", "{0}"),
    # Triton computes these in double, C++ calls the C library
    Operation("rsqrt", "({t}(1) / __builtin_sqrt{f}({0}))", "divide(1.0, square_root({0}))", is_exact=False),
    Operation("pow", "__builtin_pow{f}({0}, {1})", "power({0}, {1})", is_exact=False),
    Operation("exp", "__builtin_exp{f}({0})", "like(tl.exp(wide({0})), {0})", is_exact=False),
    Operation("expm1", "__builtin_expm1{f}({0})", "exp_less_one({0})", is_exact=False),
    Operation("log", "__builtin_log{f}({0})", "like(tl.log(wide({0})), {0})", is_exact=False),
    Operation("log1p", "__builtin_log1p{f}({0})", "log_of_one_more({0})", is_exact=False),
    Operation("log2", "__builtin_log2{f}({0})", "like(tl.log2(wide({0})), {0})", is_exact=False),
    Operation("sin", "__builtin_sin{f}({0})", "like(tl.sin(wide({0})), {0})", is_exact=False),
    Operation("cos", "__builtin_cos{f}({0})", "like(tl.cos(wide({0})), {0})", is_exact=False),
    Operation("tanh", "__builtin_tanh{f}({0})", "hyperbolic_tangent({0})", is_exact=False),
    Operation("atan", "__builtin_atan{f}({0})", None, is_exact=False),
    Operation("atan2", "__builtin_atan2{f}({0}, {1})", None, is_exact=False),
    Operation("erf", "__builtin_erf{f}({0})", "like(tl.erf(wide({0})), {0})", is_exact=False),
    Operation(
        "sigmoid",
        "({t}(1) / ({t}(1) + __builtin_exp{f}(-{0})))",
        "divide(1.0, 1.0 + like(tl.exp(wide(-{0})), {0}))",
        is_exact=False,
    ),
    Operation("fmod", "__builtin_fmod{f}({0}, {1})", "{0} % {1}", is_exact=False),
)

#: Operation name -> operation.
OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _EVERY}


def name_of(target: Callable[..., Any]) -> str:
    """Return an operator's name without overload: `aten.add.Tensor` -> `add`."""
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


def is_supported(target: Callable[..., Any]) -> bool:
    """Tell whether a rule may contain this operation."""
    return (
        name_of(target) in OPERATIONS
        or name_of(target) == "lerp"
        or target is torch.ops.aten.view.dtype
        or name_of(target) in ("amax", "take")
    )


def unsupported_reason(target: Callable[..., Any]) -> str:
    return f"{name_of(target)} is not an elementwise operation that baoc can emit"


def bitcast(target: Callable[..., Any]) -> bool:
    """Tell whether the operation reinterprets bits as another type of the same size."""
    return target is torch.ops.aten.view.dtype
