"""Memory budgets: how they are written, and that no state ever exceeds one."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import baoc_compile
from baoc_compile import BudgetError, OptionError, StateTensor, state_bytes
from baoc_compile.core import errors
from baoc_compile.core.budget import MemoryBudget
from baoc_compile.options import Options


@pytest.mark.parametrize(
    "text, expected",
    [
        ("25%", 200),
        ("12.5 %", 100),
        ("2.2 B/param", 220),
        ("2 b / parameter", 200),
        ("512 MiB", 512 * 2**20),
        ("1.5KiB", 1536),
        ("3 kB", 3000),
        ("2GB", 2 * 10**9),
        ("7 B", 7),
        ("1e6", 10**6),
        (12345, 12345),
        (2.0**31, 2**31),
    ],
)
def test_a_budget_in_bytes(text, expected):
    assert MemoryBudget.parse(text).in_bytes(full_state_bytes=800, parameter_numel=100) == expected


BAD = ["", "lots", "-5%", "0", 0, -1, "5 iB", "2 KB/param", "1 XB", "1 MiB MiB", "%", "nan", "1e999 B", "٣%"]
BAD += [True, None, [25], float("nan"), float("inf"), 10**400]


@pytest.mark.parametrize("value", BAD, ids=lambda v: repr(v)[:20])
def test_what_is_not_a_budget_is_refused_by_name(value):
    with pytest.raises(OptionError, match="memory_budget"):
        MemoryBudget.parse(value)


@given(text=st.text(alphabet="0123456789.eE+- %KMGTkiBb/param", max_size=12))
def test_any_text_is_a_budget_or_an_option_error(text):
    try:
        assert MemoryBudget.parse(text).in_bytes(10**9, 10**8) >= 0
    except OptionError as error:
        assert "memory_budget" in str(error)


# through prepare


def model(shapes, optimizer=torch.optim.AdamW, **options) -> SimpleNamespace:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    made = optimizer(parameters, **options)
    return SimpleNamespace(parameters=parameters, optimizer=made, numel=sum(p.numel() for p in parameters))


def full_bytes(shapes, optimizer=torch.optim.AdamW, **options) -> int:
    """What the stock optimizer's state takes after a step."""
    stock = model(shapes, optimizer, **options)
    for parameter in stock.parameters:
        parameter.grad = torch.zeros_like(parameter)
    stock.optimizer.step()
    return state_bytes(stock.optimizer)


def with_state_made(made: SimpleNamespace) -> int:
    """State bytes after an uncompiled step, when every entry exists."""
    for parameter in made.parameters:
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.step()
    return state_bytes(made.optimizer)


dimension = st.integers(0, 130)
shapes_of_models = st.lists(
    st.one_of(st.just(()), st.tuples(dimension), st.tuples(dimension, dimension), st.just((70, 3, 33))),
    min_size=1,
    max_size=4,
).filter(lambda shapes: any(torch.Size(shape).numel() for shape in shapes))
OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9}),
}


@given(
    shapes=shapes_of_models,
    share=st.floats(0.1, 1.2),
    unit=st.sampled_from(["%", " B/param", "", " KiB"]),
    kind=st.sampled_from(sorted(OPTIMIZERS)),
)
def test_state_never_exceeds_the_budget_or_the_error_names_one_that_is_accepted(shapes, share, unit, kind):
    optimizer, options = OPTIMIZERS[kind]
    made, full = model(shapes, optimizer, **options), full_bytes(shapes, optimizer, **options)
    counters = 4 * len(shapes)  # one for each parameter, which a percentage leaves as it is
    size = {"%": (full - counters) / 100, " B/param": made.numel, "": 1, " KiB": 1024}[unit]
    amount = f"{share * full / size:.6f}"
    errors._TOLD.clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            baoc_compile.prepare(made.optimizer, memory_budget=amount + unit)
        limit = float(amount) * size + counters * (unit == "%")
        for warning in caught:
            limit = int(re.search(r"out of reach.* which takes (\d+) bytes", str(warning.message))[1])
            assert unit == "%" and limit > float(amount) * size + counters - 1
    except BudgetError as error:
        assert unit != "%"
        limit = int(re.search(r"takes (\d+) bytes", str(error))[1])
        assert limit > float(amount) * size - 1
        assert not made.optimizer.state
        with pytest.raises(BudgetError):
            baoc_compile.prepare(made.optimizer, memory_budget=limit - 1)
        baoc_compile.prepare(made.optimizer, memory_budget=limit)
    assert state_bytes(made.optimizer) <= limit
    if not any(
        state.codec.mechanism == "dropping" for state in compressed(made)
    ):  # only a compiled step can step without
        assert with_state_made(made) <= limit


