"""The table of configurations: exact bytes of state, bytes moved as the programs move them, and reasons."""

from __future__ import annotations

import pytest
import torch

import baoc_compile
from baoc_compile import OptionError, UnsupportedStep
from baoc_compile.core.program_graph import Operand, Signature
from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.passes.programs.bytes_moved import bytes_moved
from baoc_compile.passes.programs.compose_program import compose_step

SHAPE = (64, 160)


def table(make=torch.optim.AdamW, dtype=torch.float32, shape=SHAPE, **options):
    return baoc_compile.configurations(make([torch.nn.Parameter(torch.zeros(shape, dtype=dtype))], **options))


def test_every_configuration_has_its_exact_bytes():
    rows = table().rows
    assert [row.bytes_per_parameter for row in rows] == sorted((r.bytes_per_parameter for r in rows), reverse=True)
    numel = torch.Size(SHAPE).numel()
    of = {str(row): row.bytes_per_parameter * numel for row in rows}
    assert of["exp_avg=fp32 exp_avg_sq=fp32"] == 8 * numel
    assert of["exp_avg=e2m5 exp_avg_sq=e3m5"] == 2 * (numel + numel // 32 + 4)
    assert of["exp_avg=e2m1 exp_avg_sq=factored"] == numel // 2 + numel // 32 + 4 + 4 * (64 + 160 + 1)
    assert of["exp_avg=dropped exp_avg_sq=row"] == 4 * 64
    assert len(of) == len(rows) > 100


@pytest.mark.parametrize("plan", ["8bit", "4bit-learned", {"exp_avg": "bf16", "exp_avg_sq": "factored"}])
def test_a_prepared_optimizer_holds_these_bytes(plan):
    parameter = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = torch.optim.AdamW([parameter])
    rows = {str(row): row for row in baoc_compile.configurations(optimizer).rows}
    baoc_compile.prepare(optimizer, plan=plan)
    state = optimizer.state[parameter]
    codecs = {key: getattr(state[key], "codec", codec_named("fp32")) for key in ("exp_avg", "exp_avg_sq")}
    row = rows[" ".join(f"{key}={codec.name}" for key, codec in codecs.items())]
    step = state["step"].element_size()
    assert baoc_compile.state_bytes(optimizer) - step == row.bytes_per_parameter * parameter.numel()


CONFIGURATIONS = [
    {"exp_avg": "fp32", "exp_avg_sq": "fp32"},
    {"exp_avg": "e2m1", "exp_avg_sq": "e3m5"},
    {"exp_avg": "bf16", "exp_avg_sq": "factored"},
    {"exp_avg": "row", "exp_avg_sq": "column"},
    {"exp_avg": "dropped", "exp_avg_sq": "ucodebook8"},
    {"exp_avg": "e2m5", "exp_avg_sq": "e3m5", "param": "bf16+8"},
]


@pytest.mark.parametrize("names", CONFIGURATIONS, ids=lambda names: "-".join(names.values()))
def test_the_bytes_moved_are_those_of_the_programs_operands(names):
    dtype = torch.bfloat16 if "param" in names else torch.float32
    parameter = torch.nn.Parameter(torch.zeros(SHAPE, dtype=dtype))
    rule, codecs = table(dtype=dtype).rule, {key: codec_named(name) for key, name in names.items()}
    counters = tuple((i.name, torch.float32) for i in rule.inputs_of("counter"))

    def size(operand: Operand) -> int:
        if operand.source in ("param", "grad"):
            return parameter.numel() * operand.dtype.itemsize
        if operand.source not in ("part", "clock"):
            return 0
        codec = codecs[operand.slot]
        if operand.source == "clock":
            return 4
        return codec.part_shape(operand.part, parameter.shape).numel() * operand.part.dtype.itemsize

    moved = 0
    for graph in compose_step(rule, codecs, Signature("cpu", dtype, dtype, counters)):
        for operand in graph.operands:
            if operand.per == "codebook":
                continue
            folded = operand.per == "shared" and operand.written  # read, folded in, and written
            moved += size(operand) * (2 if folded else int(operand.read) + int(operand.written))
    codebooks = sum(p.count * p.dtype.itemsize for codec in codecs.values() for p in codec.parts if p.per == "codebook")
    assert bytes_moved(rule, codecs, parameter) - 2 * codebooks == moved


def test_what_is_not_allowed_says_why():
    choices = {(c.slot, c.codec.name): c.reason for c in table(amsgrad=True).choices}
    assert "never negative" in choices["exp_avg_sq", "e2m5"]
    assert "stays >= 0" in choices["exp_avg", "e3m5"]
    assert "maximum" in choices["max_exp_avg_sq", "dropped"] and "max_exp_avg_sq" in choices["max_exp_avg_sq", "row"]
    assert "does not divide" in choices["exp_avg", "column_head:64"]
    assert choices["exp_avg", "e2m5"] == choices["exp_avg_sq", "factored"] == ""
    text = str(table(amsgrad=True))
    assert all(reason in text for reason in choices.values())


def test_a_low_precision_weight_is_a_slot_too():
    choices = {(c.slot, c.codec.name): c.reason for c in table(dtype=torch.bfloat16).choices}
    assert choices["param", "bf16+8"] == choices["param", "nearest"] == ""
    assert "float16" in choices["param", "fp16+8"]
    assert ("param", "e2m5") not in choices


def test_the_largest_parameter_is_the_default_and_another_can_be_named():
    small, large = (torch.nn.Parameter(torch.zeros(n, 4)) for n in (3, 5))
    optimizer = torch.optim.SGD([small, large], momentum=0.9)
    assert baoc_compile.configurations(optimizer).shape == large.shape
    assert baoc_compile.configurations(optimizer, small).shape == small.shape
    with pytest.raises(OptionError, match="does not hold"):
        baoc_compile.configurations(optimizer, torch.zeros(3))


def test_an_update_that_is_no_rule_is_an_error():
    with pytest.raises(UnsupportedStep, match="closure"):
        baoc_compile.configurations(torch.optim.LBFGS([torch.nn.Parameter(torch.zeros(3))]))
