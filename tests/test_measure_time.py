"""The time model: predicting, measuring, remembering. Only that times are positive is asked of real ones."""

from __future__ import annotations

import json
import math

import pytest
import torch
from program_cases import BF16, FP32, Which, rule_of

from baoc_compile.core.codec import Slot
from baoc_compile.core.program_graph import Signature
from baoc_compile.kernels.build.cache import Folder
from baoc_compile.kernels.codecs.catalogue import codec_named
from baoc_compile.passes.programs import measure_time
from baoc_compile.passes.programs.make_programs import Need, programs_of
from baoc_compile.passes.programs.measure_time import (
    HOST_NS_PER_STEP,
    HOST_NS_PER_TENSOR,
    TimeModel,
    matrix,
    synthetic_step,
)
from baoc_compile.passes.programs.step_cost import Cost, RememberedTimes

ADAMW = rule_of(Which("Adam", "fp32", FP32, FP32))
SIGNATURE = Signature("cpu", FP32, FP32)


def codecs(exp_avg="fp32", exp_avg_sq="fp32", **more):
    names = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, **more}
    return {key: codec_named(name) for key, name in names.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Times are remembered in a folder of the test; programs are compiled into the usual one. A copy is not timed."""
    path = tmp_path / "times" / "step_times.json"
    monkeypatch.setattr(TimeModel, "bytes_per_ns", 10.0)
    monkeypatch.setattr(measure_time, "RememberedTimes", lambda: RememberedTimes(Folder(path.parent)))
    return path


@pytest.fixture
def timings(monkeypatch):
    """Instead of timing, 1,000 ns a launch, 10 a tensor, 1/4 an element. Lists what was asked for."""
    asked = []

    def synthetic(made, codecs, shape, count):
        return len(made), count, shape.numel()

    def ns(what, device, threads, seconds):
        launches, count, numel = what
        asked.append((count, numel, threads))
        return 1000.0 * launches + 10.0 * count + 0.25 * count * numel, True

    monkeypatch.setattr(measure_time, "synthetic_step", synthetic)
    monkeypatch.setattr(measure_time, "time_call", ns)
    return asked


# predictions


def test_a_step_is_the_sum_of_its_programs():
    model = TimeModel("cpu")
    a, b = Cost(0.5, 1000.0, 10.0, True, "a"), Cost(2.0, 3000.0, 0.0, False, "b")
    launches = 1000 + 10 * 5 + 0.5 * 700 + 3000 + 2.0 * 100
    assert model.predict([(a, 300, 2), (b, 100, 1), (a, 400, 3)], host=False) == pytest.approx(launches)
    host = HOST_NS_PER_STEP + 6 * HOST_NS_PER_TENSOR
    assert model.predict([(a, 300, 2), (b, 100, 1), (a, 400, 3)]) == pytest.approx(launches + host)
    assert model.predict([], host=False) == 0.0


def test_configurations_of_the_same_programs_share_their_launches(timings):
    model = TimeModel("cpu")
    one, other = (model.cost(ADAMW, codecs("row", "fp32"), SIGNATURE, measure=m) for m in (True, False))
    assert one == other
    assert one.ns_per_launch == pytest.approx(2000.0)  # the averages', and the update's
    assert model.predict([(one, 100, 1), (other, 100, 1)], host=False) == pytest.approx(2000 + 2 * 10 + 200 * 0.25)


def test_fewer_bytes_take_less_time_if_nothing_is_measured(timings):
    model = TimeModel("cpu")
    names = [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"), ("e2m5", "e3m5"), ("e2m1", "e3m1")]
    costs = [model.cost(ADAMW, codecs(*pair), SIGNATURE, measure=False) for pair in names]
    assert not any(cost.is_measured for cost in costs)
    assert len({cost.programs for cost in costs}) == len(costs)
    times = [model.predict([(cost, 10**6, 3)]) for cost in costs]
    assert times == sorted(times, reverse=True) and len(set(times)) == len(times)
    assert not timings


# what is remembered


def test_what_was_measured_is_not_measured_again(timings, cache):
    model = TimeModel("cpu", 2)
    cost = model.cost(ADAMW, codecs("bf16"), SIGNATURE)
    assert cost.is_measured
    assert (cost.ns_per_launch, cost.ns_per_tensor, cost.ns_per_element) == pytest.approx((1000.0, 10.0, 0.25))
    assert [(count, threads) for count, _, threads in timings] == [(1, 1), (32, 1), (8, 2)]
    assert model.cost(ADAMW, codecs("bf16"), SIGNATURE) is cost
    cache_of_another_process = TimeModel("cpu", 2)
    assert cache_of_another_process.cost(ADAMW, codecs("bf16"), SIGNATURE, measure=False) == cost
    assert cache_of_another_process.cost(ADAMW, codecs("bf16"), SIGNATURE) == cost
    assert len(timings) == 3 and len(json.loads(cache.read_text())) == 1


def test_measuring_replaces_what_was_reckoned(timings):
    model = TimeModel("cpu")
    assert not model.cost(ADAMW, codecs(), SIGNATURE, measure=False).is_measured
    assert model.cost(ADAMW, codecs(), SIGNATURE).is_measured
    assert model.cost(ADAMW, codecs(), SIGNATURE, measure=False).is_measured


def test_threads_sizes_and_sources_have_times_of_their_own(timings, monkeypatch):
    def measured(**options):
        before = len(timings)
        TimeModel("cpu", **{"threads": 1, "elements": 1 << 20, **options}).cost(ADAMW, codecs(), SIGNATURE)
        return len(timings) > before

    assert measured() and not measured()
    assert measured(threads=2) and not measured(threads=2)
    assert measured(elements=1 << 22) and not measured(elements=1 << 22)
    assert not measured(elements=(1 << 20) - 99)  # the same size class
    assert not measured(elements=(1 << 22) - 99)
    source_of = measure_time.source_of
    monkeypatch.setattr(measure_time, "source_of", lambda graph: source_of(graph) + "// another release\n")
    assert measured() and not measured()


def test_the_sources_are_those_that_run():
    for pair in (("fp32", "fp32"), ("e2m5", "factored")):
        (made,) = programs_of([Need(ADAMW, tuple(codecs(*pair).items()), SIGNATURE)])
        for graph, executable in made:
            assert measure_time.source_of(graph) == executable.source


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"x": 1}', "\x00\xff", "null"])
def test_a_damaged_file_is_ignored_and_replaced(timings, cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert TimeModel("cpu").cost(ADAMW, codecs(), SIGNATURE).is_measured
    assert len(timings) == 3
    TimeModel("cpu").cost(ADAMW, codecs(), SIGNATURE)
    assert len(timings) == 3


@pytest.mark.parametrize(
    "entry",
    [
        None,
        1.5,
        {},
        {"ns_per_element": 1.0},
        {"ns_per_element": "1", "ns_per_launch": 1.0, "ns_per_tensor": 1.0, "is_measured": True, "programs": ""},
        {"ns_per_element": -1.0, "ns_per_launch": 1.0, "ns_per_tensor": 1.0, "is_measured": True, "programs": ""},
        {"ns_per_element": math.nan, "ns_per_launch": 1.0, "ns_per_tensor": 1.0, "is_measured": True, "programs": ""},
    ],
)
def test_a_damaged_entry_is_measured_again(timings, cache, entry):
    TimeModel("cpu").cost(ADAMW, codecs(), SIGNATURE)
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: entry, "another": 1.0}))
    assert TimeModel("cpu").cost(ADAMW, codecs(), SIGNATURE).is_measured
    assert len(timings) == 6
    assert json.loads(cache.read_text())["another"] == 1.0


def test_a_folder_that_cannot_be_written_is_no_error(timings, cache):
    cache.parent.write_text("a file where the folder would be")
    assert TimeModel("cpu").cost(ADAMW, codecs(), SIGNATURE).is_measured


def test_disturbed_timings_are_used_but_not_kept(timings, cache, monkeypatch):
    ns = measure_time.time_call
    monkeypatch.setattr(measure_time, "time_call", lambda *arguments: (ns(*arguments)[0], False))
    model = TimeModel("cpu")
    assert model.cost(ADAMW, codecs(), SIGNATURE) is model.cost(ADAMW, codecs(), SIGNATURE)
    assert len(timings) == 3 and not cache.exists()


# real timings

CONFIGURATIONS = [
    (codecs(), FP32),
    (codecs("bf16", "e3m5"), FP32),
    (codecs("e2m1", "factored"), FP32),
    (codecs("codebook8", "ucodebook4"), BF16),
    (codecs("head:48", "run:96"), FP32),
    (codecs("dropped", "column_head:24"), FP32),
    (codecs("e2m5", "e3m5", param="bf16+8"), BF16),
    (codecs("tensor", "row", param="bf16+sr"), BF16),
]


@pytest.mark.parametrize("configuration,dtype", CONFIGURATIONS, ids=lambda value: str(value))
def test_synthetic_steps_have_ordinary_numbers(configuration, dtype, monkeypatch):
    signature = Signature("cpu", dtype, dtype, SIGNATURE.counter_dtypes)
    (made,) = programs_of([Need(ADAMW, tuple(configuration.items()), signature)])
    params = []
    normal = measure_time._normal
    monkeypatch.setattr(measure_time, "_normal", lambda *a: params.append(normal(*a)) or params[-1])
    step = synthetic_step(made, configuration, matrix(1 << 12, configuration.values()), 2)
    before = [p.clone() for p in params]
    for _ in range(20):
        step()
    updated = [p for p, b in zip(params, before, strict=True) if not p.equal(b)]
    assert len(updated) == 2  # the parameters, not the gradients
    for parameter in updated:
        assert parameter.isfinite().all() and parameter.abs().max() < 100.0
        assert (parameter.abs() > 1e-30).float().mean() > 0.99


@pytest.mark.parametrize("pair", [("fp32", "fp32"), ("e2m5", "factored")], ids="-".join)
def test_a_real_measurement(pair, monkeypatch, cache):
    monkeypatch.setattr(measure_time, "SMALL_SECONDS", 0.005)
    monkeypatch.setattr(measure_time, "LARGE_SECONDS", 0.02)
    before = torch.get_num_threads()
    cost = TimeModel("cpu", 1, 1 << 18).cost(ADAMW, codecs(*pair), SIGNATURE)
    assert torch.get_num_threads() == before
    assert cost.is_measured and 0.0 < cost.ns_per_element < 1e4
    assert cost.ns(10**6, 1) > cost.ns(10**5, 1) > 0.0
    assert len(json.loads(cache.read_text())) == 1


def test_a_rule_on_another_device_is_measured_on_this_one(timings):
    on_meta = Signature("meta", FP32, FP32, SIGNATURE.counter_dtypes)
    model = TimeModel("cpu")
    assert model.cost(ADAMW, codecs(), on_meta) == model.cost(ADAMW, codecs(), SIGNATURE)


@pytest.mark.parametrize("elements", [256, 1 << 13, 1 << 20])
@pytest.mark.parametrize("names", [(), ("head:48", "run:96"), ("column_head:40", "head:64"), ("run:4096",)])
def test_matrices_fit_the_codecs_that_share(elements, names):
    shared = [codec_named(name) for name in names]
    shape = matrix(elements, shared)
    slot = Slot("exp_avg", why_not_shared="", why_not_dropped="")
    assert not any(codec.why_not(slot, shape) for codec in shared)
    assert len(shape) == 2 and shape.numel() >= elements / 2
