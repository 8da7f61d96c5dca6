"""Trace each codec function once into a graph of the dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from baoc_compile.core.codec import CLOCK_DTYPE, GROUP_SIZE, Codec, Part, Random
from baoc_compile.core.torch_private import disable_proxy_modes_tracing, unset_fake_temporarily
from baoc_compile.kernels.codecs.counter_hash import element_words, group_words, step_key
from baoc_compile.kernels.dialect.nodes import ValueMeta, set_meta
from baoc_compile.kernels.dialect.operations import NO_OPS, is_supported, name_of, unsupported_reason
from baoc_compile.kernels.dialect.recorder import CallRecorder

Example = tuple[tuple[int, ...], torch.dtype]

_ELEMENTS, _PER_GROUP = (3, GROUP_SIZE), (3, 1)  # of any number of groups but 1
_WORDS: list[Example] = [(_ELEMENTS, torch.int32), (_PER_GROUP, torch.int32)]


@cache
def traced_decode(codec: Codec) -> fx.Graph:
    """Trace `codec.decode`. Inputs: the parts in order. Output: values."""
    names = [part.name for part in codec.parts]
    stored = [_example(part) for part in codec.parts]
    return _trace(lambda *parts: (codec.decode(dict(zip(names, parts, strict=True))),), stored)


@cache
def traced_encode(codec: Codec) -> fx.Graph:
    """Trace `codec.encode_with`.

    Inputs: values, element words, group words, the "codebook" parts. Outputs: the other parts in order.
    """
    codebooks = [part for part in codec.parts if part.per == "codebook"]

    def encode(value: Tensor, element: Tensor, group: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        known = {part.name: codebook for part, codebook in zip(codebooks, given, strict=True)}
        stored = codec.encode_with(known, value, Random(element, group))
        return tuple(stored[part.name] for part in encoded_parts(codec))

    return _trace(encode, [(_ELEMENTS, torch.float32), *_WORDS, *map(_example, codebooks)])


def encoded_parts(codec: Codec) -> list[Part]:
    """Return the parts that storing values writes."""
    return [part for part in codec.parts if part.per in ("element", "group")]


@cache
def traced_words() -> fx.Graph:
    """Trace the random words of a slot.

    Inputs: salt, clock, index, group index. Outputs: element words, group words, the next clock.
    """

    def words(salt: Tensor, clock: Tensor, index: Tensor, group_index: Tensor) -> tuple[Tensor, ...]:
        key = step_key(salt, clock)
        return element_words(key, index), group_words(key, group_index), clock + 1

    return _trace(words, [((), CLOCK_DTYPE), ((), CLOCK_DTYPE), *_WORDS])


def exact_encode(
    codec: Codec, value: Tensor, random: Random, codebooks: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Encode as `codec.encode_with` does, with the same bits as the compiled programs."""
    given = [codebooks[part.name] for part in codec.parts if part.per == "codebook"]
    parts = _exact_encoder(codec)(value, random.element, random.group, *given)
    return {part.name: stored for part, stored in zip(encoded_parts(codec), parts, strict=True)}


@cache
def _exact_encoder(codec: Codec) -> fx.GraphModule:
    return with_exact_roots(traced_encode(codec))


def correctly_rounded_sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root, which torch's float32 square root on a CPU is not always."""
    return torch.sqrt(x.to(torch.float64)).to(x.dtype)


def with_exact_roots(source: fx.Graph) -> fx.GraphModule:
    """Return a module of `source` whose square roots are correctly rounded (IEEE 754), as in compiled code."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(source, {}))
    for node in graph.nodes:
        if node.target is torch.ops.aten.sqrt.default:
            node.target = correctly_rounded_sqrt
    return fx.GraphModule(torch.nn.Module(), graph)


def _example(part: Part) -> Example:
    if part.per == "codebook":
        return (part.count,), part.dtype
    return (_PER_GROUP if part.per == "group" else _ELEMENTS), part.dtype


def _trace(function: Callable[..., tuple[Tensor, ...]], examples: list[Example]) -> fx.Graph:
    """Trace a function on example inputs. Raises TypeError for an operation outside the dialect."""
    recorder = CallRecorder()
    with unset_fake_temporarily(), disable_proxy_modes_tracing(), torch.inference_mode(False), torch.no_grad():
        tensors = [torch.zeros(shape, dtype=dtype) for shape, dtype in examples]
        inputs = [recorder.node(tensor) for tensor in tensors]
        with recorder:
            outputs = function(*tensors)
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for node in recorder.graph.nodes:
        value = node.meta["example_value"]
        if node.op == "placeholder" and node not in inputs:
            copied[node] = value.item()  # a number that torch wrapped into a tensor
        elif name_of(node.target) in NO_OPS and node.target is not torch.ops.aten.view.dtype:
            copied[node] = copied[node.args[0]] if isinstance(node.args[0], fx.Node) else node.args[0]
        elif node.op == "call_function" and not is_supported(node.target):
            raise TypeError(unsupported_reason(node.target))
        else:
            copied[node] = graph.node_copy(node, lambda old: copied[old])
            set_meta(copied[node], _meta(value))
    graph.output(tuple(copied[recorder.node(value)] for value in outputs))
    return graph


def _meta(value: Tensor) -> ValueMeta:
    if value.ndim == 1:
        return ValueMeta("codebook", value.dtype, count=len(value))
    if value.ndim == 0:
        return ValueMeta("scalar", value.dtype)
    return ValueMeta("group" if value.shape[-1] == 1 else "element", value.dtype)
