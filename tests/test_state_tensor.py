"""A StateTensor behaves as the tensor it decodes to: eager operations, copies, pickles, tracing, uncompiled steps."""

from __future__ import annotations

import copy
import io

import codec_reference as reference
import numpy as np
import pytest
import torch

import baoc_compile
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.runtime.lead_steps import own_function
from baoc_compile.state.state_tensor import StateTensor

NAMES = ["fp32", "bf16", "e2m5", "e3m5", "codebook8", "ucodebook4", "e2m1", "row", "factored"]
every_codec = pytest.mark.parametrize("name", NAMES)


def state_of(name: str, shape=(5, 13), seed: int = 0) -> StateTensor:
    value = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    return StateTensor.encoded(value, CODECS[name], "slot", seed)


def assert_same_bits(a: StateTensor, b: StateTensor) -> None:
    assert (a.shape, a.dtype, a.codec, a.salt, a.parts.keys()) == (b.shape, b.dtype, b.codec, b.salt, b.parts.keys())
    for part in a.parts:
        assert torch.equal(a.parts[part], b.parts[part]), part


OTHER = torch.full((5, 13), 2.0)

IN_PLACE = {
    "mul_": lambda s: s.mul_(0.9),
    "add_": lambda s: s.add_(OTHER, alpha=0.5),
    "lerp_": lambda s: s.lerp_(OTHER, 0.1),
    "addcmul_": lambda s: s.addcmul_(OTHER, OTHER, value=0.1),
    "copy_": lambda s: s.copy_(OTHER),
    "zero_": lambda s: s.zero_(),
    "fill_": lambda s: s.fill_(0.25),
    "sqrt_": lambda s: s.sqrt_(),
    "maximum(out=)": lambda s: torch.maximum(s, OTHER, out=s),
    "_foreach_mul_": lambda s: torch._foreach_mul_([s], 0.9),
    "_foreach_add_": lambda s: torch._foreach_add_([s], [OTHER], alpha=0.5),
    "_foreach_lerp_": lambda s: torch._foreach_lerp_([s], [OTHER], 0.1),
    "_foreach_addcmul_": lambda s: torch._foreach_addcmul_([s], [OTHER], [OTHER], 0.1),
    "_foreach_copy_": lambda s: torch._foreach_copy_([s], [OTHER]),
    "_foreach_zero_": lambda s: torch._foreach_zero_([s]),
}


@every_codec
@pytest.mark.parametrize("operation", IN_PLACE)
def test_an_operation_in_place_is_stored(name, operation):
    state, expected = state_of(name), state_of(name)
    pointers = [part.data_ptr() for part in state.parts.values()]
    changed = expected.decode()
    IN_PLACE[operation](changed)
    expected.store(changed)
    result = IN_PLACE[operation](state)
    assert_same_bits(state, expected)
    assert pointers == [part.data_ptr() for part in state.parts.values()]
    assert result is state or not isinstance(result, torch.Tensor)


OUT_OF_PLACE = {
    "mul": lambda s: s * 0.9,
    "radd": lambda s: OTHER + s,
    "sqrt": lambda s: s.sqrt(),
    "sum": lambda s: s.sum(),
    "to": lambda s: s.to(torch.float64),
    "copy from": lambda s: torch.zeros(5, 13).copy_(s),
    "zeros_like": lambda s: torch.zeros_like(s),
    "foreach": lambda s: torch._foreach_sqrt([s])[0],
    "where": lambda s: torch.where(s > 1, s, OTHER),
}


@every_codec
@pytest.mark.parametrize("operation", OUT_OF_PLACE)
def test_an_operation_out_of_place_is_that_of_the_values(name, operation):
    state, before = state_of(name), state_of(name)
    result = OUT_OF_PLACE[operation](state)
    expected = OUT_OF_PLACE[operation](state.decode())
    assert not isinstance(result, StateTensor)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    assert_same_bits(state, before)


WRITES_THROUGH_A_VIEW = {
    "view(-1)": lambda s: s.view(-1).mul_(0.5),
    "row": lambda s: s[1].zero_(),
    "assigned row": lambda s: s.__setitem__(1, 0.0),
    "transpose": lambda s: s.t().mul_(0.5),
    "view of a view": lambda s: s.view(-1)[3:].mul_(0.5),
    "out=": lambda s: torch.mul(OTHER[0], 0.5, out=s[0]),
    "foreach": lambda s: torch._foreach_mul_([s[0], s[1]], 0.5),
    "data of a view": lambda s: s.view(-1).data.mul_(0.5),
    "data": lambda s: s.data.mul_(0.5),
    "detach": lambda s: s.detach().mul_(0.5),
}


