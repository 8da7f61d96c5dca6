"""Looking at many tensors at once, and marking them as written: compiled and in Python the same."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from baoc_compile.core import torch_private
from baoc_compile.core.errors import CompilerMissing
from baoc_compile.kernels.launch import addresses, survey
from baoc_compile.kernels.launch.addresses import Seen, Watched
from baoc_compile.kernels.launch.survey import Written


@pytest.fixture(params=["compiled", "no function in torch", "no symbol in torch", "no compiler"])
def way(request, monkeypatch):
    """How tensors are looked at; the first is what runs where there is a compiler."""
    if request.param == "no function in torch":
        monkeypatch.setattr(torch_private, "DATA_PTR", "no_such_function")
    if request.param == "no symbol in torch":
        monkeypatch.setattr(torch_private, "BUMP_VERSION", "no_such_function")
    if request.param == "no compiler":
        monkeypatch.setattr(addresses, "build", _missing)
        monkeypatch.setattr(survey, "build", _missing)
    monkeypatch.setattr(addresses, "_OUTCOME", [])
    monkeypatch.setattr(survey, "_OUTCOME", [])
    assert (addresses.compiled() is not None) == (request.param == "compiled")
    return request.param


def _missing(source):
    raise CompilerMissing("none here")


def tensors_of_many_kinds() -> list[torch.Tensor]:
    base = torch.arange(24.0).view(4, 6)
    return [
        base,
        base[1:],  # an offset into the same memory
        base.T,
        base[:, ::2],
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.uint8)[1:],
        torch.tensor(1.0),
        torch.empty(0),
        torch.empty(0, 3),
    ]


def is_where_it_says(watched: Watched, tensors: list[torch.Tensor]) -> bool:
    return watched.addresses.reshape(-1).tolist() == [t.data_ptr() for t in tensors]


def test_addresses_are_those_of_data_ptr(way):
    tensors = tensors_of_many_kinds()
    watched = Watched(tensors, 5)
    watched.addresses[:] = 1
    assert watched.look().moved
    assert watched.addresses.shape == (2, 5)
    assert is_where_it_says(watched, tensors)


def test_it_tells_whether_a_tensor_has_moved(way):
    tensors = tensors_of_many_kinds()
    watched = Watched(tensors, 5)
    assert watched.look() == Seen(moved=False, lasting_moved=False, contiguous=True)
    old = tensors[4].data
    tensors[4].data = old.clone()
    assert watched.look().moved
    assert is_where_it_says(watched, tensors)
    assert watched.addresses[0, 4] != old.data_ptr()
    assert not watched.look().moved


@pytest.mark.parametrize("count", [200, 201, 3])  # longer and shorter than what is fetched ahead
def test_one_of_many_that_has_moved_is_found(way, count):
    tensors = [torch.ones(2) for _ in range(count)]
    watched = Watched(tensors, 1)
    for index in (0, count // 2, count - 1):
        old = tensors[index].data
        tensors[index].data = old.clone()
        assert watched.look().moved
        assert is_where_it_says(watched, tensors)
        assert not watched.look().moved


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("passing", [-1, 0, 2])
def test_one_change_anywhere_is_seen_and_told_from_one_that_was_to_come(way, index, passing):
    tensors = [torch.ones(3) for _ in range(6)]
    watched = Watched(tensors, 3, passing)
    if index % 3 == passing:
        tensors[index] = torch.ones(3)
    else:
        old = tensors[index].data
        tensors[index].data = old.clone()
    seen = watched.look(tensors[passing::3] if passing >= 0 else [])
    assert seen == Seen(True, index % 3 != passing, True)
    assert is_where_it_says(watched, tensors)


@pytest.mark.parametrize("sequence", [list, tuple])
@pytest.mark.parametrize("last", [torch.ones(4, 4), torch.ones(4, 4).T, torch.ones(4, 8)[:, ::2], torch.ones(1, 4).T])
def test_it_tells_whether_what_passes_is_contiguous(way, last, sequence):
    lasting, passing = [torch.ones(4, 4).T, torch.ones(4, 4)], [torch.ones(4, 4), torch.ones(4, 4)]
    watched = Watched([lasting[0], passing[0], lasting[1], passing[1]], 2, passing=1)
    assert watched.look(sequence(passing)).contiguous
    assert watched.look(sequence([passing[0], last])).contiguous == last.is_contiguous()
    assert watched.look(sequence([last, passing[0]])).contiguous == last.is_contiguous()


def test_no_tensors(way):
    watched = Watched([], 3, 1)
    assert watched.look([]) == Seen(False, False, True)
    assert watched.addresses.shape == (0, 3)
    Written([]).mark()


def test_looking_keeps_nothing_alive(way):
    tensors = [torch.ones(3), torch.ones(3)]
    watched = Watched(tensors, 2, passing=1)
    other = torch.ones(3)
    watched.look([other])
    references = [weakref.ref(t) for t in (*tensors, other)]
    del tensors, other
    gc.collect()
    assert [r() for r in references] == [None] * 3


def test_marking_is_what_an_operation_in_place_does(way):
    tensors = [torch.ones(3), torch.nn.Parameter(torch.ones(3)), torch.ones(3)]
    written = Written(tensors[:2])
    versions = [t._version for t in tensors]
    written.mark()
    written.mark()
    assert [t._version for t in tensors] == [versions[0] + 2, versions[1] + 2, versions[2]]


def test_a_tensor_of_inference_mode_has_no_version_to_count(way):
    with torch.inference_mode():
        without = torch.ones(3)
    other = torch.ones(3)
    before = other._version
    Written([without, other]).mark()
    assert other._version == before + 1
