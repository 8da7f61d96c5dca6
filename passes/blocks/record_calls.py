"""Analysis: the operations that a computation calls, as a graph in which parameters are known by identity."""

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
    """Calls of aten operations in program order, and what is returned; `node.meta["shape"]` is the shape of a tensor.

    `parameters`: the placeholders that are parameters. Every other placeholder is an input, a buffer or a constant.
    Holds no tensors.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    parameters: dict[fx.Node, weakref.ref[Tensor]] = field(default_factory=dict)

    def placeholders_of(self, parameters: Sequence[Tensor]) -> Iterator[tuple[int, fx.Node]]:
        """Pairs of an index into `parameters` and its placeholder; parameters that were not seen are left out."""
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        for node, reference in self.parameters.items():
            parameter = reference()
            if parameter is not None and id(parameter) in index:
                yield index[id(parameter)], node


class ForwardRecorder(TorchDispatchMode):
    """Writes every operation on the way from `inputs` to the result into a graph, and leaves what it does alone.

    `original` maps ids of stand-ins to parameters.
    """

    supports_higher_order_operators = True

    def __init__(self, inputs: Any, original: Mapping[int, Tensor] = {}) -> None:
        super().__init__()
        self._forward = ForwardGraph()
        self._failure: Exception | None = None
        self._original = original
        self._nodes = WeakTensorKeyDictionary()  # a tensor that dies must not lend its id to the next one
        try:
            for value in tree_leaves(inputs):
                if isinstance(value, Tensor):
                    self._placeholder(value)
        except Exception as error:
            self._failure = error

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of a model run compiled, unseen, instead of eagerly."""
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
        """The graph, with the tensors in `output` as its results. Raises whatever went wrong in writing down."""
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