READS_THROUGH_A_VIEW = {
    "flatten": lambda s: s.flatten().unsqueeze(0) * 2.0,
    "row": lambda s: s[1].norm(),
    "transpose": lambda s: s.t() @ OTHER,
    "strides": lambda s: s.t().reshape(-1) + 1.0,
    "parts": lambda s: torch.stack([part.sum() for part in s.unbind(0)]),
    "split": lambda s: s.view(-1).split(13)[2].clone(),
    "bits": lambda s: s.view(torch.int32).sum(),
    "out=": lambda s: torch.mul(s.view(-1), 2.0, out=torch.empty(65)),
    "copy_": lambda s: torch.zeros(13, 5).copy_(s.mT),
    "foreach": lambda s: torch._foreach_norm([s[0], s[1]])[1],
    "cosine": lambda s: torch.nn.functional.cosine_similarity(s.flatten(), OTHER.flatten(), dim=0),
    "item": lambda s: torch.tensor(s[2, 3].item()),
}


@every_codec
@pytest.mark.parametrize("operation", READS_THROUGH_A_VIEW)
def test_views_can_be_read(name, operation):
    state, before = state_of(name), state_of(name)
    result = READS_THROUGH_A_VIEW[operation](state)
    assert type(result) is torch.Tensor and torch.equal(result, READS_THROUGH_A_VIEW[operation](state.decode()))
    assert_same_bits(state, before)


def test_a_view_shows_what_the_state_is_now():
    state = state_of("e2m5")
    view, rows = state.view(-1)[3:], state.unbind(0)
    state.mul_(0.5)
    assert torch.equal(view + 0.0, state.decode().view(-1)[3:])
    assert torch.equal(rows[4] + 0.0, state.decode()[4])


@pytest.mark.parametrize("operation", WRITES_THROUGH_A_VIEW)
def test_a_write_through_a_view_is_stored_or_refused(operation):
    """Never silently lost: an optimizer that a user wrote may do this in an uncompiled step."""
    state = state_of("bf16")
    changed = state.decode()
    WRITES_THROUGH_A_VIEW[operation](changed)
    try:
        WRITES_THROUGH_A_VIEW[operation](state)
    except baoc_compile.StateError as error:
        assert "written without effect" in str(error)
        return
    assert torch.allclose(state.decode(), changed, rtol=CODECS["bf16"].relative_error, atol=0)


@every_codec
def test_several_states_in_one_foreach_call(name):
    states, expected = [[state_of(name, seed=i) for i in range(3)] for _ in range(2)]
    torch._foreach_mul_(states, [0.9, 0.8, 0.7])
    for i, (state, wanted) in enumerate(zip(states, expected, strict=True)):
        wanted.store(wanted.decode() * (0.9, 0.8, 0.7)[i])
        assert_same_bits(state, wanted)


@every_codec
@pytest.mark.parametrize("copied_by", [torch.clone, copy.deepcopy], ids=["clone", "deepcopy"])
def test_a_copy_has_the_same_bits_and_its_own_storage(name, copied_by):
    state, before = state_of(name), state_of(name)
    other = copied_by(state)
    assert_same_bits(other, state)
    other.mul_(0.5)
    assert_same_bits(state, before)


@every_codec
def test_to_a_device_keeps_the_form(name):
    state = state_of(name)
    moved = state.to("cpu", torch.bfloat16, copy=True)
    assert isinstance(moved, StateTensor)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved.decode(), state.decode().bfloat16())
    assert state.to("meta").device.type == "meta"


@every_codec
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 13), (3, 64)])
def test_a_pickle_is_exact(name, shape):
    state = state_of(name, shape)
    file = io.BytesIO()
    torch.save({"state": state}, file)
    file.seek(0)
    assert_same_bits(torch.load(file, weights_only=True)["state"], state)


@every_codec
@pytest.mark.parametrize("shape", [(), (0,), (31,), (3, 64)])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6])
def test_fill(name, shape, value):
    state = state_of(name, shape)
    state.fill(value)
    error = CODECS[name].relative_error if CODECS[name].mechanism == "rounding" else 2**-6
    assert torch.allclose(state.decode(), torch.full(shape, value), rtol=error, atol=0)


@pytest.mark.parametrize("name", ["e2m5", "e3m1", "codebook4"])
def test_fill_is_exact_on_average(name):
    """Every element is rounded by itself: a state that begins as a number doesn't begin above or below it."""
    state = state_of(name, (200, 300))
    state.fill(0.0123)
    assert state.decode().double().mean() == pytest.approx(0.0123, rel=CODECS[name].relative_error / 50)


