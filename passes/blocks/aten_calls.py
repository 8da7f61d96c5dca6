"""What aten calls do to the values that flow through them, and what parameters are to them: told by the calls' names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from baoc_compile.core.torch_private import schema_of
from baoc_compile.passes.capture.torch_calls import operation

MATMULS = {"mm", "bmm", "matmul", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot"}
MARKS = {  # what a call does to a value that is worth knowing
    **dict.fromkeys(("softmax", "safe_softmax"), "softmax"),
    **dict.fromkeys(("rsqrt", "sqrt", "std", "var", "var_mean"), "normalized"),
    **dict.fromkeys(("relu", "gelu", "silu", "sigmoid", "tanh", "mish", "elu", "celu", "selu", "erf"), "activation"),
    **dict.fromkeys(("leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "softplus", "log_sigmoid"), "activation"),
}
MARKS_OF_SEVERAL = {"add": "sum", "mul": "product", "div": "product", "cat": "cat", "stack": "cat"}  # of other origin
_LOOKUPS = {"index", "index_select", "gather"}


def op_name(node: fx.Node) -> str:
    """What a call is called, in place or not and private or not."""
    return operation(node)[0].lstrip("_")


def is_lookup(name: str) -> bool:
    """The operation picks rows of its first argument by indices."""
    return "embedding" in name or name in _LOOKUPS


def kind_of_use(name: str, slot: str, shape: tuple[int, ...], normalized: bool) -> str:
    """What a parameter is to a call, from its argument's name and its shape. `normalized`: what it meets was."""
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
    """The tensors that a call takes, with the names of its arguments; those in a list are numbered."""
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
