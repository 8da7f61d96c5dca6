"""Numbers in 0-dim tensors, and what dictionaries hold, looked at all at once: compiled and in Python the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baoc_compile.kernels.launch.held_objects import Dictionaries
from baoc_compile.kernels.launch.host_numbers import Distinct, HostNumbers

NUMBERS = [
    (torch.float32, 0.1),
    (torch.float64, 0.1),
    (torch.int64, 2**53 - 1),
    (torch.int32, -7),
    (torch.float32, -0.0),
]
OTHER_NUMBERS = [(torch.bfloat16, 0.1), (torch.float16, 0.1), (torch.int16, 3), (torch.bool, 1)]


@pytest.mark.parametrize("kinds", [NUMBERS, NUMBERS * 9, NUMBERS + OTHER_NUMBERS, []], ids=len)
def test_numbers_are_those_of_item(way, kinds):
    tensors = [torch.tensor(value, dtype=dtype) for dtype, value in kinds]
    numbers = HostNumbers(tensors)
    assert numbers.read().tolist() == [float(t.item()) for t in tensors]
    for tensor in tensors:
        tensor.add_(1) if tensor.dtype != torch.bool else tensor.fill_(False)
    assert numbers.read().tolist() == [float(t.item()) for t in tensors]


@pytest.mark.parametrize("kinds", [1, 2, 7, 500])
@pytest.mark.parametrize("size", [1, 2, 500])
def test_distinct_numbers_are_told_apart_by_their_bits(way, size, kinds):
    generator = np.random.default_rng(size)
    pool = np.concatenate([[0.0, -0.0, np.nan, np.inf, 5e-324], generator.standard_normal(kinds)])[:kinds]
    values = generator.choice(pool, 2 * size)
    positions = generator.permutation(2 * size)[:size]
    told = Distinct(values, positions)
    told.find()
    members = np.flatnonzero(generator.random(size) < 0.5)
    for chosen in (members if len(members) else np.arange(size), None):
        found, which = told.find(chosen)
        here = values[positions if chosen is None else positions[chosen]]
        assert len({np.float64(f).tobytes() for f in found}) == len(found) <= kinds
        assert (which is None) == (len(found) == 1)
        assert np.array(found)[np.zeros(len(here), np.int64) if which is None else which].tobytes() == here.tobytes()


@pytest.mark.parametrize("kinds", [NUMBERS, NUMBERS * 9, NUMBERS + OTHER_NUMBERS], ids=len)
def test_numbers_are_written_as_fill_does(way, kinds):
    """At some positions, in any order; the others stay."""
    tensors = [torch.tensor(value, dtype=dtype) for dtype, value in kinds]
    expected = [t.clone() for t in tensors]
    numbers = HostNumbers(tensors)
    numbers.read()
    positions = np.arange(len(kinds) - 1, -1, -2, dtype=np.int64)
    values = np.array([1 / 3 if t.is_floating_point() else 1.0 for t in tensors])[positions]
    numbers.write(positions, values)
    for position, value in zip(positions.tolist(), values.tolist(), strict=True):
        expected[position].fill_(value)
    assert all(map(torch.equal, tensors, expected))
    assert numbers.read().tolist() == [float(t.item()) for t in expected]


def test_a_number_that_has_moved_is_read_and_written_where_it_is(way):
    tensors = [torch.tensor(float(i)) for i in range(30)]
    numbers = HostNumbers(tensors)
    numbers.read()
    old = tensors[17].data
    tensors[17].data = torch.tensor(5.0)
    assert numbers.read()[17] == 5.0
    numbers.write(np.array([17]), np.array([6.0]))
    assert (tensors[17].item(), old.item()) == (6.0, 17.0)


# dictionaries


def test_what_dictionaries_hold_is_compared_by_identity(way):
    one, same = torch.ones(1), torch.ones(1)
    held = [{"a": one, "b": 1000.5}, {}, {one: same, 3: None, "lr": 0.1}]
    watched = Dictionaries(held)
    assert watched.changed() == []
    held[0]["a"] = same
    assert watched.changed() == [0]
    held[0]["a"] = one
    assert watched.changed() == []
    held[2]["lr"] = float("0.1")
    assert watched.changed() == [2], "an equal number is another object"
    held[1]["new"] = 1
    assert watched.changed() == [1, 2]
    watched.hold()
    assert watched.changed() == []


@pytest.mark.parametrize("many", [3, 200])
@pytest.mark.parametrize("change", ["a key less", "a key more", "another key", "another order", "empty"])
def test_a_change_of_one_dictionary_is_found(way, change, many):
    held = [{"a": object(), "b": object()} for _ in range(many)]
    watched = Dictionaries(held)
    assert watched.changed() == []
    changed = held[many // 2]
    if change == "a key less":
        del changed["b"]
    elif change == "a key more":
        changed["c"] = None
    elif change == "another key":
        changed["c"] = changed.pop("b")
    elif change == "another order":
        changed["a"] = changed.pop("a")
    else:
        changed.clear()
    assert watched.changed() == [many // 2]


def test_no_dictionaries_and_no_numbers(way):
    assert Dictionaries([]).changed() == []
    assert HostNumbers([]).read().tolist() == []
    HostNumbers([]).write(np.zeros(0, np.int64), np.zeros(0))
