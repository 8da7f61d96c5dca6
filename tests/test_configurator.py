"""The configurator: it samples, solves and migrates while training runs, and never leaves its budget."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch
from baoc_compile.passes import adopt_state as migration
from hypothesis import given, settings
from hypothesis import strategies as st

import baoc_compile
from baoc_compile import BudgetError, OptionError, StateTensor, state_bytes
from baoc_compile.planning import Planning
from baoc_compile.session import session_of
from baoc_compile.state_tensor import bytes_of

SOON = {"warmup_steps": 6, "sample_steps": 4}


class Small(torch.nn.Module):
    """An embedding, two unlike layers and a head: gradients with structure."""

    def __init__(self, width: int = 48, vocabulary: int = 200):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.norm = torch.nn.LayerNorm(width)
        self.into = torch.nn.Linear(width, 2 * width)
        self.out = torch.nn.Linear(2 * width, width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.out(torch.nn.functional.gelu(self.into(self.norm(x))))
        return torch.nn.functional.cross_entropy(self.head(x), targets)


class Training:
    """Trains `Small` on batches that depend on the step alone."""

    def __init__(self, optimizer=torch.optim.AdamW, width=48, seed=0, **options):
        torch.manual_seed(seed)
        self.model = Small(width)
        self.optimizer = optimizer(self.model.parameters(), lr=3e-3)
        baoc_compile.prepare(self.optimizer, model=self.model, **options)
        self.compiled = torch.compile(self.optimizer.step, backend="baoc")
        self.steps = 0

    @property
    def session(self):
        return session_of(self.optimizer)

    @property
    def configurator(self):
        return self.session.configurator

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            tokens = torch.randint(200, (64,), generator=torch.Generator().manual_seed(self.steps))
            self.optimizer.zero_grad()
            self.model(tokens, (3 * tokens + 1) % 200).backward()
            self.compiled()
            self.steps += 1

    def plan(self) -> dict[str, dict[str, str]]:
        return {p.name: dict(p.slots) for p in self.session.decided_plan().parameters.values()}

    def bits(self) -> str:
        tensors = [p.detach() for p in self.model.parameters()]
        for p in self.model.parameters():
            for value in self.optimizer.state[p].values():
                tensors += value.parts.values() if isinstance(value, StateTensor) else [value]
        raw = b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
        return hashlib.sha256(raw).hexdigest()


def test_a_plan_by_block_follows_the_warm_up():
    training = Training(memory_budget="20%", **SOON)
    uniform = training.plan()
    training.step(5)
    assert training.plan() == uniform
    assert not training.configurator.solution
    training.step(1)
    solution = training.configurator.solution
    assert training.plan() != uniform
    assert state_bytes(training.optimizer) == solution.allocation.size_bytes <= solution.budget_bytes
    assert solution.allocation.is_exact
    assert len({tuple(slots.items()) for slots in training.plan().values()}) > 1
    before = [p.detach().clone() for p in training.model.parameters()]
    training.step(2)
    assert all(not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
    assert any("slots migrated" in line for line in training.configurator.history)


def test_decisions_sit_on_the_nodes_of_the_rewritten_graph():
    training = Training(memory_budget="20%", **SOON)
    training.step(8)
    graph = baoc_compile.inspect(training.optimizer).graphs["rewritten"].graph
    launches = [n.meta["baoc"] for n in graph.nodes if "baoc" in n.meta and not n.meta["baoc"].graph.averages]
    names = [name for launch in launches for name in launch.parameters]
    assert sorted(names) == sorted(training.plan())
    for launch in launches:
        chosen = {key: codec.name for key, codec in launch.graph.configuration.items()}
        assert all(training.plan()[name] == chosen for name in launch.parameters)
    blocks = {b.name for b in training.configurator.solution.profile.blocks}
    assert {block for launch in launches for block in launch.blocks} == blocks
    assert "block 'head 200x48'" in str(baoc_compile.inspect(training.optimizer))


OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "RMSprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr, momentum=0.9),
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
}


@settings(max_examples=3)
@given(share=st.floats(0.03, 0.9), width=st.sampled_from([32, 48]), kind=st.sampled_from(sorted(OPTIMIZERS)))
def test_state_stays_within_its_budget_at_every_moment(share, width, kind):
    """Also while it migrates, but for one chunk: what is stored then, and what is being made, is counted together."""
    torch._dynamo.reset()
    full = state_bytes(Training(OPTIMIZERS[kind], width, plan="fp32").optimizer)
    limit, chunk = int(share * full), 1024
    try:
        training = Training(OPTIMIZERS[kind], width, memory_budget=limit, replan_every=6, hysteresis=0.0, **SOON)
    except BudgetError as error:
        accepted = int(str(error).split()[-1])
        assert limit < accepted < full
        Training(OPTIMIZERS[kind], width, memory_budget=accepted, **SOON)
        return
    used: list[int] = []
    stored, moved_away = migration.stored, migration.moved_away
    away: list[torch.Tensor] = []

    def watched_stored(parameter, value, *arguments):
        new = stored(parameter, value, *arguments)
        absent = bytes_of(value) if any(value is a for a in away) else 0
        used.append(state_bytes(training.optimizer) - absent + bytes_of(new))
        return new

    def watched_move(value):
        away.append(moved_away(value))
        return away[-1]

    with (
        mock.patch.object(migration, "stored", watched_stored),
        mock.patch.object(migration, "moved_away", watched_move),
        mock.patch.object(migration, "CHUNK_BYTES", chunk),
    ):
        for _ in range(13):
            training.step()
            assert state_bytes(training.optimizer) <= limit
    assert used or all("kept the plan" in line for line in training.configurator.history)
    assert max(used, default=0) <= limit + chunk


def test_what_is_migrated_is_freed_before_what_comes_next_is_made():
    training = Training(memory_budget="20%", **SOON)
    training.step(5)

    def parts():
        values = [v for e in training.optimizer.state.values() for v in e.values()]
        return [t for v in values for t in (v.parts.values() if isinstance(v, StateTensor) else [v])]

    old = [weakref.ref(part) for part in parts()]
    alive: list[int] = []
    stored = migration.stored

    def watched(*arguments):
        held = {id(part) for part in parts()}
        alive.append(sum(r() is not None and id(r()) not in held for r in old))
        return stored(*arguments)

    with mock.patch.object(migration, "stored", watched):
        training.step(1)
    assert len(alive) > 3
    assert max(alive) == 0, "parts that the optimizer no longer has are gone while the next slot migrates"


def test_values_are_inherited():
    """Migration decodes and encodes: what a slot holds before and after agrees within both codecs' errors."""
    training = Training(memory_budget="20%", **SOON)
    training.step(5)
    seen = {}
    adopt = baoc_compile.configurator.adopt_state

    def watched(session, table, **options):
        def values():
            return {
                (i, k): v.decode().clone() if isinstance(v, StateTensor) else v.clone()
                for i in range(len(table.parameters))
                for k, v in table.state(i).items()
            }

        before = values()
        changed = adopt(session, table, **options)
        seen.update(changed=changed, before=before, after=values())
        return changed

    with mock.patch.object(baoc_compile.configurator, "adopt_state", watched):
        training.step(1)
    assert seen["changed"]
    dropped = {
        (i, k)
        for i, p in enumerate(training.session.table().parameters)
        for k, d in training.session.decisions[p].items()
        if d.codec.kind != "rounding"
    }
    for key, old in seen["before"].items():
        new = seen["after"][key]
        if key not in dropped and old.ndim:
            assert (new - old).norm() <= 0.35 * old.norm(), key
    assert any(not torch.equal(old, seen["after"][key]) for key, old in seen["before"].items())


