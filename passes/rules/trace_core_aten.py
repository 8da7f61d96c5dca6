"""Trace a function of tensors into calls of core ATen, with fake tensors.

A dispatch mode, which belongs to one thread, records the calls. `make_fx` would use FX's tracer instead, which marks
the whole process as tracing: Dynamo then raises an error in every other thread that calls a compiled function.
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

#: Operations that are not decomposed, because rules define them directly.
_KEPT_WHOLE = {torch.ops.aten.lerp.Tensor, torch.ops.aten.lerp.Scalar, torch.ops.aten.sign.default}


def trace_core_aten(
    function: Callable[..., Sequence[Tensor]], examples: Sequence[tuple[tuple[int, ...], torch.dtype]]
) -> fx.GraphModule:
    """Trace `function` with one fake tensor for each (shape, dtype) of `examples`.

    The graph has a placeholder for each example. `meta["val"]` of every node is a fake tensor of its shape and type.
    Tensors that are neither inputs nor computed become attributes. Raises whatever the function raises, including
    torch's errors about data-dependent values.
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
    """Return torch's core ATen decompositions; cached, because torch searches all its operators for them."""
    return {op: f for op, f in core_aten_decompositions().items() if op not in _KEPT_WHOLE}


class _CoreAten(CallRecorder):
    """A recorder that decomposes composite operations and records their parts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and func not in _KEPT_WHOLE:
            with self:
                result = _decompositions().get(func, func.decompose)(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return super().__torch_dispatch__(func, types, args, kwargs)
