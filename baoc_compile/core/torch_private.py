"""Every private name of torch and CPython that the package uses: what it is for, and what fails without it.

No release promises to keep these names. No other file of the package uses a private name, and
`tests/test_torch_private.py` checks that each does what the package relies on. All exist in torch 2.11, the oldest
release that pyproject.toml admits. Operators such as `torch.ops.aten._to_copy` don't count as private: they are
published core ATen operators.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions as _core_aten_decompositions
from torch._dynamo import convert_frame, eval_frame, source, symbolic_convert
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


def wrapper_tensor(cls: type[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """Return an instance of a tensor class that has a shape and owns no memory, as a StateTensor does."""
    return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)


#: Base class of batch and instance normalization in every dimension. `cast_model` keeps their weights in fp32.
BatchNormalization = nn.modules.batchnorm._NormBase


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

    Without it, a fused optimizer step inside a function compiled by baoc would go unnoticed.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper" and frame.f_code.co_filename == eval_frame.__file__:
            backend = frame.f_locals.get("callback")
            while backend is not None:
                yield backend
                backend = getattr(backend, "_torchdynamo_orig_backend", None)
        frame = frame.f_back


# The frame that Dynamo traces, as `passes/capture/read_roles.py` reads it

InstructionTranslator = symbolic_convert.InstructionTranslator
GradSource = source.GradSource
cached_traces = eval_frame._debug_get_cache_entry_list
forget_traces = eval_frame.reset_code


def recompile_limit() -> int:
    """Return how often Dynamo traces one function before it runs the function eagerly."""
    return torch._dynamo.config.recompile_limit


def source_of(node: fx.Node) -> Any:
    """Return the source of a graph's input; None if Dynamo does not record one."""
    return getattr(node, "_dynamo_source", None)


def holders_of(variable: Any) -> tuple[Any, ...]:
    """Return the objects one of which holds the entries of a dictionary that Dynamo traces, whatever its class."""
    return variable, getattr(variable, "_base_vt", None), getattr(variable, "_dict_vt", None)


# torch.optim


def fused_steps() -> Iterator[tuple[Any, str]]:
    """Yield (module, name) of every function that `fused=True` calls.

    torch.compile never traces these functions, so their calls are watched.
    """
    for optimizer in ("adam", "sgd", "adagrad"):
        module, name = importlib.import_module(f"torch.optim.{optimizer}"), f"_fused_{optimizer}"
        if hasattr(module, name):
            yield module, name


def hooks_of(optimizer: Any) -> dict[str, Any]:
    """Return attribute name -> hooks. A miniature of an optimizer must have none: they would run twice."""
    return {name: hooks for name, hooks in vars(optimizer).items() if name.endswith("_hooks")}


# Tensors as C++ sees them


@dataclass(frozen=True)
class TensorFunctions:
    """Addresses of C functions that read and mark tensors.

    Without them, Python does the same one tensor at a time: slower, but correct.

    data_ptr: `void*(PyObject*)`, from Inductor.
    is_contiguous: `int(at::Tensor*, bool* result)`, from AOTInductor.
    bump_version: `void(at::Tensor*)`, which `torch.autograd.graph.increment_version` calls.
    offset: bytes from a Python tensor's address, its `id`, to the `at::Tensor` in it.
    """

    data_ptr: int
    is_contiguous: int
    bump_version: int
    offset: int


DATA_PTR = "_torchinductor_pyobject_tensor_data_ptr"
IS_CONTIGUOUS = "aoti_torch_is_contiguous"
#: The mangled name of torch::autograd::impl::bump_version(at::Tensor const&).
BUMP_VERSION = "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"


def tensor_functions() -> TensorFunctions:
    """Return the addresses. Raises LookupError if this release of torch lacks one."""
    try:
        data_ptr = getattr(torch._C._dynamo.guards, DATA_PTR)
        exported = ctypes.CDLL(torch._C.__file__)
        is_contiguous, bump_version = (
            ctypes.cast(exported[name], ctypes.c_void_p).value or 0 for name in (IS_CONTIGUOUS, BUMP_VERSION)
        )
        return TensorFunctions(data_ptr, is_contiguous, bump_version, tensor_offset(torch.empty(0)))
    except (AttributeError, OSError, ValueError) as reason:
        raise LookupError(str(reason)) from reason


def tensor_offset(tensor: Tensor) -> int:
    """Return the bytes from a Python tensor's `id` to its C++ tensor, whose only member is the pointer `_cdata`.

    Raises ValueError if the pointer is not found.
    """
    word = ctypes.sizeof(ctypes.c_void_p)
    words = (ctypes.c_void_p * (type(tensor).__basicsize__ // word)).from_address(id(tensor))
    return list(words).index(tensor._cdata) * word


def object_at(identity: int) -> Any:
    """Return the living object of this `id`."""
    return ctypes.cast(identity, ctypes.py_object).value


def with_python_lock(library: ctypes.CDLL) -> ctypes.PyDLL:
    """Return the same library with functions that keep Python's lock. The library's file may be gone by now."""
    return ctypes.PyDLL(library._name, handle=library._handle)
