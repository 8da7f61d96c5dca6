"""Classify aten calls by name: what they do to the values that flow through them, and what their parameters are for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from baoc_compile.core.torch_private import schema_of
from baoc_compile.passes.recorder.torch_calls import operation_of

MATMULS = {"mm", "bmm", "matmul", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot"}
MARKS = {  # call -> the mark that it leaves on its result
    **dict.fromkeys(("softmax", "safe_softmax"), "softmax"),
    **dict.fromkeys(("rsqrt", "sqrt", "std", "var", "var_mean"), "normalized"),
    **dict.fromkeys(("relu", "gelu", "silu", "sigmoid", "tanh", "mish", "elu", "celu", "selu", "erf"), "activation"),
    **dict.fromkeys(("leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "softplus", "log_sigmoid"), "activation"),
}
# The same for calls that combine values of different origin.
MARKS_OF_SEVERAL = {"add": "sum", "mul": "product", "div": "product", "cat": "cat", "stack": "cat"}
_LOOKUPS = {"index", "index_select", "gather"}


def op_name(node: fx.Node) -> str:
    """Return the operation's name, the same for in-place and private variants."""
    spelled = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return operation_of(spelled)[0].lstrip("_")


def is_lookup(name: str) -> bool:
    """Return whether the operation selects rows of a tensor by indices."""
    return "embedding" in name or name in _LOOKUPS


def kind_of_use(name: str, slot: str, shape: tuple[int, ...], normalized: bool) -> str:
    """Return what a call uses a parameter for.

    name: the operation's name.
    slot: the name of the argument that the parameter is passed as.
    shape: the parameter's shape.
    normalized: whether the value that the parameter is combined with was normalized.
    """
    is_vector = sum(size != 1 for size in shape) <= 1
    if is_lookup(name):
        return "embedding"
    if slot == "bias" or (name in MATMULS and name.startswith(("add", "badd")) and slot == "self"):
        return "bias"
    if name in MATMULS or "linear" in name:
        return "linear"
    if "conv" in name:
        return "convolution"
    if "norm" in name:
        return "norm"
    if name in ("mul", "div"):
        return "norm" if normalized and is_vector else "scale"
    if name in ("add", "sub"):
        return "bias" if is_vector else "position"
    if any(word in name for word in ("rnn", "lstm", "gru")):
        return "recurrent"
    return "token" if name in ("cat", "stack") else name


def named_arguments(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    """Yield (argument name, tensor) for the tensors that a call takes; entries of a list are numbered."""
    schema = schema_of(node.target)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    for i, argument in enumerate(node.args):
        yield from _tensors(names[i] if i < len(names) else str(i), argument)
    for name, argument in node.kwargs.items():
        yield from _tensors(name, argument)


def _tensors(name: str, argument: object) -> Iterator[tuple[str, fx.Node]]:
    if isinstance(argument, fx.Node):
        yield name, argument
    elif isinstance(argument, (list, tuple)):
        for i, entry in enumerate(argument):
            yield from _tensors(f"{name}.{i}", entry)
