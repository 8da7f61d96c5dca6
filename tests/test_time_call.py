"""Timing one call. Of real times only the order of magnitude is asked."""

from __future__ import annotations

import pytest
import torch

from baoc_compile.passes.programs.time_call import LEAST_TIMINGS, time_call, with_threads

CPU = torch.device("cpu")


def test_calls_are_timed_with_empty_caches_and_none_for_long():
    values, calls = torch.zeros(1 << 18), []
    ns, is_quiet = time_call(lambda: calls.append(values.add_(1.0)), CPU, 1, 0.01)
    assert is_quiet and 0.0 < ns < 1e8 and LEAST_TIMINGS <= len(calls) - 2 < 100


def test_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), with_threads(3):
        raise RuntimeError
    assert torch.get_num_threads() == before
