"""Private names of torch and CPython: each does what the package relies on.

A test's docstring says what breaks without the name.
"""

from __future__ import annotations

import ctypes
import sys
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from baoc_compile.core import torch_private as private

aten = torch.ops.aten


def test_fake_tensors_have_a_shape_and_no_memory():
    """Without FakeTensorMode, forward passes are read with their memory; without FakeTensor, tracing stores state."""
    with private.FakeTensorMode():
        huge = torch.ones(10**9, 10**6) * 2
    assert isinstance(huge, private.FakeTensor) and huge.shape == (10**9, 10**6)
    assert not isinstance(torch.ones(1), private.FakeTensor)


def test_from_tensor_makes_stand_ins_that_keep_shapes():
    """A compiled model's graph is run on stand-ins of its inputs."""
    stand_in = private.FakeTensorMode().from_tensor(torch.ones(2, 3), static_shapes=True)
    assert isinstance(stand_in, private.FakeTensor) and stand_in.shape == (2, 3)


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_names_of_tensors_that_several_processes_hold(mesh):
    """Steps would run on DTensors, whose memory is elsewhere; state would be decoded by the view that `from_local` makes."""
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = distribute_tensor(torch.arange(6.0).view(3, 2), mesh, [Shard(0)])
    local = private.local_tensor(whole)
    assert private.is_distributed(whole) and private.is_wrapper(whole) and not private.is_distributed(local)
    assert not private.is_wrapper(local) and private.local_tensor(whole) is local
    assert private.shard_in_whole(whole) == ((3, 2), (0, 0))
    other = torch.zeros(3, 2, dtype=torch.bfloat16)
    like = private.distributed_like(whole, other)
    assert private.local_tensor(like) is other and like.dtype == torch.bfloat16
    assert (like.shape, like.placements, like.device_mesh) == (whole.shape, whole.placements, mesh)


def test_a_tensor_that_is_under_way_is_waited_for(mesh):
    """A gradient would be read before it has arrived."""
    from torch.distributed import _functional_collectives as collectives
    from torch.distributed.tensor import DTensor, Partial

    part = DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False)
    part._local_tensor = collectives.AsyncCollectiveTensor(torch.ones(4))
    assert type(private.local_tensor(part)) is torch.Tensor


def test_unset_fake_temporarily():
    """Codecs are traced while torch traces: their constants would be fake."""
    with private.FakeTensorMode(), private.unset_fake_temporarily():
        assert torch.ones(2).tolist() == [1.0, 1.0]


def test_decompositions_lead_to_core_aten():
    """Rules would be made of operators that no emitter knows."""
    addcmul = private.core_aten_decompositions()[aten.addcmul.default]
    with Sees() as sees:
        result = addcmul(torch.ones(3), torch.full((3,), 2.0), torch.full((3,), 2.0), value=0.5)
    assert set(sees.calls) - {aten.ones.default, aten.full.default} == {aten.mul.Tensor, aten.add.Tensor}
    assert torch.equal(result, torch.full((3,), 3.0))


def test_dynamo_holds_its_lock_while_it_calls_a_backend():
    """Threads would trace at once; a lock of our own, taken in another order than Dynamo's, would never be released."""
    free = []

    def backend(gm, inputs):
        other = threading.Thread(target=lambda: free.append(private.dynamo_lock.acquire(blocking=False)))
        other.start()
        other.join()
        with private.dynamo_lock:  # reentrant
            return gm.forward

    assert torch.equal(torch.compile(torch.sin, backend=backend)(torch.zeros(2)), torch.zeros(2))
    assert free == [False]


def test_disable_proxy_modes_tracing():
    """What is computed while somebody else traces would become part of that graph."""

    def step(x):
        with private.disable_proxy_modes_tracing():
            torch.ones(3).sin()
        return x.cos()

    gm = make_fx(step)(torch.ones(3))
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [aten.cos.default]


