"""Recording operations as they run, and codec functions traced that way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.kernels.dialect import trace_codec as trace
from baoc_compile.kernels.dialect.recorder import CallRecorder


def calls(graph: fx.Graph) -> list[str]:
    return [f"{n.name} = {n.target}{n.args}" for n in graph.nodes if n.op == "call_function"]


def test_operations_in_place_are_calls_whose_results_are_read():
    x, other = torch.zeros(3), torch.ones(())
    recorder = CallRecorder()
    with recorder:
        y = x.mul_(2.0).add(1)
        z = x + other
    assert calls(recorder.graph) == [
        "mul_ = aten.mul_.Tensor(input_0, 2.0)",
        "add = aten.add.Tensor(mul_, 1)",
        "add_1 = aten.add.Tensor(mul_, input_2)",
    ]
    assert [recorder.node(t).name for t in (y, z)] == ["add", "add_1"]
    assert recorder.node(other).op == "placeholder"
    assert recorder.node(x).meta["example_value"] is x


def test_names_of_a_function_that_is_made_of_others_are_those_of_the_others():
    recorder = CallRecorder()
    with torch.no_grad(), recorder:
        torch.where(torch.ones(2) > 0, torch.zeros(2), 0.5)
    assert "where" in calls(recorder.graph)[-1]
    assert "aten.where.self" in calls(recorder.graph)[-1]


def as_text(graph: fx.Graph) -> str:
    return "\n".join(f"{n.name} {n.target} {n.args} {n.meta}" for n in graph.nodes)


@pytest.mark.parametrize("name", ["e3m5", "e2m5", "e2m1", "ucodebook8", "codebook4"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad, torch._subclasses.FakeTensorMode])
def test_a_codec_is_traced_alike_wherever_it_is_needed_first(name, mode):
    codec = codec_named(name)
    traced = []
    for how in (torch.no_grad, mode):
        for function in (trace.traced_decode, trace.traced_encode, trace.traced_words):
            function.cache_clear()
        with how():
            graphs = [trace.traced_decode(codec), trace.traced_encode(codec), trace.traced_words()]
        traced.append([as_text(graph) for graph in graphs])
        assert not any(isinstance(a, Tensor) for graph in graphs for n in graph.nodes for a in n.args)
    assert traced[0] == traced[1]


def test_an_operation_outside_of_the_dialect_is_an_error():
    with pytest.raises(TypeError, match="cumsum"):
        trace._trace(lambda x: (torch.cumsum(x, 0),), [((3, 4), torch.float32)])
