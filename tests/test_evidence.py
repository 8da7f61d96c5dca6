"""The evidence's machinery: workloads train, the runner goes on where it was, and the page says what the runs say."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path

import pytest
import torch
from scipy.stats import t, ttest_rel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from evidence import run
from evidence.compare import Interval, compare
from evidence.contenders import CONTENDERS
from evidence.contenders.contender import RIVAL, Setting
from evidence.contenders.ours import REFERENCE
from evidence.contenders.shared_moments import Gefen, period
from evidence.figures import frontier
from evidence.minilm import PACKAGE
from evidence.records import append, read
from evidence.report import write_report
from evidence.rules import LION, Lion
from evidence.schedule import Order
from evidence.train import Job, train
from evidence.workloads import WORKLOADS

PRETRAINED = ("finetune", "lora")  # need a package with weights
CONVNET = "convnet"  # the quickest


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_learns_from_two_steps_on_one_batch(name):
    if name in PRETRAINED and find_spec(PACKAGE) is None:
        pytest.skip(f"needs the package {PACKAGE}")
    workload = WORKLOADS[name]
    data, validation = workload.load()
    torch.manual_seed(0)
    model = workload.model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = workload.rule.make(parameters, workload.lr / 10)
    (batch,) = islice(workload.batches(data, 4, 0), 1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert set(optimizer.state[parameters[0]]) >= workload.rule.slots.keys()
    assert {len(of_one) for of_one in validation[0]} == {len(validation[0][0])}
    (again,) = islice(workload.batches(data, 4, 0), 1)
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))


def test_lora_trains_small_tensors_alone():
    if find_spec(PACKAGE) is None:
        pytest.skip(f"needs the package {PACKAGE}")
    trained = [p for p in WORKLOADS["lora"].model().parameters() if p.requires_grad]
    assert max(parameter.numel() for parameter in trained) < 4096


def test_lion_steps_by_the_sign_of_its_interpolation():
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    weight.grad = torch.tensor([4.0, -4.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.85, 1.05]))
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], torch.tensor([1.0, -1.0]))
    weight.grad = torch.tensor([-0.5, -0.5])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.95 * 0.85 - 0.1, 0.95 * 1.05 + 0.1]))
    assert set(optimizer.state[weight]) == LION.slots.keys()


@pytest.mark.parametrize(
    "name", [n for n, c in CONTENDERS.items() if c.kind == RIVAL and not c.package and "AdamW" in c.make]
)
def test_a_rival_made_here_minimizes(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 32)
    inputs = torch.randn(128, 64)
    targets = inputs @ torch.randn(64, 32)
    rule = WORKLOADS["gpt"].rule
    parameters = list(model.parameters())
    optimizer = CONTENDERS[name].make[rule.name](Setting(rule, model, parameters, 0.1 if name != "SGD" else 1.0, 0))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    count = sum(parameter.numel() for parameter in parameters)
    assert 0 <= CONTENDERS[name].bytes(optimizer) < 10.2 * count  # Gefen finds no period here


def test_gefen_finds_the_period_of_a_gradient():
    rows = torch.exp(torch.randn(64, 1) * 3) * torch.randn(64, 48)
    assert period(rows) == 48
    assert period(torch.ones(7)) == 1


def test_gefen_keeps_momentum_within_half_a_level():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 48))
    weight.grad = torch.exp(torch.randn(32, 1)) * torch.randn(32, 48)
    optimizer = Gefen([weight], lr=0.0)
    optimizer.step()
    state = optimizer.state[weight]
    widest = state["levels"].diff().max()
    error = optimizer.momentum(state, weight) - 0.1 * weight.grad
    assert (error.abs().view(state["codes"].shape) <= 0.51 * widest * state["scales"]).all()


@pytest.mark.parametrize("gaps", [[0.1, 0.2, 0.4], [-0.3, -0.31], [0.1, -0.1, 0.2, -0.2, 0.05]])
def test_an_interval_is_that_of_the_paired_t_test(gaps):
    expected = ttest_rel(gaps, [0.0] * len(gaps)).confidence_interval(0.95)
    found = Interval.of(gaps)
    assert found.mean - found.half == pytest.approx(expected.low)
    assert found.mean + found.half == pytest.approx(expected.high)
    contains_zero = expected.low <= 0 <= expected.high
    assert found.verdict() == ("no difference shown" if contains_zero else "better" if found.mean < 0 else "worse")


def test_a_single_seed_has_no_interval():
    assert Interval.of([0.1]).verdict() == "one seed"


def loss_of(job: Job) -> float:
    """Lowest at a learning rate of four times the middle one; our 8bit is worse by .01, other contenders by .1."""
    away = math.log2(job.lr / WORKLOADS[job.workload].lr) - 2
    extra = {"fp32": 0.0, "8bit": 0.01}.get(job.contender, 0.1) * (1 + 0.1 * job.seed)
    return 1.0 + 0.01 * away**2 + 0.05 * job.seed + extra


def record_of(job: Job) -> dict:
    loss = loss_of(job)
    return {
        **{name: getattr(job, name) for name in Job.__dataclass_fields__},
        "parameters": 1000,
        "bytes_per_parameter": {"fp32": 8.0, "8bit": 2.0}.get(job.contender, 1.0),
        "validation_loss": loss,
        "train_loss": loss,
        "curve": [[step, loss + 1 / step, loss] for step in (100, 200)],
        "seconds": 1.0,
        "cpu": "a CPU",
        "torch": "2",
        "code": "abc",
    }


def carried_out(order: Order) -> tuple[list[Job], dict]:
    """Run what is wanted, one by one, in the order in which it becomes known."""
    records: dict = {}
    done = []
    while waiting := [job for job in dict.fromkeys(order.jobs(records)) if job not in records]:
        done.append(waiting[0])
        records[waiting[0]] = record_of(waiting[0])
    return done, records


def test_the_grid_is_widened_until_the_best_is_inside():
    order = Order([CONVNET], [REFERENCE.name], seeds=1)
    done, records = carried_out(order)
    middle = WORKLOADS[CONVNET].lr
    assert [job.lr / middle for job in done] == [0.5, 1, 2, 4, 8]
    assert order.best_baseline(CONVNET, records) == 4 * middle


def test_the_baseline_comes_first_then_ours_seed_by_seed_then_rivals():
    rival = "FlashOptim 8bit"
    done, records = carried_out(Order(["gpt", CONVNET], [rival, "4bit", "8bit", REFERENCE.name], seeds=2))
    grids = [job for job in done if job.contender == REFERENCE.name and job.seed == 0]
    assert done[: len(grids)] == grids and len(grids) == 10
    rest = [(job.contender, job.seed) for job in done[len(grids) :] if job.workload == "gpt"]
    ours = [("8bit", 0), ("4bit", 0), (REFERENCE.name, 1), ("8bit", 1), ("4bit", 1)]
    assert rest == [*ours, *[(rival, 0)] * 3, (rival, 1)]
    best = Order(["gpt"], [], 2).best_baseline("gpt", records)
    assert best == 4 * WORKLOADS["gpt"].lr
    assert {job.lr / best for job in done if job.workload == "gpt" and job.contender == rival} == {0.5, 1, 2}


def test_a_cut_off_line_counts_as_not_written(tmp_path):
    file = tmp_path / "evidence.jsonl"
    jobs = [Job(CONVNET, "fp32", 0.1, seed, 2000, 128) for seed in range(3)]
    append(file, record_of(jobs[0]))
    append(file, record_of(jobs[1]))
    file.write_text(file.read_text()[:-40])
    assert list(read(file)) == [jobs[0]]
    append(file, record_of(jobs[2]))
    assert list(read(file)) == [jobs[0], jobs[2]]


def test_the_runner_skips_what_is_there_and_repeats_failures_on_request(tmp_path, monkeypatch):
    file = tmp_path / "evidence.jsonl"
    order = Order([CONVNET], [REFERENCE.name, "8bit", "4bit"], seeds=1)
    started = []

    class Here:
        """Runs a job in this process, or fails."""

        exitcode = 3

        def __init__(self, target, args, daemon):
            self.job, _, self.out = args

        def start(self):
            started.append(self.job)
            if self.job.contender != "4bit":
                self.out.send(record_of(self.job))

        def join(self):
            pass

    context = run.get_context("spawn")
    monkeypatch.setattr(type(context), "Process", Here)
    run.run_all(order, file, 1, frozenset())
    assert len(started) == 7 and started == list(read(file))
    assert read(file)[started[-1]]["error"] == "exit code 3"
    run.run_all(order, file, 1, frozenset())
    assert len(started) == 7
    run.run_all(order, file, 1, frozenset({started[-1]}))
    assert started[7:] == [started[6]]


def test_a_training_leaves_a_record(tmp_path):
    job = Job(CONVNET, "8bit", 0.1, 0, 2, 4)
    record = train(job)
    append(tmp_path / "evidence.jsonl", record)
    assert read(tmp_path / "evidence.jsonl") == {job: json.loads(json.dumps(record))}
    assert math.isfinite(record["validation_loss"]) and 1 < record["bytes_per_parameter"] < 1.2
    assert [point[0] for point in record["curve"]] == [1, 2]
    assert train(job)["validation_loss"] == record["validation_loss"]


def test_the_page_says_what_ran_and_what_is_missing(tmp_path):
    file = tmp_path / "evidence.jsonl"
    _, records = carried_out(Order(["gpt", CONVNET], [REFERENCE.name, "8bit", "4bit"], seeds=3))
    failed = Job("gpt", "0.5 B/param", 0.1, 0, 2000, WORKLOADS["gpt"].batch_size)
    for job, record in records.items():
        if job.seed < 2 or job.contender != "4bit":
            append(file, record)
    append(file, {**{n: getattr(failed, n) for n in Job.__dataclass_fields__}, "error": "BudgetError: too small"})
    page = write_report(read(file), file)
    assert page == tmp_path / "evidence.md" and (tmp_path / "evidence_curves.png").exists()
    text = page.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| **8bit** | 2.000"))
    half = t.ppf(0.975, 2) * 0.001 / math.sqrt(3)
    assert f"+0.0110 ± {half:.4f}" in line and "| worse |" in line
    assert (
        "- **gpt**: 4bit (seed 2), 4bit m, factored v, 2.1 B/param" in text
        and "0.5 B/param did not run: BudgetError" in text
    )
    assert "- **vit**: fp32, 8bit" in text
    by_hand = "# Mine\n\n" + text[text.index("<!--") :]
    page.write_text(by_hand)
    write_report(read(file), file)
    assert page.read_text() == by_hand


def test_the_frontier_has_what_more_bytes_buy():
    _, records = carried_out(Order(["gpt"], [REFERENCE.name, "8bit", "4bit"], seeds=2))
    comparison = compare("gpt", records)
    assert comparison is not None
    assert [row.contender for row in frontier(comparison.rows)] == ["4bit", "8bit"]


def test_workloads_have_the_contenders_of_their_rule():
    for name, contender in product(WORKLOADS, CONTENDERS.values()):
        makes = contender.make.get(WORKLOADS[name].rule.name)
        assert makes is None or callable(makes)
    assert all(workload.steps >= 2000 for workload in WORKLOADS.values())
