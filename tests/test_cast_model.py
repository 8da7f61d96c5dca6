"""`cast_model` casts what may be cast, keeps the rest in fp32, says so, and the model still runs and learns."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import baoc_compile
from baoc_compile import OptionError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.batch_norm = nn.BatchNorm2d(8)
        self.linear_in = nn.Linear(8, 64)
        self.norm = nn.LayerNorm(64)
        self.linear_out = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 64, bias=False)
        self.head.weight = self.linear_out.weight
        self.register_buffer("frequencies", torch.arange(64.0))

    def forward(self, x):
        x = self.batch_norm(self.conv(x)).relu().mean((2, 3))
        return self.head(self.linear_out(self.norm(self.linear_in(x))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast_and_norms_and_buffers_are_not(dtype):
    model = Net()
    objects = {name: parameter for name, parameter in model.named_parameters()}
    report = baoc_compile.cast_model(model, dtype)
    assert {n for n, p in model.named_parameters() if p.dtype == dtype} == set(report.cast)
    assert {n.split(".")[0] for n in report.cast} == {"conv", "linear_in", "linear_out"}
    kept = {"batch_norm.weight", "batch_norm.bias", "norm.weight", "norm.bias", "frequencies"}
    assert kept <= set(report.kept) and "normalizes" in report.kept["norm.weight"]
    assert all(b.dtype != dtype for b in model.buffers())
    assert all(objects[name] is parameter for name, parameter in model.named_parameters())
    assert model.head.weight is model.linear_out.weight
    assert report.bytes_after == sum(p.numel() * p.element_size() for p in model.parameters()) < report.bytes_before
    assert all(name in str(report) for name in report.kept)


@pytest.mark.parametrize("how", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), torch.compile])
def test_a_cast_model_runs(how):
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3, 8, 8)
    expected = model(x)
    baoc_compile.cast_model(model)
    output = how(model)(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output.float(), expected, atol=0.1 * float(expected.abs().max()))


def test_norms_compute_in_fp32():
    model = nn.Sequential(nn.LayerNorm(64))
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(args[0].dtype), prepend=True)
    with pytest.raises(OptionError, match="has no fp32"):
        baoc_compile.cast_model(nn.Sequential())
    baoc_compile.cast_model(model)
    assert model(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16
    assert seen == [torch.float32]


def test_keep_names_further_modules():
    model = Net()
    report = baoc_compile.cast_model(model, keep=lambda name, module: name == "linear_in")
    assert model.linear_in.weight.dtype == torch.float32 and "linear_in" in report.kept["linear_in.weight"]
    assert model(torch.randn(2, 3, 8, 8).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, "bfloat16"])
def test_another_dtype_is_an_error_and_nothing_changes(dtype):
    model = Net()
    with pytest.raises(OptionError, match="dtype"):
        baoc_compile.cast_model(model, dtype)
    assert all(p.dtype == torch.float32 for p in model.parameters()) and not model.norm._forward_hooks


def test_a_cast_model_learns_with_split_weights_and_tells_its_master_weights():
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(64, 3, 8, 8), torch.randn(64, 64)
    baoc_compile.cast_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    baoc_compile.prepare(optimizer, model=model, plan={"*": "8bit", "param": "24bit"})
    step, losses = torch.compile(optimizer.step, backend="baoc"), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x.bfloat16()).float() - y).square().mean()
        loss.backward()
        step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    masters = baoc_compile.master_weights(optimizer)
    assert {id(p) for p in masters} == {id(p) for p in model.parameters() if p.dtype == torch.bfloat16}
    assert all(value.dtype == torch.float32 and value.shape == p.shape for p, value in masters.items())
    assert any(not torch.equal(value, p.float()) for p, value in masters.items())
    assert "param" not in next(iter(baoc_compile.export_state_dict(optimizer)["state"].values()))
