"""Programs that decode and encode give the bits of `StateTensor.decode` and `StateTensor.store`."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

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
        weight = value + 0.01 * torch.ones_like(value)
        ours, theirs = (StateTensor.encoded(value, CODECS[name], "slot", 3, weight) for _ in range(2))
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


def same_parts(a: StateTensor, b: StateTensor) -> bool:
    return all(torch.equal(a.parts[p], b.parts[p]) for p in a.parts)


def transcoded() -> tuple[StateTensor, StateTensor, torch.Tensor]:
    """A state tensor that the programs have run on, its like that they have not, and other values for both."""
    value = torch.randn(40, 70, generator=torch.Generator().manual_seed(1))
    ours, theirs = (StateTensor.encoded(value, CODECS["e2m5"], "slot", 0) for _ in range(2))
    encode(ours, decoded(ours))
    theirs.store(theirs.decode())
    return ours, theirs, 1.37 * value


def new_memory(state: StateTensor) -> None:
    for part in state.parts.values():
        part.data = part.data.clone()


def new_parts(state: StateTensor) -> None:
    state.parts = {name: part.clone() for name, part in state.parts.items()}


@pytest.mark.parametrize("change", [new_memory, new_parts])
def test_memory_that_is_given_up_is_never_written(change):
    ours, theirs, value = transcoded()
    old = [part.data for part in ours.parts.values()]
    kept = [part.clone() for part in old]
    change(ours)
    encode(ours, value)
    theirs.store(value)
    assert same_parts(ours, theirs) and torch.equal(decoded(ours), theirs.decode())
    assert all(torch.equal(a, b) for a, b in zip(old, kept, strict=True))


@pytest.mark.parametrize("copied", [torch.clone, copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_has_memory_of_its_own(copied):
    """But for a shallow one, which is the same state by definition."""
    ours, theirs, value = transcoded()
    other = copied(ours)
    encode(other, value)
    theirs.store(value)
    assert same_parts(other, theirs) and torch.equal(decoded(other), theirs.decode())
    assert same_parts(ours, other) == (copied is copy.copy)


def test_checkpoints_have_no_transcoders():
    ours, _, _ = transcoded()
    new = StateTensor.encoded(torch.zeros(40, 70), CODECS["e2m5"], "slot", 0)
    assert ours.transcoders and len(pickle.dumps(ours)) == len(pickle.dumps(new))


def test_no_tensor_is_kept_alive():
    ours, _, value = transcoded()
    plain = decoded(ours)
    held = [weakref.ref(t) for t in (ours, plain, value, *ours.parts.values())]
    encode(ours, value)
    del ours, plain, value
    assert not any(reference() is not None for reference in held)


def test_threads_use_tables_of_their_own():
    """All state tensors of one kind share a transcoder."""
    values = [torch.randn(200, 300) for _ in range(4)]
    states = [StateTensor.encoded(v, CODECS["e2m5"], "slot", 0) for v in values]
    wanted = [state.decode() for state in states]
    barrier, wrong = threading.Barrier(4), []

    def run(state: StateTensor, value: torch.Tensor) -> None:
        barrier.wait()
        for _ in range(200):
            if not torch.equal(decoded(state), value):
                wrong.append(state)
            encode(state, value)  # what was decoded encodes to itself

    threads = [threading.Thread(target=run, args=pair) for pair in zip(states, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_values_that_are_not_plain_memory():
    """Other state, a parameter, other types: what has no memory of its own is read by torch."""
    ours, theirs, value = transcoded()
    for given in (StateTensor.encoded(value, CODECS["bf16"], "slot", 0), nn.Parameter(value), value.double()):
        encode(ours, given)
        theirs.store(given.decode() if isinstance(given, StateTensor) else given)
        assert same_parts(ours, theirs)
