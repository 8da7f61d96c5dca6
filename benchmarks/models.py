"""Shapes of the parameters of whole models, made by rule: no weights, no model library."""

from __future__ import annotations

import math
from collections.abc import Callable

Shape = tuple[int, ...]


def single_tensor(numel: int) -> list[Shape]:
    return [(numel,)]


def gpt2(vocabulary: int = 50_257, context: int = 1_024, layers: int = 12, width: int = 768) -> list[Shape]:
    """GPT-2 (Radford et al. 2019), by default the small one: 148 tensors, 124.4M parameters, tied embeddings."""
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    feed_forward: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    block = norm + attention + norm + feed_forward
    return [(vocabulary, width), (context, width), *layers * block, *norm]


def llama(
    vocabulary: int = 32_000, layers: int = 22, width: int = 2_048, keys: int = 256, hidden: int = 5_632
) -> list[Shape]:
    """A Llama with grouped queries, by default TinyLlama's sizes: 201 tensors, 1.10B parameters.

    `keys`: width of all key heads together.
    """
    attention: list[Shape] = [(width, width), (keys, width), (keys, width), (width, width)]
    feed_forward: list[Shape] = [(hidden, width), (hidden, width), (width, hidden)]
    block = [*attention, *feed_forward, (width,), (width,)]
    return [(vocabulary, width), *layers * block, (width,), (vocabulary, width)]


def resnet(blocks: tuple[int, ...] = (3, 4, 23, 3), classes: int = 1_000) -> list[Shape]:
    """A ResNet of bottlenecks (He et al. 2015), by default ResNet-101: 314 tensors, 44.5M parameters."""

    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # and its batch norm

    shapes, inputs = convolution(64, 3, 7), 64
    for stage, count in enumerate(blocks):
        narrow = 64 * 2**stage
        wide = 4 * narrow
        for index in range(count):
            shapes += convolution(narrow, inputs, 1) + convolution(narrow, narrow, 3) + convolution(wide, narrow, 1)
            if index == 0:
                shapes += convolution(wide, inputs, 1)  # of the shortcut
            inputs = wide
    return [*shapes, (classes, inputs), (classes,)]


#: Name -> shapes. The single tensor is a whole number of blocks of 256, which some rivals ask of what they quantize.
MODELS: dict[str, Callable[[], list[Shape]]] = {
    "10M": lambda: single_tensor(10 * 2**20),
    "transformer": gpt2,
    "convnet": resnet,
    "llama-1b": llama,
}


def count(shapes: list[Shape]) -> int:
    """Parameters in all."""
    return sum(map(math.prod, shapes))
