"""Analysis: record the operations of a computation as a graph in which parameters are identified as objects."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from baoc_compile.core.torch_private import TorchDispatchMode, tree_leaves, tree_map

_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_SILENT = ("profiler", "prim")  # calls that compute nothing


@dataclass
class ForwardGraph:
    """A forward pass as calls of aten operations. It holds no tensors.

    graph: the calls in program order, and the returned values. `node.meta["shape"]` is the shape of a tensor, with -1
        for a size that is not an int.
    parameters: placeholder -> the parameter. All other placeholders are inputs, buffers or constants.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    parameters: dict[fx.Node, weakref.ref[Tensor]] = field(default_factory=dict)

    def placeholders_of(self, parameters: Sequence[Tensor]) -> Iterator[tuple[int, fx.Node]]:
        """Yield (index into `parameters`, placeholder) for the parameters that the graph contains."""
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        for node, reference in self.parameters.items():
            parameter = reference()
            if parameter is not None and id(parameter) in index:
                yield index[id(parameter)], node


class ForwardRecorder(TorchDispatchMode):
    """A dispatch mode that records every operation into a graph and does not change its result.

    inputs: nested arguments of the computation, whose tensors become placeholders.
    original: id of a stand-in -> the parameter that it stands for.

    An error in recording does not disturb the computation; `finish` raises it.
    """

    supports_higher_order_operators = True

    def __init__(self, inputs: Any, original: Mapping[int, Tensor] = {}) -> None:
        super().__init__()
        self._forward = ForwardGraph()
        self._failure: Exception | None = None
        self._original = original
        self._nodes = WeakTensorKeyDictionary()  # not by id, which a dead tensor passes on to the next one
        try:
            for value in tree_leaves(inputs):
                if isinstance(value, Tensor):
                    self._placeholder(value)
        except Exception as error:
            self._failure = error

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled parts of a model run compiled, and so unseen, instead of eagerly."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._failure is None and getattr(func, "namespace", "") not in _SILENT:
            try:
                self._record(func, args, kwargs or {}, result)
            except Exception as error:
                self._failure = error
        return result

    def finish(self, output: Any) -> ForwardGraph:
        """Return the graph, with the tensors in `output` as its results. Raises the first error that recording met."""
        if self._failure is not None:
            raise self._failure
        results = [self._argument(value) for value in tree_leaves(output) if isinstance(value, Tensor)]
        self._forward.graph.output(tuple(results or list(self._forward.graph.nodes)[-1:]))
        return self._forward

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        args, kwargs = tree_map(self._argument, (tuple(args), dict(kwargs)))
        call = self._forward.graph.call_function(func, args, kwargs)
        if isinstance(result, Tensor):
            self._enter(result, call)
        elif isinstance(result, (list, tuple)):
            for position, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._enter(part, self._forward.graph.call_function(operator.getitem, (call, position)))

    def _argument(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value if type(value) in _PLAIN else type(value).__name__
        if value in self._nodes:
            return self._nodes[value]
        if value.grad_fn is not None:
            raise RuntimeError("parts of it were computed out of sight")
        return self._placeholder(value)

    def _placeholder(self, tensor: Tensor) -> fx.Node:
        node = self._enter(tensor, self._forward.graph.placeholder(f"input_{len(self._forward.graph.nodes)}"))
        parameter = self._original.get(id(tensor), tensor)
        if isinstance(parameter, torch.nn.Parameter):
            self._forward.parameters[node] = weakref.ref(parameter)
        return node

    def _enter(self, tensor: Tensor, node: fx.Node) -> fx.Node:
        node.meta["shape"] = tuple(size if type(size) is int else -1 for size in tensor.shape)
        self._nodes[tensor] = node
        return node