def test_after_a_budget_error_nothing_has_changed():
    made = model([(100, 100)])
    with pytest.raises(BudgetError, match="500 bytes"):
        baoc_compile.prepare(made.optimizer, memory_budget=500, seed=5)
    assert not made.optimizer.state
    baoc_compile.prepare(made.optimizer, memory_budget="60%")
    assert {state.codec.name for state in compressed(made)} == {"bf16"}


def compressed(made: SimpleNamespace) -> list[StateTensor]:
    return [v for entries in made.optimizer.state.values() for v in entries.values() if isinstance(v, StateTensor)]


def test_the_default_is_28_percent():
    default, explicit = model([(256, 256)]), model([(256, 256)])
    baoc_compile.prepare(default.optimizer)
    baoc_compile.prepare(explicit.optimizer, memory_budget="28%")
    assert [s.codec.name for s in compressed(default)] == [s.codec.name for s in compressed(explicit)]
    assert len(compressed(default)) == 2
    assert state_bytes(default.optimizer) <= 0.28 * full_bytes([(256, 256)])


@pytest.mark.parametrize("budget, codecs", [("100%", []), ("60%", ["bf16", "bf16"]), ("27%", ["e2m5", "e3m5"])])
def test_a_larger_budget_buys_precision(budget, codecs):
    made = model([(256, 256)])
    baoc_compile.prepare(made.optimizer, memory_budget=budget)
    assert sorted(state.codec.name for state in compressed(made)) == sorted(codecs)


def test_small_tensors_stay_fp32_and_count():
    made = model([(64, 64), (4095,)])
    baoc_compile.prepare(made.optimizer, memory_budget="65%")
    small = made.optimizer.state[made.parameters[1]]
    assert type(small["exp_avg"]) is torch.Tensor
    assert small["exp_avg"].dtype == torch.float32
    assert len(compressed(made)) == 2


def test_below_the_smallest_uniform_plan_small_tensors_are_compressed_too():
    made = model([(64, 64), (4095,)])
    baoc_compile.prepare(made.optimizer, memory_budget="40%")
    assert state_bytes(made.optimizer) <= 0.4 * full_bytes([(64, 64), (4095,)])
    assert len(compressed(made)) > 2


# options


@pytest.mark.parametrize(
    "options, text", [({"memory": "25%"}, "'memory'"), ({"seed": "x"}, "seed"), ({"seed": 1.5}, "seed")]
)
def test_options_are_checked(options, text):
    with pytest.raises(OptionError, match=text):
        Options.parse(options)


@pytest.mark.parametrize(
    "options, text",
    [({"memory_bugdet": "25%"}, "unknown option 'memory_bugdet'"), ({"memory_budget": "x"}, "memory_budget")],
)
def test_a_wrong_option_is_an_error_of_torch_compile(options, text):
    made = model([(8,)])
    made.parameters[0].grad = torch.ones(8)
    with pytest.raises(Exception, match=text):
        torch.compile(made.optimizer.step, backend="baoc", options=options)()


@pytest.mark.parametrize("arguments", [{"memory_budget": "x"}, {"memory_budget": 0}, {"plan": 3}])
def test_prepare_checks_its_arguments(arguments):
    made = model([(8,)])
    with pytest.raises(ValueError, match=next(iter(arguments))):
        baoc_compile.prepare(made.optimizer, **arguments)
    assert not made.optimizer.state
