"""Users name their state and hyperparameters as they like: names in graphs and generated code are never theirs."""

from __future__ import annotations

import keyword
import re
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import fx

import baoc_compile
from baoc_compile import StateTensor
from baoc_compile.core.errors import PlanError
from baoc_compile.core.names import identifier
from baoc_compile.kernels.dialect.variables import Variables
from baoc_compile.kernels.triton.program import TritonProgram
from baoc_compile.passes.programs import lower, make_programs

NASTY = [
    "param",
    "grad",
    "exp avg",
    "a.b",
    "a_b",
    "lr",
    "index",
    "numel",
    "class",
    "int",
    "float",
    "register",
    "for",
    "tl",
]
NASTY += [
    "",
    " ",
    "_",
    "é",
    "²",
    "日本",
    "x" * 999,
    "x_codes",
    "x_codes_of",
    "self",
    "torch",
    "c0",
    "step",
]
NASTY += [
    "group_index_32",
    "mask",
    "TILE",
    "INT32_MAX",
    "errno",
    "__class__",
    'a"b',
    "a'b",
    "a\nb",
    "a\\",
    '"""',
    "*/",
    "\0",
]
NASTY += ["1", "*", "{x}", "graph", "code", "forward", "training", "inf", "input 3", "decay of x", "params", "state"]
keys = st.one_of(st.sampled_from(NASTY), st.text(max_size=8))


class TwoSlots(torch.optim.Optimizer):
    """An average and an average of squares, under any keys. `momentum` is a hyperparameter under another."""

    def __init__(self, parameters, first: Any = "a", second: Any = "b", momentum: str = "m", counter: str = "t"):
        super().__init__(parameters, {"lr": 0.1} | {momentum: torch.tensor(0.9)})
        self.names = first, second, momentum, counter

    @torch.no_grad()
    def step(self):
        first, second, momentum, counter = self.names
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state[counter] = torch.tensor(0.0)
                    state[first], state[second] = torch.zeros_like(p), torch.zeros_like(p)
                state[counter] += 1
                state[first].mul_(group[momentum]).add_(p.grad)
                state[second].mul_(0.5).addcmul_(p.grad, p.grad, value=0.5)
                p.sub_(group["lr"] * state[first] / (state[second].sqrt() + state[counter]))


def trained(
    compiled: bool, names: tuple, plan: Any = "fp32", dtype: torch.dtype = torch.float32, prepared: bool = True
) -> Any:
    """The optimizer after three steps; one that is not prepared makes its own state in the first."""
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 600, generator=generator).to(dtype))
    optimizer = TwoSlots([p], *names)
    if compiled and prepared:
        baoc_compile.prepare(optimizer, plan=plan)
    step = torch.compile(optimizer.step, backend="baoc", options={"plan": plan}) if compiled else optimizer.step
    for _ in range(3):
        p.grad = torch.randn(8, 600, generator=generator).to(dtype)
        step()
    return optimizer


def same_update(compiled: Any, eager: Any) -> bool:
    (p,), (q,) = compiled.state, eager.state
    return torch.allclose(p, q, rtol=1e-5, atol=1e-6) and [*compiled.state[p]] == [*eager.state[q]]


@settings(max_examples=12)
@example(names=("param", "grad", "index", "decay"), prepared=True)
@example(names=("param", "grad", "index", "decay"), prepared=False)
@example(names=("a.b", "a_b", "a b", "lr_"), prepared=False)
@example(names=("", "class", "x" * 999, "register"), prepared=True)
@example(names=("a\nb", '"""', "*/", "float"), prepared=False)
@given(
    names=st.tuples(keys, keys, keys.filter(lambda key: key not in ("params", "lr")), keys).filter(
        lambda n: len(set(n)) == 4
    ),
    prepared=st.booleans(),
)
def test_a_compiled_step_does_what_the_eager_one_does_under_any_keys(names, prepared):
    compiled = trained(True, names, prepared=prepared)
    assert same_update(compiled, trained(False, names))
    inspection = baoc_compile.inspect(compiled)
    assert not inspection.fallbacks and {s.key for s in inspection.rules[0].slots} == set(names[:2])


