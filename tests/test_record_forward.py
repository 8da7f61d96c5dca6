"""Watching a model records its forward graph, changes nothing, and keeps nothing alive."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from block_cases import EXPECTED, blocks_of, compiled, counts, table_of, watched
from model_zoo import BATCH, ZOO, Encoder, example
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from baoc_compile.passes.blocks.record_forward import ForwardGraph, record_graph, watch_forward

every_model = pytest.mark.parametrize("name", ZOO)


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
