"""Trace a function of tensors into calls of core ATen, on shapes alone.

`make_fx` does the same through FX's own tracer, which marks the whole process as tracing for its time: another thread that
calls a compiled function then gets an error from Dynamo. Here calls are written down by a dispatch mode, which belongs to
one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from baoc_compile.core.torch_private import (
    FakeTensorMode,
    core_aten_decompositions,
    disable_proxy_modes_tracing,
    unset_fake_temporarily,
)
from baoc_compile.kernels.dialect.recorder import CallRecorder

#: Operations that stay as they are: rules give them a meaning of their own.
_KEPT_WHOLE = {torch.ops.aten.lerp.Tensor, torch.ops.aten.lerp.Scalar, torch.ops.aten.sign.default}


def trace_core_aten(
    function: Callable[..., Sequence[Tensor]], examples: Sequence[tuple[tuple[int, ...], torch.dtype]]
) -> fx.GraphModule:
    """The calls of `function`, with a placeholder for each of `examples` (shape, dtype).

    Every node has its value's shape and type in `meta["val"]`. Tensors that neither were given nor are computed become
    attributes. Raises whatever the function raises, an error about data-dependent values included.
    """
    recorder = _CoreAten()
    with unset_fake_temporarily(), disable_proxy_modes_tracing(), FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(shape, dtype=dtype) for shape, dtype in examples]
        placeholders = [recorder.node(tensor) for tensor in inputs]
        with torch.no_grad(), recorder:
            outputs = function(*inputs)
        recorder.graph.output(tuple(recorder.node(value) for value in outputs))
    root = torch.nn.Module()
    for node in list(recorder.graph.nodes):
        node.meta["val"] = node.meta.get("example_value")
        if node.op == "placeholder" and node not in placeholders:
            setattr(root, node.name, node.meta["val"])
            with recorder.graph.inserting_before(node):
                attribute = recorder.graph.get_attr(node.name)
            attribute.meta = dict(node.meta)
            node.replace_all_uses_with(attribute)
            recorder.graph.erase_node(node)
    return fx.GraphModule(root, recorder.graph)


@cache
def _decompositions() -> dict[Any, Any]:
    """torch looks through all its operators for them."""
    return {op: f for op, f in core_aten_decompositions().items() if op not in _KEPT_WHOLE}


class _CoreAten(CallRecorder):
    """Writes down what an operation is made of, where it is made of others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and func not in _KEPT_WHOLE:
            with self:
                result = _decompositions().get(func, func.decompose)(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return super().__torch_dispatch__(func, types, args, kwargs)
