"""Analysis: record a model's forward pass as one graph of aten calls in which parameters are identified as objects.

There are two ways to record. A model that runs eagerly is watched: its first training call runs as usual, under a
dispatch mode that records the calls. For a model that is compiled with this backend, Dynamo's graph is run on fake
tensors (shapes without memory) under the same mode. Both give the same graph.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from baoc_compile.core.torch_private import (
    FakeTensor,
    FakeTensorMode,
    current_dispatch_mode,
    hint_of,
    is_compiled,
    uncompiled_module,
)
from baoc_compile.passes.blocks.record_calls import ForwardGraph, ForwardRecorder

log = logging.getLogger("baoc")


class Watch:
    """A watch that records the first call of a model in training mode with gradients enabled.

    watched: the model, weakly; None after the watch has ended.
    """

    watched: weakref.ref[torch.nn.Module] | None = None
    _recorder: ForwardRecorder | None = None

    def __init__(self, model: torch.nn.Module, on_graph: Callable[[ForwardGraph], None]) -> None:
        self.watched = weakref.ref(model)
        self._on_graph: Callable[[ForwardGraph], None] | None = on_graph
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, prepend=True, always_call=True),
        ]

    def __reduce__(self) -> Any:
        """Copy and pickle as a watch of no model."""
        return object.__new__, (Watch,)

    def remove(self) -> None:
        """End the watch."""
        self._stop()
        for handle in self._handles:
            handle.remove()
        self.watched, self._on_graph = None, None

    def _before(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or self.watched is None or self.watched() is not model:
            return
        self._stop()  # hooks do not run after a KeyboardInterrupt: end the recording of that call
        if not model.training or not torch.is_grad_enabled() or torch.jit.is_tracing():
            return
        if any(is_compiled(module) for module in model.modules()):
            log.info("the model is compiled in parts, so that its forward pass is not seen as a whole")
            self.remove()
            return
        self._recorder = ForwardRecorder((args, kwargs))
        self._recorder.__enter__()

    def _after(self, model: torch.nn.Module, args: Any, output: Any) -> None:
        if (
            torch.compiler.is_compiling()
            or self._recorder is None
            or self.watched is None
            or self.watched() is not model
        ):
            return
        recorder, on_graph = self._stop(), self._on_graph
        if output is None:  # the call raised: wait for the next one
            return
        self.remove()
        try:
            forward = recorder.finish(output)
            if forward.parameters and on_graph is not None:
                on_graph(forward)
        except Exception as error:
            log.warning("the model's forward pass could not be read: %s: %s", type(error).__name__, error)

    def _stop(self) -> Any:
        recorder, self._recorder = self._recorder, None
        if recorder is not None and current_dispatch_mode() is recorder:
            recorder.__exit__(None, None, None)
        return recorder


def watch_forward(model: torch.nn.Module, on_graph: Callable[[ForwardGraph], None]) -> Watch:
    """Call `on_graph` once, with the graph of the first training call of `model`; the call itself is unchanged.

    A model that is compiled, wholly or in parts, is not recorded. A call that raises is discarded, and the next one is
    recorded instead. The returned watch's `remove` ends it early.
    """
    return Watch(uncompiled_module(model), on_graph)


def _is_number(value: Any) -> bool:
    """Return whether a value is a 0-dim CPU tensor: Dynamo passes numbers that may change in that form."""
    return (
        isinstance(value, Tensor)
        and not value.ndim
        and value.device.type == "cpu"
        and not isinstance(value, FakeTensor)
    )


def record_graph(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> ForwardGraph | None:
    """Record Dynamo's graph of a forward pass as aten calls; return None if it has no parameters or cannot be run.

    gm: Dynamo's graph; parameters are its attributes, or among the inputs.
    example_inputs: the inputs that the backend received with `gm`.
    """
    given = next((value.fake_mode for value in example_inputs if isinstance(value, FakeTensor)), None)
    mode = given or FakeTensorMode()
    original: dict[int, Tensor] = {}
    stand_ins: dict[int, Any] = {}

    def stand_in(value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return hint_of(value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in stand_ins:
            stand_ins[id(value)] = mode.from_tensor(value, static_shapes=True)
            original[id(stand_ins[id(value)])] = value
        return stand_ins[id(value)]

    class Run(fx.Interpreter):
        def fetch_attr(self, target: str) -> Any:
            return stand_in(super().fetch_attr(target))

        def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
            number = numbers.get(id(args[0])) if target == "item" else None
            return super().call_method(target, args, kwargs) if number is None else number

    try:
        inputs = [stand_in(value) for value in example_inputs]
        numbers = {
            id(given): value.item() for given, value in zip(inputs, example_inputs, strict=True) if _is_number(value)
        }
        with torch.enable_grad(), mode, ForwardRecorder(inputs, original) as recorder:
            output = Run(gm).run(*inputs)
        forward = recorder.finish(output)
    except Exception as error:
        log.info("the model's graph could not be read: %s: %s", type(error).__name__, error)
        return None
    return forward if forward.parameters else None
