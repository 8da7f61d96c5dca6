"""Rewrite: turn one piece into a canonical update rule: functional, core ATen, elementwise, numbers as 0-dim inputs.

Every read in a piece refers to the node of the value that it reads, results of in-place calls included. Replacing each
in-place call by its functional form therefore makes the piece functional.

Elementwise values are traced in float32 and numbers in float64, whatever the parameter's type: the rule defines what is
computed, and the program chooses the precision. Casts between floating types in the user's code are therefore dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import fx

from baoc_compile.core.names import identifier
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import RuleInput, UpdateRule, bounds_of
from baoc_compile.passes.capture.piece_graph import graph_of_piece
from baoc_compile.passes.recorder.recording import Piece, Value
from baoc_compile.passes.recorder.torch_calls import TENSOR_FORMS
from baoc_compile.passes.rules.line_places import places_of_shape
from baoc_compile.passes.rules.trace_core_aten import trace_core_aten
from baoc_compile.passes.rules.write_rule import NotElementwise, write_rule

_CASTS = {"to", "type", "type_as", "float", "bfloat16", "half", "double", "_to_copy"}


def canonicalize(table: ParameterTable, piece: Piece, scalars: Sequence[RuleInput]) -> UpdateRule:
    """Trace `piece` into an update rule. Raises NotElementwise if there is none.

    scalars: what is known of the piece's scalars; their names are given here.
    """
    if piece.reason:
        raise NotElementwise(piece.reason)
    if len(piece.parameters) != 1:
        raise NotElementwise("the step combines several parameters")
    parameter = table.parameters[piece.parameters[0]]
    if parameter.is_complex() or parameter.is_sparse:
        raise NotElementwise("complex and sparse parameters are stepped as recorded")
    roles = [*(value.role for value in piece.inputs), *(role for role, _ in piece.created)]
    odd = [role.key for role in roles if role is not None and not isinstance(role.key, str)]
    if odd:
        raise NotElementwise(
            f"it keeps state under the key {odd[0]!r}; only state whose key is a string can be compressed"
        )
    _refuse_narrow(piece, parameter.dtype)
    shape = tuple(parameter.shape) or (1,)
    inputs = _rule_inputs(piece, tuple(parameter.shape), scalars)
    runner = _PieceRunner(fx.GraphModule(torch.nn.Module(), graph_of_piece(piece)))
    of_state = {value.role.key: tuple(value.shape) for value in piece.inputs if value.role is not None}
    shapes = {"param": shape, "grad": shape, "slot": shape}
    examples = [(of_state[i.key] if i.kind == "lines" else shapes.get(i.kind, ()), _traced_dtype(i)) for i in inputs]
    try:
        gm = trace_core_aten(runner.run, examples)
    except Exception as error:
        raise NotElementwise(f"it cannot be traced elementwise ({type(error).__name__}: {error})") from error
    created = {role.key: bool(parameter.ndim) and not value.shape for role, value in piece.created}
    choices = [places_of_shape(of_state[i.key], shape) if i.kind == "lines" else [""] for i in inputs]
    reason: NotElementwise | None = None
    for chosen in product(*choices):  # in a square matrix, a shape may be that of rows and of columns
        placed = [replace(i, origin=o) if i.kind == "lines" else i for i, o in zip(inputs, chosen, strict=True)]  # type: ignore[arg-type]
        try:
            return write_rule(gm, placed, created, len(piece.exported), shape)
        except NotElementwise as error:
            reason = reason or error
    raise reason or NotElementwise("it has no state")


def _refuse_narrow(piece: Piece, dtype: torch.dtype) -> None:
    """Raise NotElementwise if a piece rounds to a type with fewer bits than the parameter and all that it reads have."""
    known = {value.dtype for value in piece.inputs}
    for value in (result for call in piece.calls for result in call.results if result.shape):
        if value.dtype.is_floating_point and value.dtype.itemsize < dtype.itemsize and value.dtype not in known:
            raise NotElementwise(f"it computes in {str(value.dtype).removeprefix('torch.')}")


def _traced_dtype(rule_input: RuleInput) -> torch.dtype:
    return torch.float32 if rule_input.kind in ("param", "grad", "slot", "lines") else torch.float64


def _rule_inputs(piece: Piece, shape: tuple[int, ...], scalars: Sequence[RuleInput]) -> list[RuleInput]:
    """List the rule's inputs. Names are unique identifiers, whatever the state keys, and the same in every process."""
    found: list[RuleInput] = []
    taken = {"param", "grad"}

    def named(text: str) -> str:
        name = identifier(text, taken)
        taken.add(name)
        return name

    for value in piece.inputs:
        role = value.role
        assert role is not None
        if role.kind == "state" and tuple(value.shape) != shape:
            places = places_of_shape(tuple(value.shape), shape)
            if not places or "element" in places:
                raise NotElementwise(f"state {role.key!r} has shape {tuple(value.shape)}, the parameter {shape}")
            if places != ["scalar"] and value.dtype not in (torch.float32, torch.float64):
                raise NotElementwise(f"state {role.key!r} has a number for each row or column in {value.dtype}")
            found.append(RuleInput(named(role.key), "counter" if places == ["scalar"] else "lines", role.key))
        elif role.kind == "state":
            found.append(RuleInput(named(role.key), "slot", role.key))
        else:
            found.append(RuleInput(role.kind, role.kind))  # type: ignore[arg-type]
    for scalar, known in zip(piece.scalars, scalars, strict=False):
        if isinstance(scalar, Value) and scalar.shape.numel() != 1:
            raise NotElementwise(f"it uses a tensor of shape {tuple(scalar.shape)} that belongs to no parameter")
        found.append(replace(known, name=named("steps" if known.counts_steps else f"n{known.position}")))
    for position, constant in enumerate(piece.constants):
        name = named(f"c{position}")
        found.append(RuleInput(name, "scalar", origin="constants", position=position, bounds=bounds_of(constant)))
    return found


class _PieceRunner(fx.Interpreter):
    """An interpreter that runs in-place calls in their functional forms, with numbers as 0-dim tensors if possible."""

    def run_node(self, n: fx.Node) -> Any:
        call = n.meta.get("call")
        if call is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        is_cast = call.name in _CASTS and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        if is_cast:
            return args[0]
        if (
            call.name == "lerp"
        ):  # the only operation that wants both of one type, which numbers and elements are not here
            args = (args[0], args[1].to(args[0].dtype), *args[2:])
        form = TENSOR_FORMS.get(call.name)
        if form is None and call.is_inplace:
            form = getattr(torch, call.name)
        result = self.call_function(n.target, args, kwargs) if form is None else form(*args, **kwargs)
        is_number = isinstance(result, torch.Tensor) and result.is_floating_point() and not result.ndim
        return result.double() if is_number else result  # reductions, too: numbers are float64