def test_more_plans_than_torch_recompiles():
    """Every migration costs one trace, and torch's limit on recompilations, beyond which steps run eagerly, is not reached."""
    training = Training(memory_budget="20%", replan_every=5, hysteresis=0.0, width=32, warmup_steps=5, sample_steps=4)
    budgets = ["20%", "40%"]
    with mock.patch.object(torch._dynamo.config, "recompile_limit", 4):
        for k in range(6):
            training.session.memory_budget = baoc_compile.budget.MemoryBudget.parse(budgets[k % 2])
            training.step(5)
            assert len(training.configurator.history) == k + 1
            assert "slots migrated" in training.configurator.history[-1]
        assert state_bytes(training.optimizer) <= training.configurator.solution.budget_bytes
        compiled = len(training.session.steps)
        training.step(1)
        assert len(training.session.steps) == compiled + 1
        assert training.session.steps[-1].rewritten is not None, "the last plan runs compiled, not eagerly"


def test_the_same_seed_gives_the_same_plan_and_bits():
    runs = [Training(memory_budget="12%", **SOON) for _ in range(2)]
    for run in runs:
        run.step(8)
    assert runs[0].plan() == runs[1].plan()
    assert runs[0].bits() == runs[1].bits()


@pytest.mark.parametrize("size", [1 << 18, 1 << 20])
def test_samples_stay_within_their_buffer(size):
    training = Training(memory_budget="20%", sample_bytes=size, **SOON)
    training.step(5)
    assert training.configurator.is_sampling
    assert 0 < training.configurator.sampler.nbytes <= size
    training.step(1)
    assert training.configurator.solution.profile.sampled_bytes <= size
    assert training.configurator.sampler is None, "nothing is kept afterwards"


