"""The life of a prepared optimizer: made, frozen and unfrozen, copied, scheduled, scaled, compiled, restored, dropped."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from optimizers import Plain, decoded
from torch import Tensor, nn

import baoc_compile
from baoc_compile import StateTensor, state_bytes
from baoc_compile.runtime.session import known_session, session_of

pytestmark = pytest.mark.filterwarnings("error::baoc_compile.BaocWarning")

SHAPES = ((64, 65), (70, 64), (9,))


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def of(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(optimizer: Any, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in of(optimizer):
        grad = torch.randn(parameter.shape, generator=generator)
        parameter.grad = grad if parameter.requires_grad else None


def train(optimizer: Any, steps: Sequence[int], step: Callable[[], Any] | None = None) -> None:
    for k in steps:
        give_gradients(optimizer, k)
        (step or optimizer.step)()


def made(make: Callable[..., Any] = torch.optim.AdamW, plan: str | None = "8bit", **options: Any) -> Any:
    optimizer = make(parameters(), **options)
    if plan is not None:
        baoc_compile.prepare(optimizer, plan=plan)
    return optimizer


def bits(optimizer: Any) -> list[Tensor]:
    found = []
    for parameter in of(optimizer):
        found.append(parameter.detach().clone())
        for _, value in sorted(optimizer.state.get(parameter, {}).items()):
            parts = value.parts.values() if isinstance(value, StateTensor) else [torch.as_tensor(value)]
            found += [part.clone() for part in parts]
    return found


def assert_same(some: Any, other: Any) -> None:
    for a, b in zip(bits(some), bits(other), strict=True):
        assert torch.equal(a, b)


def assert_runs_programs(optimizer: Any) -> None:
    own = session_of(optimizer).own
    assert not own.refused and own.bound is not None


# made and dropped


def live_and_let_die() -> list[weakref.ref[Any]]:
    """One optimizer's life. Returns weak references to it and its tensors."""
    optimizer = made()
    train(optimizer, [0])
    assert_runs_programs(optimizer)
    (first, *_) = of(optimizer)
    tensors = [value for value in optimizer.state[first].values() if isinstance(value, Tensor)]
    return [weakref.ref(o) for o in (optimizer, session_of(optimizer), first, *tensors)]


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_dropped_optimizers_leave_nothing(count):
    """Neither objects nor memory."""
    for _ in range(10):
        live_and_let_die()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(count):
        references = live_and_let_die()
        assert references[0]() is None, "the optimizer lives on until the cycles are collected"
    gc.collect()
    assert [r() for r in references if r() is not None] == []
    assert len(gc.get_objects()) - before < count  # less than an object for each


def test_parameters_that_are_no_nn_parameters():
    tensors = [p.detach().clone().requires_grad_() for p in parameters()]
    optimizer, other = torch.optim.AdamW(tensors), made()
    baoc_compile.prepare(optimizer, plan="8bit")
    train(optimizer, range(3))
    train(other, range(3))
    assert not any(isinstance(p, nn.Parameter) for p in of(optimizer))
    assert_same(optimizer, other)


# frozen, unfrozen, added


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, Plain])
def test_a_frozen_parameter_costs_nothing_until_it_is_trained(make):
    """Then its state is made compressed, and training goes on as if it had always been there."""
    frozen = parameters()
    frozen[0].requires_grad_(False)
    optimizer = make(frozen)
    baoc_compile.prepare(optimizer, plan="8bit")
    smaller = make(parameters()[1:])
    baoc_compile.prepare(smaller, plan="8bit")
    assert state_bytes(optimizer) == state_bytes(smaller)
    train(optimizer, range(3))
    assert not optimizer.state.get(frozen[0]) and state_bytes(optimizer) == state_bytes(smaller)
    assert torch.equal(frozen[0], parameters()[0])
    frozen[0].requires_grad_(True)
    train(optimizer, range(3, 6))
    assert_compressed(optimizer, frozen[0])
    assert not torch.equal(frozen[0], parameters()[0])


def assert_compressed(optimizer: Any, parameter: Tensor) -> None:
    assert_runs_programs(optimizer)
    whole = [v for v in optimizer.state[parameter].values() if isinstance(v, Tensor) and v.ndim]
    assert whole and all(isinstance(v, StateTensor) and v.codec.name in ("e2m5", "e3m5") for v in whole)


