"""Every private name of torch and CPython that the package uses: what it is for, and what fails without it.

No release promises to keep these names. No other file of the package uses a private name, and
`tests/test_torch_private.py` checks that each does what the package relies on. All exist in torch 2.11, the oldest
release that pyproject.toml admits. Operators such as `torch.ops.aten._to_copy` don't count as private: they are
published core ATen operators.

Over 350 lines: this is one list, in which a reader finds every private name.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, _guards, nn
from torch._C._dynamo import eval_frame as _eval_frame
from torch._decomp import core_aten_decompositions as _core_aten_decompositions
from torch._dynamo import convert_frame, eval_frame, symbolic_convert
from torch._dynamo import lookup_backend as _lookup_backend
from torch._subclasses import fake_tensor
from torch.fx.experimental import proxy_tensor
from torch.utils import _python_dispatch, _pytree

# Tracing and recording

#: A tensor with a shape but no memory. By it a state tensor knows that torch is tracing, and that it need not compute.
FakeTensor = fake_tensor.FakeTensor
#: A mode in which every operation returns fake tensors. With it rules are traced, and forward passes recorded, without
#: their memory.
FakeTensorMode = fake_tensor.FakeTensorMode
#: Restores real tensors inside a caller's FakeTensorMode. Without it nothing can be computed while torch traces.
unset_fake_temporarily = fake_tensor.unset_fake_temporarily
#: Keeps operations out of a caller's trace.
disable_proxy_modes_tracing = proxy_tensor.disable_proxy_modes_tracing
#: Operator -> its definition in core ATen. Without it rules would contain operators that the emitters lack (addcmul, ...).
core_aten_decompositions = _core_aten_decompositions
#: Base class of modes that see every operator. Forward passes and miniature steps are recorded with it.
TorchDispatchMode = _python_dispatch.TorchDispatchMode
#: Returns the innermost such mode. A recorder that an exception left on the stack may be removed only if it is that one.
current_dispatch_mode = _python_dispatch._get_current_dispatch_mode
#: Map functions over nested tuples, lists and dictionaries, such as the arguments of operators and modules.
tree_map = _pytree.tree_map
tree_map_only = _pytree.tree_map_only
tree_leaves = _pytree.tree_leaves


def schema_of(func: Any) -> Any:
    """Return an operator's declaration, or None: its arguments by name, and which it writes or returns views of.

    Without it, nothing says which state to encode again after an operation on compressed state.
    """
    return getattr(func, "_schema", None)


def hint_of(size: torch.SymInt) -> Any:
    """Return the size that a symbol stood for when it was traced.

    Without it, forward graphs under `dynamic=True` would have no shapes.
    """
    return size.node.hint


#: Prefix of functions over lists, such as `torch._foreach_add_`. Steps with `foreach=True` consist of them.
FOREACH = "_foreach_"
#: Calls in traced steps that compute nothing: gradient mode, autocast, assertions.
COMPUTES_NOTHING = {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_assert_scalar", "_assert_async"}


# Subclasses of Tensor and of modules

#: `__torch_function__` of subclasses that leave everything to `__torch_dispatch__`. Without it results are wrapped twice.
no_torch_function = torch._C._disabled_torch_function_impl


def wrapper_tensor(
    cls: type[Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    stride: tuple[int, ...] | None = None,
) -> Any:
    """Return an instance of a tensor class that has a shape and owns no memory, as a StateTensor does."""
    return Tensor._make_wrapper_subclass(cls, shape, stride, dtype=dtype, device=device)


#: Base class of batch and instance normalization in every dimension. `cast_model` keeps their weights in fp32.
BatchNormalization = nn.modules.batchnorm._NormBase


# Tensors that several processes hold together


def is_distributed(value: Any) -> bool:
    """Return whether a value is a DTensor. While nobody has imported DTensor, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def group_of_replicas(model: Any) -> Any:
    """Return the group of the processes that train replicas of a model under DistributedDataParallel; None without one."""
    module = sys.modules.get("torch.nn.parallel.distributed")
    is_replica = module is not None and isinstance(model, module.DistributedDataParallel)
    return model.process_group if is_replica else None


def is_wrapper(tensor: Tensor) -> bool:
    """Return whether a tensor is of a class, such as DTensor, whose elements are elsewhere."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def local_tensor(tensor: Any) -> Tensor:
    """Return what this process holds of a DTensor: the same object every time, as its public method does not.

    A gradient may still be on its way from other processes; it has arrived when this returns.
    """
    local = tensor._local_tensor
    return local.wait() if isinstance(local, _functional_collectives().AsyncCollectiveTensor) else local


def _functional_collectives() -> Any:
    return sys.modules["torch.distributed._functional_collectives"]


def distributed_like(tensor: Any, local: Tensor) -> Tensor:
    """Return a DTensor of the same shape and placements around another local tensor.

    The public `DTensor.from_local` makes a view of the local tensor, and views of compressed state are decoded.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(tensor.shape, tensor.stride(), local.dtype)
    spec = DTensorSpec(tensor.device_mesh, tensor.placements, tensor_meta=meta)
    return DTensor(local, spec, requires_grad=False)  # type: ignore[call-arg]


