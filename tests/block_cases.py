"""Models seen by baoc, their blocks, and what is expected of the zoo."""

from collections.abc import Callable
from typing import Any

import torch
from model_zoo import LAYERS
from torch import Tensor, nn

from baoc_compile.core.block import Block
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.passes.blocks.group_blocks import group_blocks
from baoc_compile.passes.blocks.parameter_roles import roles_by_index
from baoc_compile.passes.blocks.record_forward import ForwardGraph, record_graph, watch_forward


def watched(model: nn.Module, inputs: tuple[Any, ...]) -> ForwardGraph:
    graphs: list[ForwardGraph] = []
    watch_forward(model, graphs.append)
    model(*inputs)
    (graph,) = graphs
    return graph


def compiled(model: nn.Module, inputs: tuple[Any, ...], dynamic: bool = False) -> ForwardGraph:
    graphs: list[ForwardGraph | None] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(record_graph(gm, example_inputs))
        return gm.forward

    torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    (graph,) = graphs
    assert graph is not None
    return graph


def table_of(parameters: list[Tensor], model: nn.Module | None = None) -> ParameterTable:
    return ParameterTable.of(torch.optim.SGD(parameters), model)


def blocks_of(model: nn.Module, graph: ForwardGraph | None, **options: Any) -> tuple[Block, ...]:
    table = table_of(list(model.parameters()), model)
    roles = roles_by_index(graph, table.parameters) if graph is not None else {}
    return group_blocks(table, dict.fromkeys(range(len(table.parameters)), "a rule"), roles, **options)


def counts(blocks: tuple[Block, ...]) -> dict[str, int]:
    return {block.name: len(block.parameters) for block in blocks}


LAYER = {
    **{f"{role} 16x16": LAYERS for role in ("query", "key", "value", "attention out")},
    **{f"{role} bias 16": LAYERS for role in ("query", "key", "value", "attention out")},
    "mlp in 64x16": LAYERS,
    "mlp in bias 64": LAYERS,
    "mlp out 16x64": LAYERS,
    "mlp out bias 16": LAYERS,
    "norm 16": 2 * LAYERS + 1,
    "norm bias 16": 2 * LAYERS + 1,
}
FUSED = {key: LAYER[key] for key in LAYER if not key.startswith(("query", "key", "value"))} | {"qkv 48x16": LAYERS}
POSITIONS = {"embedding 24x16": 1, "position 6x16": 1, "head 24x16": 1}
ENCODER = {**FUSED, "qkv bias 48": LAYERS, "norm 16": 2 * LAYERS, "norm bias 16": 2 * LAYERS}
LLAMA = {
    "embedding+head 24x16": 1,
    "norm 16": 2 * LAYERS + 1,
    "query 16x16": LAYERS,
    "key 8x16": LAYERS,
    "value 8x16": LAYERS,
    "attention out 16x16": LAYERS,
    "mlp gate 32x16": LAYERS,
    "mlp in 32x16": LAYERS,
    "mlp out 16x32": LAYERS,
}
EXPECTED = {
    "gpt": LAYER | POSITIONS,
    "gpt written out": LAYER | POSITIONS,
    "gpt fused": FUSED | POSITIONS,
    "llama": LLAMA,
    "llama gqa": LLAMA,
    "encoder": ENCODER
    | {"linear 16x5": 1, "linear bias 16": 1, "token 1x1x16": 1, "position 1x7x16": 1}
    | {"head 3x16": 1, "head bias 3": 1},
    "vit": LAYER
    | {"convolution 16x1x2x2": 1, "convolution bias 16": 1, "position 4x16": 1}
    | {"head 3x16": 1, "head bias 3": 1},
    "resnet": {
        "convolution 4x3x3x3": 1,
        "convolution 4x4x3x3": 3,  # the first of every block; it reads the residual stream
        "convolution 4x4x3x3 #2": 3,
        "convolution 8x4x3x3": 1,
        "convolution 8x4x1x1": 1,
        "convolution 8x8x3x3": 3,
        "convolution 8x8x3x3 #2": 2,
        "norm 4": 7,
        "norm bias 4": 7,
        "norm 8": 7,
        "norm bias 8": 7,
        "head 3x8": 1,
        "head bias 3": 1,
    },
}
