"""Shared test setup: hypothesis profiles, Triton's interpreter, a clean Dynamo for every test.

Whether a kernel is compiled or interpreted is decided once, when it is defined: for the whole process. With a GPU it is
compiled, and the tests marked `interpreted` run in a process that does not see the GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined, so before baoc_compile is imported

from hypothesis import HealthCheck, settings

import baoc_compile  # noqa: F401  (registers nothing by itself; the entry point does)
from baoc_compile.core import torch_private
from baoc_compile.core.errors import CompilerMissing
from baoc_compile.kernels.launch import addresses, held_objects, survey

_COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("ci", derandomize=True, max_examples=15, **_COMMON)
settings.register_profile("dev", max_examples=15, **_COMMON)
settings.register_profile("thorough", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield


@pytest.fixture(params=["compiled", "no tags", "no function in torch", "no symbol in torch", "no compiler"])
def way(request, monkeypatch):
    """How tensors are looked at; the first is what runs where there is a compiler."""
    if request.param == "no tags":
        monkeypatch.setattr(held_objects, "dictionary_tag", lambda: -1)
    if request.param == "no function in torch":
        monkeypatch.setattr(torch_private, "DATA_PTR", "no_such_function")
    if request.param == "no symbol in torch":
        monkeypatch.setattr(torch_private, "BUMP_VERSION", "no_such_function")
    if request.param == "no compiler":
        monkeypatch.setattr(addresses, "build", _missing)
        monkeypatch.setattr(survey, "build", _missing)
    monkeypatch.setattr(addresses.compiled, "_outcome", [])
    monkeypatch.setattr(survey.compiled, "_outcome", [])
    is_compiled = request.param in ("compiled", "no tags")
    assert (addresses.compiled() is not None, survey.compiled() is not None) == (is_compiled, is_compiled)
    return request.param


def _missing(source):
    raise CompilerMissing("none here")


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if "interpreted" in item.keywords and torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="runs in a process that does not see the GPU"))
