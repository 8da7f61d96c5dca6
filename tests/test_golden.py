"""The golden cases are what they were: rules, rewritten steps and emitted programs to the letter, trainings to the bit.

Every lowering, launch shape and machine has to give the bits of `bits.json`. Those of AdamW were written anew when the host
began to compute bias corrections, in double precision as torch's own step does: 2 % of the weights moved, by at most 2.4e-7;
all state stayed what it was. Those of 8 and 4 bits were written anew with the codecs of version 0.4. Texts may change with
the code that writes them: `python tests/golden_cases.py` writes them anew, and the difference is for a person to judge.
"""

from __future__ import annotations

import json

import pytest
import torch
from golden_cases import CASES, FOLDER, golden_bits, golden_texts

from baoc_compile import StateTensor
from baoc_compile.core.codec import Rows
from baoc_compile.core.errors import StateError
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.state.state_tensor import rebuild_state_tensor


@pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="rules read as this release of torch writes its steps"
)
@pytest.mark.parametrize("name", CASES)
def test_texts(name):
    for file, text in golden_texts(CASES[name]):
        assert text == (FOLDER / name / file).read_text(), f"tests/golden/{name}/{file}"


@pytest.mark.parametrize("name", CASES)
def test_bits(name):
    assert golden_bits(CASES[name]) == json.loads((FOLDER / "bits.json").read_text())[name]


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_whose_codecs_are_no_more_is_refused_with_a_way_out(weights_only):
    """Written by the release whose modules lay elsewhere, too: its pickle names these modules."""
    with pytest.raises(StateError, match=r"softsign8.*earlier version.*decode") as refused:
        torch.load(FOLDER / "checkpoint_0.1.pt", weights_only=weights_only)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("shape", [(5,), (6, 7), (3, 4, 8)])
@pytest.mark.parametrize("name", ["bf16", "codebook8"])
def test_flat_parts_of_version_0_3_are_viewed_as_rows(name, shape):
    """Groups that crossed rows are refused."""
    state = StateTensor.encoded(torch.randn(shape), CODECS[name], "slot", 0)
    flat = {key: part.reshape(-1) if part.ndim > 1 else part for key, part in state.parts.items()}
    if name == "codebook8" and len(shape) > 1 and Rows.of(torch.Size(shape)).are_padded:
        with pytest.raises(StateError, match="rows"):
            rebuild_state_tensor(shape, torch.float32, name, state.salt, flat)
        return
    again = rebuild_state_tensor(shape, torch.float32, name, state.salt, flat)
    assert torch.equal(again.decode(), state.decode())
    assert [p.shape for p in again.parts.values()] == [p.shape for p in state.parts.values()]
