"""Blocks: found by structure alone, whole, independent of order and names; and watching a model changes nothing."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_zoo import BATCH, LAYERS, WIDTH, ZOO, Encoder, GPTLayer, example, fused_attention, scramble
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from baoc_compile.core.block import Block
from baoc_compile.core.errors import OptionError
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.passes.blocks.group_blocks import group_blocks
from baoc_compile.passes.blocks.parameter_roles import roles_by_index
from baoc_compile.passes.blocks.record_forward import ForwardGraph, record_graph, watch_forward

every_model = pytest.mark.parametrize("name", ZOO)


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


def check_whole(blocks: tuple[Block, ...], model: nn.Module) -> None:
    assert sorted(i for block in blocks for i in block.parameters) == list(range(len(list(model.parameters()))))
    assert len({block.name for block in blocks}) == len(blocks)


# What a model is made of


@every_model
def test_each_parameter_is_in_one_block_and_names_do_not_matter(name):
    model, inputs = example(ZOO[name])
    blocks = blocks_of(model, watched(model, inputs))
    check_whole(blocks, model)
    check_whole(blocks_of(model, None), model)

    nameless, inputs = example(lambda: scramble(ZOO[name]()), like=model)
    assert not {n for n, _ in nameless.named_parameters()} & {n for n, _ in model.named_parameters()}
    assert blocks_of(nameless, watched(nameless, inputs)) == blocks


@pytest.mark.parametrize("name", ["gpt", "gpt written out", "llama", "encoder", "vit", "unet", "resnet"])
def test_watching_and_compiling_give_the_same_blocks(name):
    model, inputs = example(ZOO[name])
    graph = compiled(model, inputs)
    assert blocks_of(model, graph) == blocks_of(model, watched(model, inputs))


def test_dynamic_shapes_give_the_same_blocks():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 2))
    inputs = (torch.tensor([[1, 2, 3]]),)
    assert blocks_of(model, compiled(model, inputs, dynamic=True)) == blocks_of(model, watched(model, inputs))


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


@pytest.mark.parametrize("name", EXPECTED)
def test_roles(name):
    model, inputs = example(ZOO[name])
    assert counts(blocks_of(model, watched(model, inputs))) == EXPECTED[name]


def test_a_unet_has_one_block_per_place_and_width():
    model, inputs = example(ZOO["unet"])
    found = counts(blocks_of(model, watched(model, inputs)))
    assert found["convolution 4x4x3x3"] == 7  # both convolutions of four blocks, less the one that reads both branches
    assert found["convolution 8x8x3x3"] == 3
    assert found["convolution 4x4x1x1"] == 3
    assert (found["linear 4x16"], found["linear 8x16"]) == (4, 2)
    assert (found["norm 4"], found["norm 8"], found["norm 12"]) == (9, 3, 1)
    assert found["head 1x4x3x3"] == 1


class Odd(GPTLayer):
    """Attention and MLP side by side, queries with an adapter, norms of queries and keys, a scaled branch."""

    def __init__(self) -> None:
        super().__init__(fused_attention, separate=True)
        self.a, self.b = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        self.nq, self.scale = nn.RMSNorm(WIDTH), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        q, k, v = (z.unsqueeze(1) for z in (self.nq(self.q(y) + self.b(self.a(y))), self.nq(self.k(y)), self.v(y)))
        return x + (self.scale * self.o(self.attention(q, k, v).squeeze(1)) + self.down(self.up(self.ln2(x)).relu()))


def test_roles_are_seen_through_norms_scales_and_sums():
    model = nn.Sequential(Odd(), Odd(), Odd())
    found = counts(blocks_of(model, watched(model, (torch.randn(BATCH, 5, WIDTH),))))
    for name in ("query 16x16", "query 16x2", "linear 2x16", "key 16x16", "value 16x16", "attention out 16x16"):
        assert found.pop(name) == 3
    for name in ("mlp in 64x16", "mlp out 16x64", "scale 16"):
        assert found.pop(name) == 3
    assert found.pop("norm 16") == 6
    assert found.pop("norm 16 #2") == 3  # of queries and keys
    assert all("bias" in name for name in found)


def test_an_equal_place_with_another_shape_or_kind_is_another_block():
    model, inputs = example(ZOO["gpt"])
    table = table_of(list(model.parameters()))
    kinds = {i: i < len(table.parameters) // 2 for i in range(len(table.parameters))}
    blocks = group_blocks(table, kinds, roles_by_index(watched(model, inputs), table.parameters))
    check_whole(blocks, model)
    assert all(len({kinds[i] for i in block.parameters}) == 1 for block in blocks)
    assert {"query 16x16", "query 16x16 #2"} <= set(counts(blocks))


MODEL, INPUTS = example(ZOO["resnet"])
GRAPH = watched(MODEL, INPUTS)


@given(st.permutations(range(len(list(MODEL.parameters())))), st.booleans())
def test_the_order_of_parameters_does_not_matter(order, seen):
    def as_sets(parameters: list[Tensor]) -> dict[str, set[int]]:
        table = table_of(parameters)
        kinds = {i: p.dtype for i, p in enumerate(parameters)}
        blocks = group_blocks(table, kinds, roles_by_index(GRAPH, parameters) if seen else {})
        return {block.name: {id(parameters[i]) for i in block.parameters} for block in blocks}

    parameters = list(MODEL.parameters())
    assert as_sets([parameters[i] for i in order]) == as_sets(parameters)


def test_parameters_that_the_model_did_not_use_are_grouped_by_shape():
    model, inputs = example(ZOO["vit"])
    graph = watched(model, inputs)
    model.spare, model.other = nn.Linear(3, 2), nn.Conv1d(2, 2, 3, bias=False)
    found = counts(blocks_of(model, graph))
    assert (found["matrix 2x3"], found["vector 2"], found["3d tensor 2x2x3"]) == (1, 1, 1)


def test_without_a_forward_pass_blocks_are_shapes():
    model, _ = example(ZOO["llama"])
    shapes = {"matrix 24x16": 1, "vector 16": 2 * LAYERS + 1, "matrix 16x16": 2 * LAYERS}
    shapes |= {"matrix 8x16": 2 * LAYERS, "matrix 32x16": 2 * LAYERS, "matrix 16x32": LAYERS}
    assert counts(blocks_of(model, None)) == shapes


# The user's own grouping


def test_the_user_may_group_by_function_or_by_names():
    model, inputs = example(ZOO["gpt"])
    graph = watched(model, inputs)
    blocks = blocks_of(model, graph, grouping=lambda name, p: "large" if p.numel() > 16 * WIDTH else "small")
    assert sorted(counts(blocks)) == ["large", "small"]
    check_whole(blocks, model)
    by_name = {name: int(p.ndim > 1) for name, p in model.named_parameters()}
    assert sorted(counts(blocks_of(model, None, grouping=by_name))) == ["0", "1"]


@pytest.mark.parametrize(
    "grouping, message",
    [
        (lambda name, p: None if name == "layers.1.q.bias" else 0, "'layers.1.q.bias' has no label"),
        (lambda name, p: [name], "'tokens.weight' cannot be hashed"),
        ({"tokens.weigth": 1}, "no parameter 'tokens.weigth'; did you mean 'tokens.weight'"),
        ({"tokens.weight": 1}, "'positions.weight' has no label"),
        ("by hand", "expected a mapping"),
    ],
)
def test_a_wrong_grouping_names_the_parameter(grouping, message):
    model, _ = example(ZOO["gpt"])
    with pytest.raises(OptionError, match=f"blocks: .*{message}"):
        blocks_of(model, None, grouping=grouping)


# Watching


@every_model
def test_watching_changes_no_bit_and_ends_after_one_call(name):
    def losses_and_gradients(watch: bool) -> list[Tensor]:
        model, inputs = example(ZOO[name])
        graphs: list[ForwardGraph] = []
        if watch:
            watch_forward(model, graphs.append)
        results = []
        for _ in range(2):
            loss = model(*inputs).square().mean()
            loss.backward()
            results += [loss.detach()]
            assert not _get_current_dispatch_mode_stack()
            assert not model._forward_hooks and not model._forward_pre_hooks
        assert len(graphs) == watch
        return results + [p.grad for p in model.parameters()] + [b.clone() for b in model.buffers()]

    for with_watch, without in zip(losses_and_gradients(True), losses_and_gradients(False), strict=True):
        assert torch.equal(with_watch, without)


def test_nothing_is_kept_alive():
    model, inputs = example(ZOO["llama"])
    output: list[weakref.ref[Tensor]] = []
    model.layers[0].register_forward_hook(lambda module, args, result: output.append(weakref.ref(result)))
    graph = watched(model, inputs)
    references = [weakref.ref(model), *map(weakref.ref, model.parameters()), *map(weakref.ref, inputs), *output]
    table = table_of(list(model.parameters()))
    del model, inputs
    gc.collect()
    assert references[0]() is None and output[0]() is None
    assert all(reference() is not None for reference in references[1 : 1 + len(table.parameters)])
    del table
    gc.collect()
    assert not any(reference() is not None for reference in references)
    assert not list(graph.placeholders_of([]))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_model_that_raises_is_recorded_at_its_next_call(error):
    model, inputs = example(ZOO["gpt"])
    graphs: list[ForwardGraph] = []
    watch_forward(model, graphs.append)

    def fail(module, args):
        raise error("on purpose")

    handle = model.layers[-1].register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(error, match="on purpose"):
            model(*inputs)
    handle.remove()
    assert error is KeyboardInterrupt or not _get_current_dispatch_mode_stack()
    model(*inputs)
    assert not _get_current_dispatch_mode_stack()
    assert counts(blocks_of(model, graphs[0])) == EXPECTED["gpt"]


def test_only_a_training_call_with_gradients_is_recorded():
    model, inputs = example(ZOO["gpt"])
    graphs: list[ForwardGraph] = []
    watch_forward(model, graphs.append)
    model.eval()(*inputs)
    with torch.no_grad():
        model.train()(*inputs)
    assert not graphs and not _get_current_dispatch_mode_stack()
    model(*inputs)
    assert len(graphs) == 1


def test_a_watch_can_be_ended_and_a_failing_listener_does_no_harm(caplog):
    model, inputs = example(ZOO["gpt"])
    watch_forward(model, pytest.fail).remove()
    model(*inputs)

    def fail(graph):
        raise ValueError("on purpose")

    watch_forward(model, fail)
    model(*inputs).backward()
    assert "on purpose" in caplog.text and not model._forward_hooks


def test_copies_of_a_watched_model_are_not_watched():
    model, inputs = example(ZOO["llama"])
    graphs: list[ForwardGraph] = []
    watch_forward(model, graphs.append)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(*inputs).backward()
    assert not graphs
    model(*inputs)
    assert len(graphs) == 1


def test_autocast_and_checkpointing_are_seen_through():
    model, inputs = example(ZOO["gpt"])
    with torch.autocast("cpu", torch.bfloat16):
        graph = watched(model, inputs)
    assert counts(blocks_of(model, graph)) == EXPECTED["gpt"]

    class Checkpointed(Encoder):
        def forward(self, patches: Tensor) -> Tensor:
            x = torch.cat((self.cls.expand(len(patches), -1, -1), self.patches(patches)), 1) + self.where
            for i, layer in enumerate(self.layers):
                x = checkpoint(layer, x, use_reentrant=i % 2 == 0)
            return self.classifier(x[:, 0])

    torch.manual_seed(0)
    model, graphs = Checkpointed(), []
    watch_forward(model, graphs.append)
    model(torch.randn(BATCH, 6, 5)).sum().backward()
    assert counts(blocks_of(model, graphs[0])) == EXPECTED["encoder"]


def test_a_model_compiled_in_parts_is_left_alone():
    model, inputs = example(ZOO["gpt"])
    calls = []

    def backend(gm, example_inputs):
        calls.append(gm)
        return gm.forward

    for layer in model.layers:
        layer.compile(backend=backend)
    watch_forward(model, pytest.fail)
    model(*inputs).backward()
    assert calls and not model._forward_hooks and not _get_current_dispatch_mode_stack()


def test_a_pass_with_parts_that_are_not_seen_is_not_used(caplog):
    model, inputs = example(ZOO["gpt"])
    layer = model.layers[1].forward

    def hidden(x: Tensor) -> Tensor:
        with _disable_current_modes():
            return layer(x)

    model.layers[1].forward = hidden
    watch_forward(model, pytest.fail)
    model(*inputs).backward()
    assert "out of sight" in caplog.text and not model._forward_hooks


def test_a_watched_model_can_be_compiled_as_a_whole():
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(5, 3),)
    graphs: list[ForwardGraph] = []
    watch_forward(torch.compile(model), graphs.append)  # the same as watching the model
    blocks = blocks_of(model, compiled(model, inputs))
    assert list(counts(blocks)) == ["linear 4x3", "linear bias 4", "head 2x4", "head bias 2"] and not graphs
    model(*inputs)
    assert blocks_of(model, graphs[0]) == blocks


def test_a_graph_that_cannot_be_run_is_not_seen():
    def forward(x, weight):
        return (x @ weight).sum().item() * x

    gm = torch.fx.symbolic_trace(forward)
    assert record_graph(gm, [torch.randn(2, 3), nn.Parameter(torch.randn(3, 2))]) is None
    assert record_graph(torch.fx.symbolic_trace(lambda x: x + 1), [torch.randn(2)]) is None
    assert not _get_current_dispatch_mode_stack()