def shard_in_whole(tensor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of what this process holds of a DTensor, and the index of its first element.

    Without it, random words would not be those of the whole.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


# torch.compile

#: Returns the backend of a name: "inductor", or the user's `inner_backend`.
lookup_backend = _lookup_backend


#: The lock that Dynamo holds while it compiles, and so while it calls a backend. A second lock could deadlock with it.
dynamo_lock = convert_frame.compile_lock


def is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile(module)` or `module.compile()` compiled the module.

    The forward pass of a compiled module can't be recorded as it runs.
    """
    return getattr(module, "_compiled_call_impl", None) is not None or uncompiled_module(module) is not module


def uncompiled_module(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile(module)` was given."""
    return getattr(module, "_orig_mod", module)


def uncompiled_function(function: Any) -> Any:
    """Return the function or method that `torch.compile` was given. `inspect` finds the optimizer through it."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def running_backends() -> Iterator[Any]:
    """Yield the backends of the compiled functions on the stack, innermost first, each followed by the backends it wraps.

    By it, baoc knows the options of the compiled function that calls an optimizer's step.
    """
    for found in _running_compiled():
        backend = found.get("callback")
        while backend is not None:
            yield backend
            backend = getattr(backend, "_torchdynamo_orig_backend", None)


def is_running_one_graph() -> bool:
    """Return whether a function compiled with `fullgraph=True` is on the stack."""
    return any(getattr(found.get("self"), "fullgraph", False) for found in _running_compiled())


def _running_compiled() -> Iterator[Any]:
    """Yield the variables of the functions of torch that run compiled functions on the stack, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper" and frame.f_code.co_filename == eval_frame.__file__:
            yield frame.f_locals
        frame = frame.f_back


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run code as if nothing were compiled; hold `dynamo_lock` meanwhile.

    Functions that torch.compile compiled run as they are, in this thread alone (`torch.compiler.set_stance` is for all): they
    compile nothing while a fake tensor's kernel is called, which is what the context claims. `torch.compiler.is_compiling()`
    is False, also if Dynamo traces in this thread.
    """
    mode = FakeTensorMode()
    mode.in_kernel_invocation = True
    flag, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, False
    try:
        with _guards.tracing(_guards.TracingContext(mode)):
            yield
    finally:
        torch.compiler._is_compiling_flag = flag


def is_running_compiled() -> bool:
    """Return whether a function compiled with any backend is on the stack, outside of what torch.compile leaves alone."""
    return _eval_frame.get_eval_frame_callback() is not None


def leave_alone(function: Any) -> None:
    """Let Dynamo run a function as it is when it comes to its frame, instead of tracing it once for each object it is called on.

    Without it, the steps of more than a few optimizers that are compiled would reach Dynamo's recompile limit, and threads
    that compile them would meet in the one cache of torch's wrapper, which is not safe.
    """
    eval_frame.skip_code(function.__code__)


def asks_for_one_graph() -> bool:
    """Return whether the function that Dynamo traces was compiled with `fullgraph=True`."""
    try:
        translator = symbolic_convert.InstructionTranslator.current_tx()
    except AttributeError:  # nothing is traced, or by another tracer
        return False
    return bool(getattr(translator, "one_graph", False))


#: A function marked so is called while Dynamo traces, and its result is a constant of the trace.
constant_when_traced = torch._dynamo.assume_constant_result


def patch_of_steps() -> Any:
    """Return the method by which torch wraps the step of an optimizer's class, once, in a function that calls hooks."""
    return torch.optim.Optimizer._patch_step_function


def replace_patch_of_steps(patch: Any) -> None:
    """Replace the method that `patch_of_steps` returns. By it, classes that are made later are led to baoc's step too."""
    torch.optim.Optimizer._patch_step_function = patch  # type: ignore[method-assign]


def divide_all(tensors: list[Tensor], by: Tensor) -> None:
    """Divide many tensors in place, as torch's gradient scaler does."""
    torch._foreach_div_(tensors, by)


def of_class(cls: type[Tensor], tensor: Tensor, requires_grad: bool) -> Tensor:
    """Return the same tensor as an instance of a subclass of Tensor: stand-ins are of the classes of real parameters."""
    return Tensor._make_subclass(cls, tensor, requires_grad)


def base_of(tensor: Tensor) -> Tensor | None:
    """Return the tensor of which this one is a view; None for any other."""
    return tensor._base


def holders_of_memory(tensor: Tensor) -> int:
    """Return how many tensors and storage objects refer to a tensor's memory, the tensor included."""
    storage = tensor.untyped_storage()
    # all Python code shares one storage object, which the tensor, `storage` and the argument refer to
    others = sys.getrefcount(storage) - 3
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1 + others


def code_of_caller(depth: int) -> Any:
    """Return the code object of a calling function, `depth` calls above the caller's own."""
    return sys._getframe(depth + 1).f_code


# Tensors as C++ sees them


@dataclass(frozen=True)
class TensorFunctions:
    """Addresses of C functions that read and mark tensors.

    Without them, Python does the same one tensor at a time: slower, but correct.

    data_ptr: `void*(PyObject*)`, from Inductor.
    grad: `const at::Tensor&(const c10::TensorImpl*)`, a method.
    is_contiguous: `int(at::Tensor*, bool* result)`, from AOTInductor.
    dtype, layout: `int(at::Tensor*, int32_t* result)`, from AOTInductor.
    data: `int(at::Tensor*, void** result)`, from AOTInductor.
    bump_version: `void(at::Tensor*)`, which `torch.autograd.graph.increment_version` calls.
    offset: bytes from a Python tensor's address, its `id`, to the `at::Tensor` in it.
    nothing: the address to which an undefined `at::Tensor` points.
    """

    data_ptr: int
    grad: int
    is_contiguous: int
    dtype: int
    layout: int
    data: int
    bump_version: int
    offset: int
    nothing: int


DATA_PTR = "_torchinductor_pyobject_tensor_data_ptr"
IS_CONTIGUOUS = "aoti_torch_is_contiguous"
DTYPE, LAYOUT, DATA = "aoti_torch_get_dtype", "aoti_torch_get_layout", "aoti_torch_get_data_ptr"
#: The mangled name of c10::TensorImpl::grad() const.
GRAD = "_ZNK3c1010TensorImpl4gradEv"
#: The mangled name of torch::autograd::impl::bump_version(at::Tensor const&).
BUMP_VERSION = "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"


def tensor_functions() -> TensorFunctions:
    """Return the addresses. Raises LookupError if this release of torch lacks one."""
    try:
        data_ptr = getattr(torch._C._dynamo.guards, DATA_PTR)
        exported = ctypes.CDLL(torch._C.__file__)
        names = GRAD, IS_CONTIGUOUS, DTYPE, LAYOUT, DATA, BUMP_VERSION
        found = [ctypes.cast(exported[name], ctypes.c_void_p).value or 0 for name in names]
        without = torch.empty(0)
        grad = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(found[0])
        nothing = ctypes.c_void_p.from_address(grad(without._cdata)).value or 0
        return TensorFunctions(data_ptr, *found, offset=tensor_offset(without), nothing=nothing)  # type: ignore[misc]
    except (AttributeError, OSError, ValueError) as reason:
        raise LookupError(str(reason)) from reason


def code_of(dtype: torch.dtype) -> int:
    """Return the number that torch's C functions give a type of tensors."""
    function = ctypes.CDLL(torch._C.__file__)[DTYPE]
    tensor, code = torch.empty(0, dtype=dtype), ctypes.c_int32()
    holder = ctypes.c_void_p(tensor._cdata)
    function(ctypes.byref(holder), ctypes.byref(code))
    return code.value


def code_of_strided() -> int:
    """Return the number that torch's C functions give the layout of ordinary tensors."""
    function = ctypes.CDLL(torch._C.__file__)[LAYOUT]
    tensor, code = torch.empty(0), ctypes.c_int32()
    holder = ctypes.c_void_p(tensor._cdata)
    function(ctypes.byref(holder), ctypes.byref(code))
    return code.value


def tensor_offset(tensor: Tensor) -> int:
    """Return the bytes from a Python tensor's `id` to its C++ tensor, whose only member is the pointer `_cdata`.

    Raises ValueError if the pointer is not found.
    """
    word = ctypes.sizeof(ctypes.c_void_p)
    words = (ctypes.c_void_p * (type(tensor).__basicsize__ // word)).from_address(id(tensor))
    return list(words).index(tensor._cdata) * word


@functools.cache
def dictionary_tag() -> int:
    """Return where a dictionary has a number that every change of it changes, in bytes; -1 if it has none (from 3.13 on)."""
    offset = 3 * ctypes.sizeof(
        ctypes.c_void_p
    )  # after the head of an object and the count of entries: `ma_version_tag`
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13):
        return -1
    some = {"a": 1}
    tag = ctypes.c_uint64.from_address(id(some) + offset)
    seen = [tag.value]
    for change in (lambda: some.update(a=2), lambda: some.update(b=3), lambda: some.pop("a"), some.clear):
        change()
        seen.append(tag.value)
    return offset if len(set(seen)) == len(seen) and tag.value == seen[-1] else -1


def object_at(identity: int) -> Any:
    """Return the living object of this `id`."""
    return ctypes.cast(identity, ctypes.py_object).value


def with_python_lock(library: ctypes.CDLL) -> ctypes.PyDLL:
    """Return the same library with functions that keep Python's lock. The library's file may be gone by now."""
    return ctypes.PyDLL(library._name, handle=library._handle)
