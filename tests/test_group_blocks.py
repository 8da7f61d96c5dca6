"""Blocks: found by structure alone, whole, independent of order and names."""

import pytest
import torch
from block_cases import EXPECTED, blocks_of, compiled, counts, table_of, watched
from hypothesis import given
from hypothesis import strategies as st
from model_zoo import BATCH, LAYERS, WIDTH, ZOO, GPTLayer, example, fused_attention, scramble
from torch import Tensor, nn

from baoc_compile.core.block import Block
from baoc_compile.core.errors import OptionError
from baoc_compile.passes.blocks.group_blocks import group_blocks
from baoc_compile.passes.blocks.parameter_roles import roles_by_index

every_model = pytest.mark.parametrize("name", ZOO)


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