def test_no_state_of_an_unfrozen_parameter_is_ever_whole():
    """Not even within the step that makes it."""
    optimizer = made()
    train(optimizer, range(2))
    new = nn.Parameter(torch.randn(128, 1024))
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not result.is_meta and type(result) is Tensor:
                largest.append(result.untyped_storage().nbytes())
            return result

    optimizer.add_param_group({"params": [new]})
    for step in (2, 3):
        give_gradients(optimizer, step)
        with Sizes():
            optimizer.step()
    assert_compressed(optimizer, new)
    assert max(largest, default=0) < new.numel() * 4


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, Plain])
def test_a_group_added_in_mid_run(make):
    """Its parameters get compressed state; the others go on with the same bits."""
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer, alone = made(make, **options), made(make, **options)
    train(optimizer, range(3))
    train(alone, range(3))
    new = nn.Parameter(torch.randn(80, 64))
    group = {"params": [new], "lr": 0.05}
    if make is Plain:
        optimizer.param_groups.append({**optimizer.param_groups[0], **group})
    else:
        optimizer.add_param_group(group)
    train(optimizer, range(3, 6))  # the gradients of the old parameters are drawn first
    train(alone, range(3, 6))
    assert_compressed(optimizer, new)
    for a, b in zip(of(optimizer), of(alone), strict=False):
        assert torch.equal(a, b)


def test_a_group_taken_away_in_mid_run():
    first, second = parameters()[:2]
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second]}])
    baoc_compile.prepare(optimizer, plan="8bit")
    train(optimizer, range(2))
    before = first.detach().clone()
    del optimizer.param_groups[0]
    train(optimizer, range(2, 4))
    assert torch.equal(first, before)
    assert_compressed(optimizer, second)


# copies


def pickled(both: Any) -> Any:
    return pickle.loads(pickle.dumps(both))


def saved(both: Any) -> Any:
    file = io.BytesIO()
    torch.save(both, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved], ids=["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RAdam, Plain])
@pytest.mark.parametrize("asked", [{"plan": "8bit"}, {"memory_budget": "40%"}], ids=["plan", "budget"])
def test_a_copy_in_mid_run_goes_on_with_the_same_bits(copied, make, asked):
    model = nn.Linear(70, 64)
    optimizer = make(model.parameters())
    baoc_compile.prepare(optimizer, **asked)
    train(optimizer, range(3))
    other_model, other = copied((model, optimizer))
    assert [*map(id, of(other))] == [*map(id, other_model.parameters())]
    assert session_of(other) is not session_of(optimizer)
    assert session_of(other).plan() == session_of(optimizer).plan()
    train(optimizer, range(3, 7))
    assert_runs_programs(optimizer)
    train(other, range(3, 7))
    assert_runs_programs(other)
    assert_same(other, optimizer)


# taken off


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, Plain])
def test_restore_gives_back_plain_tensors_and_eager_steps(make):
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = made(make, "fp32", **options)
    train(optimizer, range(3))
    baoc_compile.restore(optimizer)
    assert known_session(optimizer) is None and not [name for name in vars(optimizer) if "baoc" in name]
    values = [v for entries in optimizer.state.values() for v in entries.values()]
    assert values and not any(isinstance(v, StateTensor) for v in values)
    eager = copy.deepcopy(optimizer)
    seen: list[Any] = []

    class Calls(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for o in (eager, optimizer):
        give_gradients(o, 3)
        seen.clear()
        with Calls():
            o.step()
        assert len(seen) > 2  # the user's own calls of torch
    assert_same(optimizer, eager)


def test_restored_and_prepared_again():
    """Full precision survives it."""
    through, back = made(plan="fp32"), made(plan="fp32")
    for k in range(6):
        train(through, [k])
        train(back, [k])
        baoc_compile.restore(back)
        baoc_compile.prepare(back, plan="fp32")
    assert_same(through, back)


def test_restore_of_compressed_state_decodes_it():
    optimizer = made()
    train(optimizer, range(3))
    expected = [decoded(v) for p in of(optimizer) for v in optimizer.state[p].values()]
    baoc_compile.restore(optimizer)
    found = [v for p in of(optimizer) for v in optimizer.state[p].values()]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    train(optimizer, range(3, 5))


# threads


def test_threads_that_step_different_optimizers():
    """Recording, compiling and running at once: the bits are those of one after the other."""
    makes = [torch.optim.AdamW, torch.optim.SGD, torch.optim.RAdam, torch.optim.Adagrad]
    expected, errors = [made(make) for make in makes], []
    for optimizer in expected:
        train(optimizer, range(20))
    found = [make(parameters()) for make in makes]

    def work(optimizer: Any) -> None:
        try:
            baoc_compile.prepare(optimizer, plan="8bit")
            train(optimizer, range(20))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(optimizer,)) for optimizer in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
