"""Reading many tensors' addresses: the compiled loop and the one in Python see the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from baoc_compile.kernels import addresses, build_cpp


@pytest.fixture(params=["compiled", "no function in torch", "no compiler"])
def way(request, monkeypatch):
    """How addresses are read; the first is what runs where there is a compiler."""
    if request.param == "no function in torch":
        monkeypatch.delattr(torch._C._dynamo.guards, "_torchinductor_pyobject_tensor_data_ptr")
    if request.param == "no compiler":
        monkeypatch.setattr(addresses, "build", _missing)
    addresses._reader.cache_clear()
    assert (addresses._reader() is not None) == (request.param == "compiled")
    yield request.param
    addresses._reader.cache_clear()


def _missing(source):
    raise build_cpp.CompilerMissing("none here")


def objects_of(tensors) -> np.ndarray:
    return np.array([id(t) for t in tensors], dtype=np.uint64)


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


def test_addresses_are_those_of_data_ptr(way):
    tensors = tensors_of_many_kinds()
    found = np.zeros((2, 5), dtype=np.uint64)
    assert addresses.read_addresses(objects_of(tensors), found).any
    assert found.reshape(-1).tolist() == [t.data_ptr() for t in tensors]


def test_it_tells_whether_an_address_has_changed(way):
    tensors = tensors_of_many_kinds()
    objects, found = objects_of(tensors), np.zeros((2, 5), dtype=np.uint64)
    addresses.read_addresses(objects, found)
    assert not addresses.read_addresses(objects, found).any
    old = tensors[4].data
    tensors[4].data = old.clone()
    assert addresses.read_addresses(objects, found).any
    assert found[0, 4] == tensors[4].data_ptr() != old.data_ptr()
    assert not addresses.read_addresses(objects, found).any


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("passing", [-1, 0, 2])
def test_one_change_anywhere_is_seen_and_told_from_one_that_was_to_come(way, index, passing):
    tensors = [torch.ones(3) for _ in range(6)]
    objects, found = objects_of(tensors), np.zeros((2, 3), dtype=np.uint64)
    addresses.read_addresses(objects, found, passing)
    other = torch.ones(3)
    objects[index] = id(other)
    assert addresses.read_addresses(objects, found, passing) == addresses.Moved(True, index % 3 != passing)
    assert found.reshape(-1)[index] == other.data_ptr()


def test_no_tensors(way):
    nothing = np.zeros(0, dtype=np.uint64)
    assert not addresses.read_addresses(nothing, nothing.reshape(0, 3)).any


def test_reading_keeps_nothing_alive(way):
    import gc
    import weakref

    tensor = torch.ones(3)
    watched = weakref.ref(tensor)
    addresses.read_addresses(objects_of([tensor]), np.zeros((1, 1), dtype=np.uint64))
    del tensor
    gc.collect()
    assert watched() is None
