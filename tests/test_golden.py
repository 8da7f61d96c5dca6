"""The golden cases are what they were: rules, rewritten steps and emitted programs to the letter, trainings to the bit.

Every lowering, launch shape and machine has to give the bits of `bits.json`. Those of AdamW were written anew when the host
began to compute bias corrections, in double precision as torch's own step does: 2 % of the weights moved, by at most 2.4e-7;
all state stayed what it was. Texts may change with the code that writes them: `python tests/golden_cases.py` writes them
anew, and the difference is for a person to judge.
"""

from __future__ import annotations

import json

import pytest
import torch
from golden_cases import CASES, FOLDER, golden_bits, golden_texts
from small_training import SOON, Training

from baoc_compile import StateTensor


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
def test_a_checkpoint_of_version_0_1_goes_on(weights_only):
    """Written after 7 steps of this training by the release whose modules lay elsewhere: its pickle names these modules, and
    its plan is of version 3."""
    saved = torch.load(FOLDER / "checkpoint_0.1.pt", weights_only=weights_only)
    plan = json.loads(saved["optimizer"]["baoc"]["plan"])
    training = Training(memory_budget="12%", replan_every=7, hysteresis=0.0, width=24, **SOON)
    training.model.load_state_dict(saved["model"])
    training.optimizer.load_state_dict(saved["optimizer"])
    training.steps = 7
    stored = training.session.storage
    for entry in plan["parameters"]:
        assert {k: c.name for k, c in stored.of(entry["index"]).codecs.items()} == entry["slots"]
        assert stored.of(entry["index"]).update_scale == entry["gain"]
    assert stored.seed == plan["seed"] and training.configurator.steps == 7
    for index, parameter in enumerate(training.model.parameters()):
        for key, value in saved["optimizer"]["state"][index].items():
            loaded = training.optimizer.state[parameter][key]
            assert isinstance(loaded, StateTensor) == isinstance(value, StateTensor)
            if isinstance(value, StateTensor):
                assert loaded.codec is value.codec and loaded.salt == value.salt
                assert all(torch.equal(loaded.parts[name], part) for name, part in value.parts.items())
    training.step(7)
    assert training.configurator.history[0].startswith("step 6: ")
    assert training.configurator.history[-1].startswith("step 13: ")
