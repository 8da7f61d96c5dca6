"""Optimizers that mislead a recorder: each is right, or it is refused and runs as written. None is wrong.

Every optimizer trains twice from equal starts, once plain and once prepared, while the learning rate changes at every
step, also between `prepare` and the first. Where it is refused from the first step on, both runs are equal bit for bit.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from typing import Any

import misleading_counts  # noqa: F401
import misleading_elements  # noqa: F401
import misleading_nested  # noqa: F401
import misleading_numbers  # noqa: F401
import misleading_objects  # noqa: F401
import misleading_optimizers  # noqa: F401
import misleading_results  # noqa: F401
import misleading_stacks  # noqa: F401
import misleading_state  # noqa: F401
import misleading_tensors  # noqa: F401
import misleading_views  # noqa: F401
import pytest
import torch
from misleading_base import TABLE, Misleading
from optimizers import ulps
from torch import Tensor

import baoc_compile
from baoc_compile import BaocWarning

STEPS = 10
SHAPES = ((5, 7), (80, 64), (3,))
RATES = [0.013, 0.02, 0.02, 0.03, 0.025, 0.01, 0.01, 0.008, 0.03, 0.021]
#: Step -> the parameters that have no gradient then.
ABSENT = {0: {1}, 3: {1}, 4: {0, 1}, 7: {0}, 8: {1, 2}}
#: What an optimizer holds besides its step: torch's, schedulers' and ours.
IGNORED = {"state", "param_groups", "defaults", "_baoc_session", "_baoc_key", "__getstate__"}


@dataclass
class Run:
    """A finished run.

    parameters: after every step.
    gradients: as the last step left them.
    returned: what every step returned.
    outcome: "right"; "refused" if no step of ours ever ran, "late" if some did; "plain" for a run without baoc.
    """

    optimizer: Any
    parameters: list[list[Tensor]]
    gradients: list[Tensor | None]
    returned: list[Any]
    outcome: str = "plain"


def train(case: Misleading, dtype: torch.dtype, *, absent: bool, prepared: bool) -> Run:
    """Train for `STEPS` steps."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    random.seed(0)
    torch.manual_seed(0)
    case.reset()
    named = list(zip(("first.weight", "second.weight", "bias"), parameters, strict=True))
    optimizer = case.make([{"params": named[:2]}, {"params": named[2:]}], **case.options)
    run = Run(optimizer, [], [], [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if prepared:
            baoc_compile.prepare(optimizer, plan="fp32")
        for t in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATES[t] if group is optimizer.param_groups[0] else RATES[t] / 2
            case.between(optimizer, t)
            for i, p in enumerate(parameters):
                grad = torch.randn(p.shape, generator=generator).to(dtype)
                p.grad = None if absent and i in ABSENT.get(t, ()) else grad
            run.returned.append(optimizer.step())
            run.parameters.append([p.detach().clone() for p in parameters])
    run.gradients = [p.grad for p in parameters]
    if prepared:
        own = optimizer._baoc_session.own
        run.outcome = "right" if not own.refused else "late" if own.count else "refused"
        is_told = any(issubclass(w.category, BaocWarning) for w in caught)
        assert is_told == bool(own.refused), "a refusal without notice, or a notice without refusal"
    return run


def leaves(value: Any, order: dict[int, int], seen: frozenset[int] = frozenset()) -> Any:
    """What a value holds, with parameters by their index."""
    if id(value) in order:
        return f"parameter {order[id(value)]}"
    if isinstance(value, dict):
        return {str(leaves(k, order)) if isinstance(k, Tensor) else str(k): leaves(v, order) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [leaves(v, order) for v in value]
    return value


def held(optimizer: Any) -> dict[str, Any]:
    """All state, options and attributes of an optimizer."""
    order = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    attributes = {k: v for k, v in vars(optimizer).items() if k not in IGNORED and not k.endswith("_hooks")}
    by_id = {
        k: list(v.values()) if k in ("buffers", "scales") and isinstance(v, dict) else v for k, v in attributes.items()
    }
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    state = {k: v for k, v in optimizer.state.items() if v}  # looking for state makes an empty entry
    return {"state": leaves(state, order), "groups": leaves(groups, order), **leaves(by_id, order)}


def assert_same(ours: Any, eager: Any, exact: Any, where: str, *, bitwise: bool) -> None:
    """Numbers, flags and texts are equal; tensors are equal or as near to the exact ones as eager's."""
    if isinstance(eager, dict):
        assert ours.keys() == eager.keys(), f"{where}: {set(ours) ^ set(eager)}"
        for key in eager:
            assert_same(ours[key], eager[key], exact[key], f"{where}.{key}", bitwise=bitwise)
    elif isinstance(eager, list):
        assert len(ours) == len(eager), where
        for i, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
            assert_same(a, b, c, f"{where}[{i}]", bitwise=bitwise)
    elif isinstance(eager, Tensor):
        assert isinstance(ours, Tensor) and ours.dtype == eager.dtype and ours.shape == eager.shape, where
        if bitwise or not eager.is_floating_point():
            assert torch.equal(ours, eager), where
        elif eager.numel():
            scale = exact.abs().max().double()
            allowed = 2 * ulps(eager, exact, scale, torch.float32).max() + STEPS / 2
            error = ulps(ours, exact, scale, torch.float32).max()
            assert ours.isfinite().all() and error <= allowed, f"{where}: {error} ulps, allowed {allowed}"
    elif isinstance(eager, (bool, int, float, str)) or eager is None:
        assert type(ours) is type(eager) and ours == eager, f"{where}: {ours!r}, not {eager!r}"


def check(case: Misleading, *, absent: bool) -> str:
    """Compare both runs; return how the prepared one came out."""
    exact, eager = (train(case, dtype, absent=absent, prepared=False) for dtype in (torch.float64, torch.float32))
    ours = train(case, torch.float32, absent=absent, prepared=True)
    bitwise = ours.outcome == "refused"
    for t in range(STEPS):
        assert_same(ours.parameters[t], eager.parameters[t], exact.parameters[t], f"step {t}", bitwise=bitwise)
    assert_same(ours.gradients, eager.gradients, exact.gradients, "gradients", bitwise=bitwise)
    assert_same(ours.returned, eager.returned, exact.returned, "returned", bitwise=bitwise)
    assert_same(held(ours.optimizer), held(eager.optimizer), held(exact.optimizer), "optimizer", bitwise=bitwise)
    return ours.outcome


@pytest.mark.parametrize("name", TABLE)
def test_never_wrong(name):
    """All gradients exist at every step."""
    assert check(TABLE[name], absent=False) == TABLE[name].expected


@pytest.mark.parametrize("name", TABLE)
def test_never_wrong_with_absent_gradients(name):
    """Some gradients are absent at some steps, the first included."""
    assert check(TABLE[name], absent=True) == TABLE[name].when_absent
