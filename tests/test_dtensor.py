"""Parameters that several processes hold together: FSDP2, HSDP, tensor parallelism."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from distributed import MOST_SECONDS, cases_of, check
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import baoc_compile
from baoc_compile.core.codec import Rows
from baoc_compile.core.shard import Shard
from baoc_compile.runtime.session import known_session

MODULES = "dtensor_shards", "dtensor_meshes", "dtensor_replicas", "dtensor_plans", "dtensor_checkpoints"


EXAMPLE = Path(__file__).parents[1] / "examples/fsdp2.py"
CASES = list(cases_of(MODULES))


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("on_2")])
def test_in_two_processes(case):
    check(MODULES, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("on_2")])
def test_in_more_processes(case):
    check(MODULES, case)


@pytest.mark.slow
def test_the_example_goes_on_with_another_number_of_processes(tmp_path):
    for count, first in ((2, 0), (1, 10)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += [str(EXAMPLE), str(tmp_path / "checkpoint")]
        said = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=True).stdout
        for rank in range(count):
            assert f"rank {rank}: steps {first} to {first + 10}" in said, said


def lanes_of(shard: Shard) -> list[int]:
    """The lane of every element of a part, in its own order."""
    index = torch.arange(shard.local_shape.numel())
    return (Rows.of(shard.local_shape).lanes(index) + shard.first_lane).tolist()


def parts_of(shape: tuple[int, ...], cuts: tuple[int, ...]) -> list[Shard]:
    """A tensor of `shape` in `cuts[d]` chunks along dimension d, as torch cuts it."""
    spans = []
    for size, parts in zip(shape, cuts, strict=True):
        chunk = -(-size // parts)
        spans.append([(a, min(a + chunk, size)) for a in range(0, size, chunk)])
    return [
        Shard(torch.Size(shape), torch.Size(b - a for a, b in span), tuple(a for a, _ in span))
        for span in product(*spans)
    ]


@given(st.tuples(st.integers(1, 9), st.integers(1, 70)), st.integers(1, 4))
def test_whole_rows_have_the_lanes_of_the_whole(shape, cut):
    lanes = [lane for part in parts_of(shape, (cut, 1)) for lane in lanes_of(part)]
    assert lanes == Rows.of(torch.Size(shape)).lanes(torch.arange(shape[0] * shape[1])).tolist()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3))
def test_no_two_elements_have_one_lane(sizes):
    shape, cuts = zip(*sizes, strict=True)
    lanes = [lane for part in parts_of(shape, cuts) for lane in lanes_of(part)]
    assert len(set(lanes)) == len(lanes) == torch.Size(shape).numel()


class Elsewhere(Tensor):
    """A tensor whose elements are in another one."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Tensor:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise AssertionError("nothing is computed")


@pytest.mark.parametrize("way", ["prepare", "compile"])
def test_another_class_whose_elements_are_elsewhere_is_refused(way):
    net = nn.Linear(4, 3)
    net.weight = nn.Parameter(Elsewhere(torch.zeros(3, 4)))
    optimizer = torch.optim.AdamW(net.parameters())
    with pytest.raises(baoc_compile.OptionError, match=r"^param_groups\[0\].params\[0\] is of class Elsewhere"):
        if way == "prepare":
            baoc_compile.prepare(optimizer, plan="8bit")
        else:
            torch.compile(optimizer.step, backend="baoc")()
    assert not optimizer.state and known_session(optimizer) is None