def test_blocks_without_room_for_samples_are_named():
    training = Training(memory_budget="20%", sample_bytes=1 << 16, **SOON)
    training.step(6)
    assert "sample_bytes" in training.configurator.history[0]
    assert training.configurator.solution is not None


def test_a_plan_that_is_hardly_better_is_not_taken():
    training = Training(memory_budget="20%", replan_every=6, **SOON)
    training.step(6)
    plan = training.plan()
    training.configurator.planning = replace(training.configurator.planning, hysteresis=1e6)  # of risks of any sign
    training.step(6)
    assert "kept the plan" in training.configurator.history[-1]
    assert training.plan() == plan


def test_who_names_a_plan_is_left_alone():
    assert Training(plan="8bit").configurator is None
    training = Training(memory_budget="28%", warmup_steps=0)
    uniform = training.plan()
    training.step(3)
    assert training.configurator.due is None
    assert training.plan() == uniform


def test_a_proxy_risk_and_blocks_of_ones_own():
    def halves(name, parameter):
        return "vectors" if parameter.ndim < 2 else "matrices"

    training = Training(memory_budget="20%", risk="proxy", blocks=halves, **SOON)
    training.step(6)
    blocks = training.configurator.solution.profile.blocks
    assert {b.role for b in blocks} == {"vectors", "matrices"}
    assert sorted(i for b in blocks for i in b.parameters) == list(range(len(list(training.model.parameters()))))


def test_parameters_without_gradients_keep_what_they_have():
    training = Training(memory_budget="20%", **SOON)
    idle = torch.nn.Parameter(torch.randn(80, 64))
    training.optimizer.add_param_group({"params": [idle]})
    training.step(7)
    assert idle not in training.optimizer.state or not training.optimizer.state[idle]
    assert training.configurator.solution is not None


def test_a_time_budget_changes_the_plan():
    slow, fast = (Training(memory_budget="60%", time_budget=t, **SOON) for t in ("1000%", "1 ns"))
    slow.step(6)
    assert slow.configurator.solution.time_ns <= slow.configurator.solution.budget_ns
    fast.step(6)
    assert "time_budget" in fast.configurator.history[-1]
    assert "kept the plan" in fast.configurator.history[-1]


BAD = [
    ({"warmup_steps": -1}, "warmup_steps"),
    ({"warmup_steps": 2.5}, "warmup_steps"),
    ({"warmup_steps": 5, "sample_steps": 5}, "warmup_steps"),
    ({"sample_steps": 1}, "sample_steps"),
    ({"replan_every": 3}, "replan_every"),
    ({"replan_at": 7}, "replan_at"),
    ({"replan_at": [0]}, "replan_at"),
    ({"sample_bytes": 10}, "sample_bytes"),
    ({"risk": "guess"}, "risk"),
    ({"hysteresis": 1.0}, "hysteresis"),
    ({"time_budget": "fast"}, "time_budget"),
    ({"time_budget": 3}, "time_budget"),
    ({"warmup": 3}, "warmup"),
]