@every_codec
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_reads_one(name, backend):
    state = state_of(name)
    read = torch.compile(lambda s: s * 2 + 1, backend=backend, fullgraph=True)
    assert torch.equal(read(state), state.decode() * 2 + 1)


@every_codec
def test_a_traced_function_writes_one(name):
    state, expected = state_of(name), state_of(name)
    torch.compile(lambda s: s.mul_(0.5), backend="eager", fullgraph=True)(state)
    expected.mul_(0.5)
    assert_same_bits(state, expected)


@every_codec
def test_flattened_and_unflattened_it_is_the_same(name):
    state = state_of(name)
    names, context = state.__tensor_flatten__()
    inner = {n: getattr(state, n) for n in names}
    assert_same_bits(StateTensor.__tensor_unflatten__(inner, context, state.shape, state.stride()), state)


@every_codec
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("as_written", [False, True], ids=["fused", "as written"])
def test_an_uncompiled_step_is_within_the_codecs_error_of_full_precision(name, foreach, as_written):
    """One step of AdamW from zero state: the states within their codecs' bounds, the update within what these allow.

    As written, torch's own code computes with state tensors, and full precision has the bits of plain tensors.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(70, 70, generator=generator)
    gradient = (0.5 + torch.rand(70, 70, generator=generator)) * torch.randn(70, 70, generator=generator).sign()
    plan = {"bf16": "bf16", "fp32": "fp32"}.get(name, "8bit")
    exact, compressed = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [torch.optim.AdamW([p], lr=0.1, foreach=foreach) for p in (exact, compressed)]
    baoc_compile.prepare(optimizers[1], plan=plan)
    for optimizer, parameter in zip(optimizers, (exact, compressed), strict=True):
        parameter.grad = gradient.clone()
        with torch.no_grad():
            own_function(optimizer)(optimizer) if as_written else optimizer.step()
    bounds = {}
    for key in ("exp_avg", "exp_avg_sq"):
        value = optimizers[0].state[exact][key].double().numpy().reshape(-1)
        state = optimizers[1].state[compressed][key]
        if plan == "fp32":
            expected = optimizers[0].state[exact][key]
            assert (state - expected).abs().max() <= (0.0 if as_written else 2.0**-23 * expected.abs().max())
            bounds[key] = np.zeros_like(value) if as_written else 2.0**-23 * abs(value)
            continue
        parts = {part: reference.to_numpy(tensor) for part, tensor in state.parts.items()}
        bounds[key] = reference.error_bound(state.codec.name, value, parts)
        assert (abs(state.decode().double().numpy().reshape(-1) - value) - bounds[key]).max() <= 0, key
    m = abs(optimizers[0].state[exact]["exp_avg"].double().numpy().reshape(-1))
    v = optimizers[0].state[exact]["exp_avg_sq"].double().numpy().reshape(-1)
    update = 0.1 * (m / 0.1) / np.sqrt(v / 0.001)
    most = 0.1 * ((m + bounds["exp_avg"]) / 0.1) / np.sqrt((v - bounds["exp_avg_sq"]) / 0.001)
    difference = abs((compressed - exact).detach().double().numpy().reshape(-1))
    rounding = 8 * 2.0**-24 * (abs(start.double().numpy().reshape(-1)) + most)
    assert (difference - (most - update + rounding)).max() <= 0


class Aligned:
    """Takes back what the optimizer inside it did, as far as gradient and momentum, read through views, are not aligned."""

    def __init__(self, parameters):
        self.optimizer = torch.optim.AdamW(parameters, lr=0.01)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    @torch.no_grad()
    def step(self):
        before = [p.clone() for p in self.param_groups[0]["params"]]
        self.optimizer.step()
        for p, old in zip(self.param_groups[0]["params"], before, strict=True):
            momentum = self.optimizer.state[p]["exp_avg"].flatten().unsqueeze(0)
            cosine = torch.nn.functional.cosine_similarity(momentum, p.grad.flatten().unsqueeze(0))
            p.lerp_(old, 1.0 - cosine.sigmoid().item())


def test_an_outer_step_reads_the_state_of_the_optimizer_inside():
    results = []
    for prepared in (False, True):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(64, 96))
        start, outer = parameter.detach().clone(), Aligned([parameter])
        if prepared:
            baoc_compile.prepare(outer, plan="8bit")
        for _ in range(6):
            parameter.grad = torch.randn(64, 96)
            outer.step()
        results.append(parameter.detach() - start)
    assert isinstance(outer.state[parameter]["exp_avg"], StateTensor)
    assert (results[1] - results[0]).norm() <= 0.05 * results[0].norm()
