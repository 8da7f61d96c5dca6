"""Parameters that several processes hold together: FSDP2, HSDP, tensor parallelism."""

from __future__ import annotations

import pytest
from distributed import cases_of, check


@pytest.mark.parametrize("case", cases_of("dtensor_cases"))
def test_in_several_processes(case):
    check("dtensor_cases", case)
