"""Programs that decode and encode give the bits of `StateTensor.decode` and `StateTensor.store`."""

from __future__ import annotations

import pytest
import torch

from baoc_compile import StateTensor
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.passes.programs.transcode import decoded, encode

NAMES = [name for name, codec in CODECS.items() if codec.mechanism == "rounding" and name not in ("fp32", "fp64")]


def values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    is_signed = name == "bf16" or (name.startswith("e") and CODECS[name].signed) or name.startswith("codebook")
    return value if is_signed else value.abs()


@pytest.mark.parametrize("shape", [(), (1,), (33,), (5, 7), (70, 65), (0, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(name, shape):
    for dtype in (torch.float32, torch.bfloat16):
        value = values(name, shape, dtype)
        ours, theirs = (StateTensor.encoded(value, CODECS[name], "slot", 3) for _ in range(2))
        assert torch.equal(decoded(ours), theirs.decode())
        encode(ours, 1.37 * value)
        theirs.store(1.37 * value)
        for part in theirs.parts:
            assert torch.equal(ours.parts[part], theirs.parts[part]), part


def test_values_of_any_layout():
    value = torch.randn(40, 70)
    ours, theirs = (StateTensor.encoded(value, CODECS["e2m5"], "slot", 0) for _ in range(2))
    encode(ours, value.t().contiguous().t())
    theirs.store(value)
    assert all(torch.equal(ours.parts[p], theirs.parts[p]) for p in theirs.parts)


def test_shared_state_is_stored_by_its_means():
    value = torch.rand(4, 6)
    state = StateTensor.encoded(value, CODECS["row"], "slot", 0)
    encode(state, value)
    assert torch.allclose(decoded(state), value.mean(1, keepdim=True).expand(4, 6))
