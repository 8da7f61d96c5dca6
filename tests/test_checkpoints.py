"""Checkpoints: a cut run ends with the bits of an uncut one, in a new process; stock optimizers load what is exported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import baoc_compile

SCRIPT = """
import hashlib, sys, torch, baoc_compile
path, prepared, start, stop = sys.argv[1], sys.argv[2] == "prepared", int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(96, 80), torch.nn.GELU(), torch.nn.Linear(80, 64))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
if prepared or start == 0:
    baoc_compile.prepare(optimizer, memory_budget="45%", seed=7)
if start:
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
step = torch.compile(optimizer.step, backend="baoc")
for t in range(start, stop):
    x = torch.randn(16, 96, generator=torch.Generator().manual_seed(t))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
bits = [p.detach() for p in model.parameters()]
bits += [part for p in model.parameters() for v in optimizer.state[p].values() for part in getattr(v, "parts", {"": v}).values()]
print(hashlib.sha256(b"".join(b.reshape(-1).view(torch.uint8).numpy().tobytes() for b in bits)).hexdigest())
"""


def run(path, prepared, start, stop) -> str:
    arguments = [sys.executable, "-c", SCRIPT, str(path), prepared, str(start), str(stop)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()[-1]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> str:
    return run(tmp_path_factory.mktemp("uncut") / "uncut.pt", "prepared", 0, 6)


@pytest.mark.parametrize("cut, prepared", [(1, "adopted"), (4, "prepared")])
def test_a_cut_run_ends_with_the_same_bits(tmp_path, uncut, cut, prepared):
    run(tmp_path / "cut.pt", "prepared", 0, cut)
    assert run(tmp_path / "cut.pt", prepared, cut, 6) == uncut


def train(optimizer, parameters, step, steps=3):
    for t in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
        step()


def adamw(seed=0):
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(80, 64)), torch.nn.Parameter(torch.randn(10))]
    return parameters, torch.optim.AdamW(parameters)


def test_a_stock_checkpoint_loads_and_is_compressed(tmp_path):
    parameters, stock = adamw()
    train(stock, parameters, stock.step)
    torch.save(stock.state_dict(), tmp_path / "stock.pt")
    parameters, ours = adamw()
    ours.load_state_dict(torch.load(tmp_path / "stock.pt", weights_only=True))
    step = torch.compile(ours.step, backend="baoc", options={"plan": "8bit"})
    train(ours, parameters, step, 1)
    state = ours.state[parameters[0]]
    assert state["exp_avg"].codec.name == "e2m5" and state["exp_avg_sq"].codec.name == "e3m5"
    assert state["step"].item() == 4


def test_an_exported_checkpoint_loads_into_the_stock_optimizer(tmp_path):
    parameters, ours = adamw()
    baoc_compile.prepare(ours)
    train(ours, parameters, torch.compile(ours.step, backend="baoc"))
    exported = baoc_compile.export_state_dict(ours)
    torch.save(exported, tmp_path / "plain.pt")
    load = f"import torch; torch.load({str(tmp_path / 'plain.pt')!r}, weights_only=True)"
    clean = f"import sys; {load}; assert 'baoc_compile' not in sys.modules"
    subprocess.run([sys.executable, "-c", clean], check=True)
    fresh, stock = adamw()
    stock.load_state_dict(exported)
    for p, q in zip(parameters, fresh, strict=True):
        for key, value in stock.state[q].items():
            assert type(value) is torch.Tensor
            original = ours.state[p][key]
            decoded = original.decode() if isinstance(original, baoc_compile.StateTensor) else original
            assert torch.equal(value, decoded)
    train(stock, fresh, stock.step)  # and steps


def test_export_leaves_the_compressed_state_alone():
    parameters, ours = adamw()
    baoc_compile.prepare(ours)
    before = ours.state[parameters[0]]["exp_avg"]
    baoc_compile.export_state_dict(ours)
    assert ours.state[parameters[0]]["exp_avg"] is before