@pytest.mark.parametrize("options, name", BAD, ids=lambda v: str(v))
def test_wrong_options_are_named(options, name):
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(OptionError, match=name):
        baoc_compile.prepare(optimizer, memory_budget="20%", **options)
    assert not optimizer.state


def test_wrong_groupings_are_named():
    training = Training(memory_budget="20%", blocks={"embedding.weight": "a"}, **SOON)
    with pytest.raises(OptionError, match="blocks"):
        training.step(6)


@given(warmup=st.integers(0, 40), sample=st.integers(3, 12), every=st.integers(0, 30), step=st.integers(0, 200))
def test_plans_are_never_due_before_they_can_be_sampled(warmup, sample, every, step):
    try:
        planning = Planning.parse({"warmup_steps": warmup, "sample_steps": sample, "replan_every": every})
    except OptionError:
        assert 0 < warmup <= sample or 0 < every <= sample
        return
    due = planning.next_after(step)
    assert due is None or due > step + sample
    if warmup == 0 or (step >= warmup and not every):
        assert due is None
    if every and warmup:
        assert due is not None and due <= max(step, warmup) + 2 * every + sample


# checkpoints

SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_configurator import Training, SOON
import baoc_compile
path, start, stop = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
training = Training(memory_budget="12%", replan_every=7, hysteresis=0.0, **SOON)
if start:
    saved = torch.load(path, weights_only=True)
    training.model.load_state_dict(saved["model"])
    training.optimizer.load_state_dict(saved["optimizer"])
    training.steps = start
training.step(stop - start)
torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, path)
print(training.bits(), sorted(training.plan().items()))
"""


def run(tests, path, start, stop) -> str:
    arguments = [sys.executable, "-c", SCRIPT, tests, str(path), str(start), str(stop)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def uncut(request, tmp_path_factory) -> str:
    return run(str(request.path.parent), tmp_path_factory.mktemp("uncut") / "uncut.pt", 0, 15)


@pytest.mark.parametrize("cut", [4, pytest.param(6, marks=pytest.mark.slow), 11])
def test_a_run_cut_while_it_samples_or_after_it_migrated_ends_with_the_same_plan_and_bits(
    request, tmp_path, uncut, cut
):
    """A run killed while it solves or migrates goes on from its last checkpoint, which is one of these."""
    tests = str(request.path.parent)
    run(tests, tmp_path / "cut.pt", 0, cut)
    assert run(tests, tmp_path / "cut.pt", cut, 15) == uncut


def test_a_checkpoint_over_the_budget_is_planned_anew():
    rich, poor = Training(memory_budget="60%", **SOON), Training(memory_budget="20%", **SOON)
    rich.step(6)
    poor.optimizer.load_state_dict(rich.optimizer.state_dict())
    poor.step(1)
    assert state_bytes(poor.optimizer) <= 0.2 * 8.1 * sum(p.numel() for p in poor.model.parameters())


def test_a_checkpoint_of_another_model_is_refused():
    other = Training(memory_budget="20%", width=32, **SOON)
    training = Training(memory_budget="20%", **SOON)
    plan = training.plan()
    with pytest.raises(baoc_compile.PlanError, match="shape"):
        training.optimizer.load_state_dict(other.optimizer.state_dict())
    assert training.plan() == plan


def test_stock_optimizers_load_what_is_exported():
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    exported = baoc_compile.export_state_dict(training.optimizer)
    assert set(exported) == {"state", "param_groups"}
    torch.optim.AdamW(Small().parameters()).load_state_dict(exported)


def test_planning_keeps_nothing_alive():
    training = Training(memory_budget="20%", **SOON)
    training.step(7)
    model = weakref.ref(training.model)
    del training
    torch._dynamo.reset()
    gc.collect()
    assert model() is None
