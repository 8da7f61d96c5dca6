"""The operations that rules and codecs are written in, and how each reads in C++ and in Triton.

Values have a kind: "element" (one per element), "group" (one per group of elements, for codecs with a scale), "scalar"
(one per tensor) or "table" (entries for the whole tensor). Every operation is elementwise over its operands' kinds,
except `amax`, which reduces a group, and `take`, which reads table entries. All of them are exact or correctly rounded
(IEEE 754), so that torch, C++ and Triton give the same bits, except the transcendental ones at the end of the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Operations that change no value: they vanish from rules.
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

#: C++ of an elementwise operation: `{0}`, `{1}`... are operands already cast, `{t}` is the result's C++ type,
#: `{o}` the operands', `{f}` the suffix of C's functions for it.
CPP: dict[str, str] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "rsub": "({1} - {0})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "abs": "magnitude({0})",
    "sqrt": "__builtin_sqrt{f}({0})",
    "rsqrt": "({t}(1) / __builtin_sqrt{f}({0}))",
    "reciprocal": "({t}(1) / {0})",
    "sign": "{t}(({0} > 0) - ({0} < 0))",
    "maximum": "(({0} != {0} || {0} > {1}) ? {0} : {1})",
    "minimum": "(({0} != {0} || {0} < {1}) ? {0} : {1})",
    "clamp_min": "(({0} != {0} || {0} > {1}) ? {0} : {1})",
    "clamp_max": "(({0} != {0} || {0} < {1}) ? {0} : {1})",
    "where": "({0} ? {1} : {2})",
    "floor": "__builtin_floor{f}({0})",
    "ceil": "__builtin_ceil{f}({0})",
    "trunc": "__builtin_trunc{f}({0})",
    "round": "__builtin_nearbyint{f}({0})",
    "copysign": "__builtin_copysign{f}({0}, {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "isnan": "({0} != {0})",
    "isinf": "(magnitude({0}) == {o}(__builtin_inf()))",
    "logical_and": "({0} && {1})",
    "logical_or": "({0} || {1})",
    "logical_not": "(!{0})",
    "bitwise_and": "{t}({0} & {1})",
    "bitwise_or": "{t}({0} | {1})",
    "bitwise_xor": "{t}({0} ^ {1})",
    "bitwise_not": "{t}(~{0})",
    "bitwise_right_shift": "{t}({0} >> {1})",
    "_to_copy": "{0}",
    "scalar_tensor": "{0}",
    "pow": "__builtin_pow{f}({0}, {1})",
    "exp": "__builtin_exp{f}({0})",
    "expm1": "__builtin_expm1{f}({0})",
    "log": "__builtin_log{f}({0})",
    "log1p": "__builtin_log1p{f}({0})",
    "log2": "__builtin_log2{f}({0})",
    "sin": "__builtin_sin{f}({0})",
    "cos": "__builtin_cos{f}({0})",
    "tanh": "__builtin_tanh{f}({0})",
    "atan": "__builtin_atan{f}({0})",
    "atan2": "__builtin_atan2{f}({0}, {1})",
    "erf": "__builtin_erf{f}({0})",
    "sigmoid": "({t}(1) / ({t}(1) + __builtin_exp{f}(-{0})))",
    "fmod": "__builtin_fmod{f}({0}, {1})",
}

#: The same in Triton: `{t}` is the result's type. Names without `tl.` are functions of `device_functions`.
TRITON: dict[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "divide({0}, {1})",
    "neg": "negative({0})",
    "abs": "tl.abs({0})",
    "sqrt": "square_root({0})",
    "rsqrt": "divide(1.0, square_root({0}))",
    "reciprocal": "divide(1.0, {0})",
    "sign": "sign_of({0})",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "clamp_min": "larger({0}, {1})",
    "clamp_max": "smaller({0}, {1})",
    "where": "tl.where({0}, {1}, {2})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "trunc": "truncate({0})",
    "round": "round_to_even({0})",
    "copysign": "with_sign_of({0}, {1})",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "isnan": "{0} != {0}",
    "isinf": 'tl.abs({0}) == float("inf")',
    "logical_and": "({0} != 0) & ({1} != 0)",
    "logical_or": "({0} != 0) | ({1} != 0)",
    "logical_not": "{0} == 0",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "bitwise_not": "~{0}",
    "bitwise_right_shift": "{0} >> {1}",
    "scalar_tensor": "{0}",
    "pow": "power({0}, {1})",
    "exp": "in_double(tl.exp, {0})",
    "expm1": "exp_less_one({0})",
    "log": "in_double(tl.log, {0})",
    "log1p": "log_of_one_more({0})",
    "log2": "in_double(tl.log2, {0})",
    "sin": "in_double(tl.sin, {0})",
    "cos": "in_double(tl.cos, {0})",
    "tanh": "hyperbolic_tangent({0})",
    "erf": "in_double(tl.erf, {0})",
    "sigmoid": "divide(1.0, 1.0 + in_double(tl.exp, -{0}))",
    "fmod": "{0} % {1}",
}

#: Comparisons and predicates: operands keep their own type, the result is a truth value.
PREDICATES = {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_and", "logical_or", "logical_not"}


def name_of(target: Callable[..., Any]) -> str:
    """`aten.add.Tensor` -> `add`."""
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


def is_supported(target: Callable[..., Any]) -> bool:
    """May a rule contain this operation?"""
    return (
        name_of(target) in CPP
        or name_of(target) == "lerp"
        or target is torch.ops.aten.view.dtype
        or name_of(target) in ("amax", "take")
    )


def unsupported_reason(target: Callable[..., Any]) -> str:
    return f"{name_of(target)} is not an elementwise operation that baoc can emit"


def bitcast(target: Callable[..., Any]) -> bool:
    """The operation reads the same bits as another type of the same size."""
    return target is torch.ops.aten.view.dtype
