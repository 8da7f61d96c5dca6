"""Rewrite: turn one piece into a canonical update rule: functional, core ATen, elementwise, numbers as 0-dim inputs.

Every read in a piece refers to the node of the value that it reads, results of in-place calls included. Replacing each
in-place call by its functional form therefore makes the piece functional.

Elementwise values are traced in float32 and numbers in float64, whatever the parameter's type: the rule defines what is
computed, and the program chooses the precision. Casts between floating types in the user's code are therefore dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from baoc_compile.core.codec import Slot
from baoc_compile.core.names import identifier
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.rule import RuleInput, RuleOutput, UpdateRule, bounds_of
from baoc_compile.kernels.dialect.nodes import ValueMeta, has_meta, meta_of, set_meta
from baoc_compile.kernels.dialect.operations import NO_OPS, is_supported, unsupported_reason
from baoc_compile.passes.capture.piece_graph import graph_of_piece
from baoc_compile.passes.recorder.recording import Piece, Value
from baoc_compile.passes.recorder.torch_calls import TENSOR_FORMS
from baoc_compile.passes.rules.find_recurrence import prove_recurrences
from baoc_compile.passes.rules.prove_signs import prove_signs
from baoc_compile.passes.rules.reductions import Reducer, is_reduction, lines_of
from baoc_compile.passes.rules.trace_core_aten import trace_core_aten

_CASTS = {"to", "type", "type_as", "float", "bfloat16", "half", "double", "_to_copy"}


class NotElementwise(Exception):
    """A piece is not a pure elementwise function; the message says why."""


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
    examples = [(shape if i.kind in ("param", "grad", "slot") else (), _traced_dtype(i)) for i in inputs]
    try:
        gm = trace_core_aten(runner.run, examples)
    except Exception as error:
        raise NotElementwise(f"it cannot be traced elementwise ({type(error).__name__}: {error})") from error
    created = {role.key: bool(parameter.ndim) and not value.shape for role, value in piece.created}
    return _as_rule(gm, inputs, created, len(piece.exported), shape)


def _refuse_narrow(piece: Piece, dtype: torch.dtype) -> None:
    """Raise NotElementwise if a piece rounds to a type with fewer bits than the parameter and all that it reads have."""
    known = {value.dtype for value in piece.inputs}
    for value in (result for call in piece.calls for result in call.results if result.shape):
        if value.dtype.is_floating_point and value.dtype.itemsize < dtype.itemsize and value.dtype not in known:
            raise NotElementwise(f"it computes in {str(value.dtype).removeprefix('torch.')}")


def _traced_dtype(rule_input: RuleInput) -> torch.dtype:
    return torch.float32 if rule_input.kind in ("param", "grad", "slot") else torch.float64


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
            if value.shape.numel() != 1:
                raise NotElementwise(f"state {role.key!r} has shape {tuple(value.shape)}, the parameter {shape}")
            found.append(RuleInput(named(role.key), "counter", role.key))
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
        form = TENSOR_FORMS.get(call.name)
        if form is None and call.is_inplace:
            form = getattr(torch, call.name)
        result = super().run_node(n) if form is None else form(*args, **kwargs)
        is_number = isinstance(result, torch.Tensor) and result.is_floating_point() and not result.ndim
        return result.double() if is_number else result  # reductions, too: numbers are float64


def _as_rule(
    gm: fx.GraphModule, inputs: list[RuleInput], created: dict[str, bool], exported: int, shape: tuple[int, ...]
) -> UpdateRule:
    """Return the rule of a traced piece.

    created: key of every state entry that the piece makes -> whether it is a number.
    exported: how many numbers the piece exports.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    sizes = [
        RuleInput(identifier(name, {i.name for i in inputs}), "scalar", origin=name, bounds=(1.0, math.inf))
        for name in ("numel", "columns")
    ]
    reducer = Reducer(graph, *(set_meta(graph.placeholder(i.name), ValueMeta("scalar", torch.float64)) for i in sizes))
    placeholders: list[fx.Node] = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            rule_input = inputs[len(placeholders)]
            copied[node] = graph.placeholder(rule_input.name)
            placeholders.append(copied[node])
        elif node.op == "call_function":
            copied[node] = _copy_call(reducer, node, copied, shape)
            if has_meta(copied[node]):  # the call became an alias of a node that was copied before
                continue
        elif node.op == "get_attr":
            value = getattr(gm, node.target)
            if value.ndim:
                raise NotElementwise(f"constant tensor of shape {tuple(value.shape)}")
            copied[node] = graph.call_function(
                torch.ops.aten.scalar_tensor.default, (value.item(),), {"dtype": torch.float64}
            )
        else:
            continue
        set_meta(copied[node], _meta(node, shape))
    (returned,) = gm.graph.output_node().args
    outputs: list[RuleOutput] = []
    values: list[fx.Node] = []
    returned_inputs = len(returned) - len(created) - exported  # constants are not returned
    for placeholder, value in zip(placeholders, returned[:returned_inputs], strict=False):
        if copied[value] is not placeholder:
            outputs.append(RuleOutput("new", placeholder.target))
            values.append(copied[value])
    known = {i.key: i.name for i in inputs if i.kind == "slot"}
    for key, value in zip(created, returned[returned_inputs : len(returned) - exported], strict=True):
        # state[key] = f(state[key]) replaces the slot
        output = RuleOutput("new", known[key]) if key in known else RuleOutput("created", key=key)
        if created[key]:
            if meta_of(copied[value]).per != "scalar":
                raise NotElementwise(f"it makes state {key!r} of single elements")
            output = RuleOutput("number", identifier(key, {i.name for i in inputs}), key)
        if output in outputs:
            if values[outputs.index(output)] is copied[value]:
                continue
            raise NotElementwise(f"state {key!r} is changed in place and replaced in the same step")
        outputs.append(output)
        values.append(copied[value])
    for position in range(exported):
        value = copied[returned[len(returned) - exported + position]]
        if meta_of(value).per != "scalar":
            raise NotElementwise("it exchanges numbers with other updates that are no reductions")
        outputs.append(RuleOutput("exported", f"exported_{position}"))
        values.append(value)
    graph.output(tuple(values))
    graph.eliminate_dead_code()
    inputs = [*sizes, *inputs]
    _drop_unused(graph, inputs)
    kept = tuple(i for i in inputs if any(n.target == i.name for n in graph.nodes if n.op == "placeholder"))
    canonical = fx.GraphModule(torch.nn.Module(), graph)
    keys = [i.key for i in kept if i.kind == "slot"]
    slots = prove_signs(canonical, kept, outputs, [Slot(key) for key in keys])
    slots = prove_recurrences(canonical, kept, outputs, slots)
    if exported:  # what is averaged first might wait for what is exported
        slots = tuple(replace(s, why_not_shared="the step exchanges numbers between parameters") for s in slots)
    return UpdateRule(canonical, kept, tuple(outputs), slots)