class Sees(private.TorchDispatchMode):
    """Writes down what is called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_every_operator_and_the_innermost_is_known():
    """Neither steps nor forward passes could be recorded; a recorder left behind by an exception would stay for ever."""
    assert private.current_dispatch_mode() is None
    with Sees() as outer:
        with Sees() as inner:
            assert private.current_dispatch_mode() is inner
            torch._foreach_mul_([torch.ones(2)], 2.0)
        assert private.current_dispatch_mode() is outer
    assert inner.calls[-1] is aten._foreach_mul_.Scalar
    assert inner.calls == outer.calls


def test_trees():
    """Arguments in lists and dictionaries would be missed."""
    nested = {"a": [1, (2, 3.0)]}
    assert private.tree_map(lambda x: x + 1, nested) == {"a": [2, (3, 4.0)]}
    assert private.tree_map_only(float, lambda x: -x, nested) == {"a": [1, (2, -3.0)]}
    assert private.tree_leaves(nested) == [1, 2, 3.0]


def test_schema_of_says_what_an_operator_writes_and_views():
    """Operations in place on compressed state would change nothing."""

    def writes(func):
        return [a.alias_info is not None and a.alias_info.is_write for a in private.schema_of(func).arguments]

    assert writes(aten.add_.Tensor) == [True, False, False]
    assert writes(aten.add.Tensor) == [False, False, False]
    assert [a.name for a in private.schema_of(aten.add.Tensor).arguments] == ["self", "other", "alpha"]
    (view,) = private.schema_of(aten.select.int).returns
    assert view.alias_info is not None and not view.alias_info.is_write
    assert private.schema_of(len) is None


def test_hint_of_a_symbol_is_the_size_it_stood_for():
    """Forward graphs under `dynamic=True` would have no shapes."""
    seen = []

    def backend(gm, inputs):
        seen.extend(private.hint_of(i) for i in inputs if isinstance(i, torch.SymInt))
        return gm.forward

    torch.compile(lambda x: x * x.shape[0], backend=backend, dynamic=True)(torch.ones(7))
    assert seen == [7]


@pytest.mark.parametrize("name", ["add_", "mul", "sqrt_", "lerp", "addcdiv_"])
def test_foreach_functions_are_the_prefix_and_the_name_for_one_tensor(name):
    """Steps with `foreach=True` would not be read."""
    assert hasattr(torch, private.FOREACH + name)
    assert hasattr(Tensor, name)


def test_calls_that_compute_nothing():
    """Traced steps would be full of calls that no rule may contain."""
    graphs = []

    def backend(gm, inputs):
        graphs.append(gm)
        return gm.forward

    def step(x):
        with torch.no_grad(), torch.autocast("cpu"):
            torch._assert_async(x.sum() > 0)
            return x * 2

    torch.compile(step, backend=backend)(torch.ones(2, requires_grad=True))
    names = {getattr(n.target, "__name__", n.target) for n in graphs[0].graph.nodes if n.op == "call_function"}
    assert {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_assert_async"} <= names
    assert {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_assert_async"} < private.COMPUTES_NOTHING
    assert hasattr(torch, "_assert_scalar") and "_assert_scalar" in private.COMPUTES_NOTHING


class Wrapped(Tensor):
    """A tensor that owns no memory."""

    @staticmethod
    def __new__(cls, shape):
        return private.wrapper_tensor(cls, shape, torch.float32, torch.device("cpu"))

    __torch_function__ = private.no_torch_function

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(torch.ones(a.shape) if isinstance(a, cls) else a for a in args), **(kwargs or {}))


def test_a_wrapper_tensor_has_a_shape_and_no_memory_and_results_are_not_wrapped():
    """There would be no StateTensor; without `no_torch_function` every result of one would be one again."""
    wrapped = Wrapped((10**6, 10**6))
    assert wrapped.shape == (10**6, 10**6) and wrapped.dtype == torch.float32
    small = Wrapped((2, 3))
    assert type(small + 1) is Tensor and torch.equal(small + 1, torch.full((2, 3), 2.0))


def test_batch_normalization_is_the_base_of_all_its_forms():
    """`cast_model` would round the weights of some normalizations."""
    for module in (nn.BatchNorm1d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2)):
        assert isinstance(module, private.BatchNormalization)
    assert not isinstance(nn.Linear(2, 2), private.BatchNormalization)


def test_functions_over_tensors():
    """Looking at hundreds of tensors before a launch would take longer than the rest of the host's work."""
    functions = private.tensor_functions()
    data_ptr = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(functions.data_ptr)
    bump_version = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(functions.bump_version)
    kinds = {"is_contiguous": ctypes.c_bool, "dtype": ctypes.c_int32, "layout": ctypes.c_int32, "data": ctypes.c_void_p}

    def answer(name, at):
        kind, found = kinds[name], kinds[name]()
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(kind))(getattr(functions, name))
        assert function(at, ctypes.byref(found)) == 0
        return found.value

    for tensor in (torch.ones(3, 4), nn.Parameter(torch.ones(3, 4)), torch.ones(4, 3).T, torch.ones(8)[1::2]):
        at = id(tensor) + functions.offset
        assert data_ptr(tensor) == answer("data", at) == tensor.data_ptr()
        assert answer("is_contiguous", at) == tensor.is_contiguous()
        assert answer("dtype", at) == private.code_of(torch.float32)
        assert answer("layout", at) == private.code_of_strided()
        version = tensor._version
        bump_version(at)
        assert tensor._version == version + 1
    sparse = torch.ones(3).to_sparse()
    assert answer("layout", id(sparse) + functions.offset) != private.code_of_strided()