@pytest.mark.parametrize("plan", [("fp32", "factored"), ("dropped", "fp32"), ("row", "column")], ids=str)
def test_what_is_stored_does_not_depend_on_what_it_is_called(plan):
    """Stochastic rounding does, whose random words are keyed by the slot; there is none here."""
    found = []
    for names in (("a", "b", "m", "t"), ("param", "for", "c0", "a.b")):
        ((p, state),) = trained(True, names, dict(zip(names, plan, strict=False))).state.items()
        found.append([p.detach()])
        for key in names[:2]:
            value = state[key]
            found[-1] += value.parts.values() if isinstance(value, StateTensor) else [value]
    assert len(found[0]) == len(found[1]) >= 3
    assert all(ours.equal(theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("plan", ["fp32", "8bit", "4bit"])
def test_a_slot_with_the_key_of_the_weight_is_a_slot(plan):
    """Of a bf16 weight, which then has no codec of its own."""
    optimizer = trained(True, ("param", "b", "m", "t"), plan, torch.bfloat16)
    (p,) = optimizer.state
    (expected,) = trained(True, ("other", "b", "m", "t"), plan, torch.bfloat16).state
    assert (p.float() - expected.float()).abs().max() <= (0.0 if plan == "fp32" else 0.1)
    assert not baoc_compile.master_weights(optimizer)
    assert getattr(optimizer.state[p]["param"], "codec", None) is not None or plan == "fp32"
    with pytest.raises(
        PlanError, match="'32bit' is a format of weights, but 'param' is state that the optimizer keeps"
    ):
        trained(True, ("param", "b", "m", "t"), {"param": "32bit"}, torch.bfloat16)


def test_a_format_of_state_is_none_for_the_weight():
    with pytest.raises(PlanError, match="'8bit' is a format of state, but 'param' is the weight itself"):
        trained(True, ("a", "b", "m", "t"), {"param": "8bit"}, torch.bfloat16)


@pytest.mark.parametrize("key", [0, (1, 2), None])
def test_state_under_a_key_that_is_no_string_is_stepped_as_it_is(key):
    names = (key, "b", "m", "t")
    compiled = trained(True, names)
    assert same_update(compiled, trained(False, names))
    (reason,) = baoc_compile.inspect(compiled).fallbacks.values()
    assert "only state whose key is a string can be compressed" in reason and repr(key) in reason


# names in Triton


NAMES = [("tl", "mask", "lr_", "for"), ('"""\n', "a\\", "tile", ""), ("x_codes", "x", "sets", "FULL")]


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@pytest.mark.parametrize("names", NAMES, ids=repr)
@pytest.mark.parametrize("forms", [("4bit", "8bit"), ("fp32", "factored")], ids=str)
def test_triton_gives_what_cpp_gives_under_any_keys(names, forms, monkeypatch):
    plan = dict(zip(names, forms, strict=False))
    by_cpp = trained(True, names, plan)
    monkeypatch.setattr(lower, "CppProgram", TritonProgram)
    monkeypatch.setattr(make_programs, "_PROGRAMS", {})
    by_triton = trained(True, names, plan)
    (p,), (q,) = by_cpp.state, by_triton.state
    assert torch.equal(p, q) or (forms[1] == "factored" and torch.allclose(p, q, rtol=1e-5, atol=1e-6))
    for program in baoc_compile.inspect(by_triton).programs:
        assert "step_tensors" in program.source or "average_tensors" in program.source
        compile(program.source, "emitted", "exec")


# the one function that makes identifiers


@given(texts=st.lists(keys, max_size=8))
def test_identifiers_are_plain_and_tell_apart(texts):
    found: list[str] = []
    for text in texts:
        found.append(identifier(text, found))
        name = found[-1]
        assert name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        assert name[0].isalpha() and "__" not in name and len(name) < 300
    assert len(set(found)) == len(found)
    assert [identifier(text, found[:i]) for i, text in enumerate(texts)] == found


@pytest.mark.parametrize("key", ["exp_avg", "momentum_buffer", "a", "step2", "Ab"])
def test_a_plain_key_is_its_own_identifier(key):
    assert identifier(key) == key


# variables of generated code


@given(
    text=st.text("abcxyz_. ", max_size=30),
    names=st.lists(st.sampled_from(["a", "b", "abc", "x_y", "z"]), min_size=1, max_size=6),
)
def test_a_variable_is_called_like_nothing_else_in_the_text(text, names):
    graph = fx.Graph()
    variables = Variables({"abc"})
    nodes = [graph.placeholder(name) for name in names]
    marks = [variables(node, role) for node in nodes for role in ("", "ptr")]
    words = variables.named(f"{text} {' '.join(marks)}").split()[-len(marks) :]
    assert len(set(words)) == len(words)
    assert not {"abc", *re.findall(r"(?<![\w.])[a-z_]\w*", text)} & {*words}