def _copy_call(reducer: Reducer, node: fx.Node, copied: dict[fx.Node, fx.Node], shape: tuple[int, ...]) -> fx.Node:
    """Copy one functional ATen call into the dialect: drop no-ops, write reductions, turn constant tensors into scalars."""
    graph = reducer.graph
    name = node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else str(node.target)
    value = node.meta["val"]
    if is_reduction(node):
        given = node.args[0].meta["val"]
        is_of_lines = given.numel() != 1 and not _is_element(given, shape, lines=False)
        if is_of_lines and name not in ("mean", "max", "amax", "min", "amin"):
            raise NotElementwise(f"{name} of values for each row or column")
        return reducer.write(node, *(copied[a] for a in node.args if isinstance(a, fx.Node)))
    lines = lines_of(node)
    if lines and _is_element(node.args[0].meta["val"], shape, lines=False):
        return reducer.write_lines(node, copied[node.args[0]], lines)
    if not isinstance(value, torch.Tensor):
        raise NotElementwise(unsupported_reason(node.target))
    if value.numel() != 1 and not _is_element(value, shape):
        raise NotElementwise(f"{name} gives a value of shape {tuple(value.shape)} beside the parameter's {shape}")
    if name in NO_OPS:
        given = node.args[0].meta["val"]
        is_flattened = _is_element(given, shape) and _is_element(value, shape)
        if is_flattened or given.numel() == 1 or given.shape == value.shape:
            return copied[node.args[0]]
    if name == "_to_copy" and value.is_floating_point() and node.args[0].meta["val"].is_floating_point():
        return copied[node.args[0]]
    if name == "clamp":
        bounds = (*node.args[1:], None, None)[:2]
        found = copied[node.args[0]]
        for target, bound in zip(
            (torch.ops.aten.clamp_min.default, torch.ops.aten.clamp_max.default), bounds, strict=True
        ):
            if bound is not None:
                found = set_meta(graph.call_function(target, (found, bound)), _meta(node, shape))
        return found
    if name == "copy":
        return copied[node.args[1]]
    if name == "mul" and type(node.args[1]) is int and node.args[1] == 1:
        return copied[node.args[0]]
    constant: Any = {"zeros_like": 0.0, "ones_like": 1.0, "zeros": 0.0, "ones": 1.0}.get(name)
    if name in ("full", "full_like"):
        constant = node.args[1]
    if constant is not None:
        call = graph.call_function(torch.ops.aten.scalar_tensor.default, (constant,), {"dtype": torch.float64})
        return set_meta(call, ValueMeta("scalar", torch.float64))
    if not is_supported(node.target):
        raise NotElementwise(unsupported_reason(node.target))
    return graph.node_copy(node, lambda old: copied[old])


def _is_element(value: torch.Tensor, shape: tuple[int, ...], *, lines: bool = True) -> bool:
    """Return whether a value has one number for each element: in the parameter's shape, or all in one row.

    lines: or for each row or each column, spread over its elements.
    """
    found = tuple(value.shape)
    of_lines = ((shape[0], *(1 for _ in shape[1:])), (1, *shape[1:])) if len(shape) > 1 else ()
    return found in (shape, (math.prod(shape),)) or (lines and found in of_lines)


def _meta(node: fx.Node, shape: tuple[int, ...]) -> ValueMeta:
    """Describe a value; floating-point values get the rule's types, whatever their type in the user's code."""
    value = node.meta["val"]
    is_element = _is_element(value, shape)
    dtype = value.dtype
    if dtype.is_floating_point:
        dtype = torch.float32 if is_element else torch.float64
    return ValueMeta("element" if is_element else "scalar", dtype)


def _drop_unused(graph: fx.Graph, inputs: list[RuleInput]) -> None:
    """Remove the inputs that no node reads, except the parameter, the slots and the number of steps."""
    for node in list(graph.nodes):
        if node.op != "placeholder" or node.users:
            continue
        found = next(i for i in inputs if i.name == node.target)
        if found.kind in ("scalar", "grad", "counter") and not found.counts_steps:
            graph.erase_node(node)