def test_a_gradient_is_found_by_its_parameter():
    """Gradients would be looked up in Python, one at a time."""
    functions = private.tensor_functions()
    grad_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(functions.grad)
    parameter = nn.Parameter(torch.ones(3))

    def found():
        return ctypes.c_void_p.from_address(grad_of(parameter._cdata)).value

    assert found() == functions.nothing
    parameter.grad = torch.ones(3)
    assert found() == parameter.grad._cdata != functions.nothing
    parameter.grad = None
    assert found() == functions.nothing


def test_every_type_has_a_code_of_its_own():
    """A gradient in another type would be read as if it had the parameter's."""
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.complex64)
    assert len({private.code_of(dtype) for dtype in dtypes}) == len(dtypes)


def test_a_tensor_is_found_in_its_object():
    """Functions would be given something else than a tensor, and crash."""

    class Derived(Tensor):
        __slots__ = ("more",)

    offset = private.tensor_offset(torch.empty(0))
    for tensor in (torch.ones(3), nn.Parameter(torch.ones(3)), torch.ones(3).as_subclass(Derived)):
        assert ctypes.c_void_p.from_address(id(tensor) + offset).value == tensor._cdata
        assert private.object_at(id(tensor)) is tensor


@pytest.mark.parametrize("name", ["DATA_PTR", "IS_CONTIGUOUS", "DTYPE", "LAYOUT", "DATA", "GRAD", "BUMP_VERSION"])
def test_a_missing_function_is_a_lookup_error(name, monkeypatch):
    """The first launch would fail on a torch that has renamed it, instead of asking tensor by tensor."""
    monkeypatch.setattr(private, name, "no_such_function")
    with pytest.raises(LookupError, match="no_such_function"):
        private.tensor_functions()


def test_a_library_with_pythons_lock():
    """Lists of tensors would be read while another thread changes them."""
    library = private.with_python_lock(ctypes.CDLL(None))
    library.PyErr_SetString.argtypes = [ctypes.py_object, ctypes.c_char_p]
    with pytest.raises(KeyError, match="seen only with the lock"):
        library.PyErr_SetString(KeyError, b"seen only with the lock")


def test_a_dictionary_has_a_tag_before_python_3_13():
    """Otherwise the entries themselves are compared, which takes longer."""
    assert (private.dictionary_tag() >= 0) == (sys.version_info < (3, 13))


def test_the_holders_of_a_tensors_memory_are_counted():
    tensor = torch.zeros(4)
    assert private.holders_of_memory(tensor) == private.holders_of_memory(tensor) == 1
    for show in (
        lambda t: t.view(2, 2),
        lambda t: t[1:],
        lambda t: t.data,
        Tensor.detach,
        Tensor.numpy,
        Tensor.untyped_storage,
    ):
        shown = show(tensor)
        assert private.holders_of_memory(tensor) == 2, show
        del shown
        assert private.holders_of_memory(tensor) == 1, show
