"""What is prepared is the optimizer inside a wrapper. A wrapper's own step is never run by that, and nothing else changes."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from small_training import Small, bits

import baoc_compile
from baoc_compile import OptionError, with_budget
from baoc_compile.state.wrapped_optimizer import inside

AdamW = torch.optim.AdamW


def accelerated(optimizer):
    library = pytest.importorskip("accelerate")
    return library.Accelerator(cpu=True).prepare_optimizer(optimizer)


def of_lightning(optimizer):
    return pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer(optimizer)


def of_fabric(optimizer):
    library = pytest.importorskip("lightning.fabric")
    return library.Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)


def scheduler(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def under_another_name(optimizer):
    class PassesOn:
        def __init__(self):
            self._wrapped = optimizer

        def __getattr__(self, name):
            return getattr(self._wrapped, name)

        def step(self):
            raise AssertionError("a wrapper's step may do anything")

    return PassesOn()


def in_a_cycle(optimizer):
    optimizer.optimizer = wrapper = SimpleNamespace(optimizer=optimizer, param_groups=optimizer.param_groups, step=None)
    return wrapper


def twice(optimizer):
    return accelerated(of_fabric(optimizer))


WRAPPERS = [accelerated, of_lightning, of_fabric, scheduler, under_another_name, twice]


@pytest.fixture
def trained():
    """A model, and an optimizer that has made a step."""
    torch.manual_seed(0)
    model = Small()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer.step)
    return model, optimizer


def step(model, run):
    tokens = torch.arange(64)
    model.zero_grad()
    model(tokens, (3 * tokens + 1) % 200).backward()
    run()


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_what_is_inside_is_prepared(wrap, trained):
    model, optimizer = trained
    plain = copy.deepcopy((model, optimizer))
    wrapper = wrap(optimizer)
    before, attributes = [p.clone() for p in model.parameters()], dict(vars(wrapper))
    baoc_compile.prepare(wrapper, plan="8bit")
    baoc_compile.prepare(plain[1], plan="8bit")
    assert inside(wrapper) is optimizer
    assert all(map(torch.equal, before, model.parameters()))
    assert dict(vars(wrapper)) == attributes
    assert optimizer.state[model.head.weight]["step"] == 1
    step(model, optimizer.step)
    step(plain[0], plain[1].step)
    assert bits(model, optimizer) == bits(*plain)
    baoc_compile.restore(wrapper)
    assert type(optimizer.state[model.head.weight]["exp_avg"]) is torch.Tensor


@pytest.mark.parametrize("wrap", [accelerated, of_fabric, twice], ids=lambda wrap: wrap.__name__)
def test_a_wrapper_steps_by_baocs_step(wrap, trained):
    model, optimizer = trained
    wrapper = wrap(optimizer)
    plain = copy.deepcopy((model, optimizer))
    baoc_compile.prepare(wrapper, plan="8bit")
    baoc_compile.prepare(plain[1], plan="8bit")
    step(model, wrapper.step)
    step(plain[0], plain[1].step)
    assert bits(model, optimizer) == bits(*plain)
    assert "8bit" not in str(wrapper.state_dict()["param_groups"])
    assert baoc_compile.inspect(wrapper).rules == baoc_compile.inspect(optimizer).rules


def test_a_report_finds_what_is_inside(trained):
    _, optimizer = trained
    wrapper = of_lightning(optimizer)
    baoc_compile.prepare(wrapper, memory_budget="30%")
    step(trained[0], optimizer.step)
    assert baoc_compile.report(wrapper).state_bytes == baoc_compile.state_bytes(wrapper)


def test_a_wrapper_in_a_cycle(trained):
    assert inside(in_a_cycle(trained[1])) is trained[1]


def test_a_wrapper_of_several_is_refused(trained):
    several = SimpleNamespace(matrices=trained[1], vectors=AdamW([torch.nn.Parameter(torch.ones(2))]), step=None)
    with pytest.raises(OptionError, match=r"holds 2 optimizers; prepare each of them: .*prepare\(optimizer.matrices, "):
        baoc_compile.prepare(several, plan="8bit")


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def zero(model, optimizer_class):
    pytest.importorskip("torch.distributed.optim")
    return dist.optim.ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optimizer_class, lr=1e-3)


def test_zero_redundancy_names_the_way_out(one_process):
    model = Small()
    optimizer = zero(model, AdamW)
    before = bits(model, optimizer)
    with pytest.raises(OptionError, match=r"prepare that one: baoc_compile.prepare\(optimizer.optim\)"):
        baoc_compile.prepare(optimizer, plan="8bit")
    assert bits(model, optimizer) == before and not hasattr(optimizer, "_baoc_session")


@pytest.mark.parametrize("way", ["class", "prepare"])
def test_zero_redundancy_steps_by_baocs_step(way, one_process):
    torch.manual_seed(0)
    model = Small()
    plain = copy.deepcopy(model)
    optimizer = zero(model, with_budget(AdamW, plan="8bit") if way == "class" else AdamW)
    if way == "prepare":
        baoc_compile.prepare(optimizer.optim, plan="8bit")
    own = with_budget(AdamW, plan="8bit")(plain.parameters(), lr=1e-3)
    for _ in range(3):
        step(model, optimizer.step)
        step(plain, own.step)
    assert bits(model, optimizer.optim) == bits(plain, own)


def test_zero_redundancy_resumes(one_process):
    torch.manual_seed(0)
    model = Small()
    optimizer = zero(model, with_budget(AdamW, plan="8bit"))
    for _ in range(2):
        step(model, optimizer.step)
    optimizer.consolidate_state_dict()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed = Small()
    other = zero(resumed, with_budget(AdamW, plan="8bit"))
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for run in ((model, optimizer), (resumed, other)):
        step(run[0], run[1].step)
        step(run[0], run[1].step)
    assert bits(model, optimizer.optim) == bits(resumed, other.optim)
