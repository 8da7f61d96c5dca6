"""Where tensors and gradients are, looked at all at once, and marking them as written: compiled and in Python the same."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from baoc_compile.kernels.launch.addresses import Seen, Watched
from baoc_compile.kernels.launch.survey import ODD, PRESENT, STRIDED, Parameters, Written


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
    written.mark(np.array([False, True]))
    assert [t._version for t in tensors] == [versions[0] + 2, versions[1] + 3, versions[2]]


def test_a_tensor_of_inference_mode_has_no_version_to_count(way):
    with torch.inference_mode():
        without = torch.ones(3)
    other = torch.ones(3)
    before = other._version
    Written([without, other]).mark()
    assert other._version == before + 1


def test_marking_follows_the_operations_of_autograd(way):
    """A backward pass that needs the old elements notices that they were written."""
    weight = torch.nn.Parameter(torch.ones(3))
    loss = (weight * weight).sum()
    Written([weight]).mark()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# parameters and their gradients


def parameters_of(count: int, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3, 4 + i % 2, dtype=dtype)) for i in range(count)]


def looked_at(tensors: list[torch.nn.Parameter]) -> Parameters:
    found = Parameters(tensors, [t.dtype for t in tensors])
    assert found.look() == bool(tensors), "all of them are new"
    assert not found.look()
    return found


@pytest.mark.parametrize("count", [0, 1, 13, 60])
def test_where_gradients_are_and_which_exist(way, count):
    tensors = parameters_of(count)
    seen = looked_at(tensors)
    for which in (range(0, count, 2), range(0, count, 3), range(0), range(count)):
        for i, tensor in enumerate(tensors):
            tensor.grad = torch.ones_like(tensor) if i in which else None
        assert not seen.look()
        assert seen.param_at.tolist() == [t.data_ptr() for t in tensors]
        assert seen.flags.tolist() == [PRESENT if i in which else 0 for i in range(count)]
        assert seen.present.tolist() == [i in which for i in range(count)]
        assert all(seen.grad_at[i] == tensors[i].grad.data_ptr() for i in which)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_kind_of_gradient_it_is(way, dtype):
    tensors = parameters_of(6, dtype)
    seen = looked_at(tensors)
    dense = torch.ones(3, 4, dtype=dtype)
    tensors[0].grad = dense
    tensors[1].grad = torch.ones(5, 3, dtype=dtype).T
    tensors[2].grad = torch.ones(3, 8, dtype=dtype)[:, ::2]
    tensors[3].grad = torch.ones(6, 5, dtype=dtype)[2:5]  # at an offset, and contiguous
    tensors[4].grad = dense.to_sparse()
    assert not seen.look()
    assert seen.flags.tolist() == [PRESENT, PRESENT | STRIDED, PRESENT | STRIDED, PRESENT, PRESENT | ODD, 0]
    assert seen.grad_at[:4].tolist() == [t.grad.data_ptr() for t in tensors[:4]]


@pytest.mark.parametrize("expected", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_of_another_type_than_expected_is_odd(way, expected):
    (tensor,) = parameters_of(1)
    seen = Parameters([tensor], [expected])
    tensor.grad_dtype = None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor.grad = torch.ones(3, 4, dtype=dtype)
        seen.look()
        assert seen.flags.tolist() == [PRESENT if dtype == expected else PRESENT | ODD]


@pytest.mark.parametrize("index", [0, 20, 40])
def test_a_parameter_that_has_moved_is_found_once(way, index):
    tensors = parameters_of(41)
    seen = looked_at(tensors)
    old = tensors[index].data
    tensors[index].data = old.clone()
    assert seen.look()
    assert seen.param_at.tolist() == [t.data_ptr() for t in tensors]
    assert not seen.look()
    tensors[index].grad = torch.ones_like(tensors[index])
    assert not seen.look(), "a new gradient is no move"


def test_parameters_are_kept_alive_and_gradients_are_not(way):
    (tensor,) = parameters_of(1)
    tensor.grad = torch.ones(3, 4)
    seen, parameter, gradient = looked_at([tensor]), weakref.ref(tensor), weakref.ref(tensor.grad)
    tensor.grad = None
    del tensor
    assert parameter() is not None and gradient() is None
    del seen
    gc.collect()
    assert parameter() is None
