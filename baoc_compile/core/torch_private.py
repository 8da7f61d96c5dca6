"""Every private name of torch and CPython that the package uses: what it is for, and what breaks without it.

No release promises to keep them. No other file of the package uses a private name, and `tests/test_torch_private.py`
checks that each does what is relied on. All are there in torch 2.11, the oldest release that pyproject.toml admits.
Operators such as `torch.ops.aten._to_copy` don't count as private: they are the published core ATen operators.
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

#: A tensor that has a shape and no memory: how a state tensor knows that it is being traced, and need not compute.
FakeTensor = fake_tensor.FakeTensor
#: Gives every operation inside fake results; the forward pass of a model is read without its memory, and rules are traced.
FakeTensorMode = fake_tensor.FakeTensorMode
#: Real tensors inside somebody else's FakeTensorMode. Without it nothing can be computed while torch traces.
unset_fake_temporarily = fake_tensor.unset_fake_temporarily
#: The same for somebody else's trace: what is computed inside does not become part of it.
disable_proxy_modes_tracing = proxy_tensor.disable_proxy_modes_tracing
#: Operator -> its definition in core ATen. Rules would contain operators that the emitters don't know (addcmul, ...).
core_aten_decompositions = _core_aten_decompositions
#: The base class of modes that see every operator. Forward passes and miniature steps are recorded by it.
TorchDispatchMode = _python_dispatch.TorchDispatchMode
#: The innermost such mode. A recorder that an exception left behind must be taken off only if it is the innermost.
current_dispatch_mode = _python_dispatch._get_current_dispatch_mode
#: Map functions over nested tuples, lists and dictionaries: the arguments of operators and modules.
tree_map = _pytree.tree_map
tree_map_only = _pytree.tree_map_only
tree_leaves = _pytree.tree_leaves


def schema_of(func: Any) -> Any:
    """An operator's declaration: its arguments by name, and which of them it writes or returns views of; else None.

    Without it nobody knows what to encode again after an operation on compressed state.
    """
    return getattr(func, "_schema", None)


def hint_of(size: torch.SymInt) -> Any:
    """The size that a symbol stood for when it was traced. Forward graphs under `dynamic=True` would have no shapes."""
    return size.node.hint


#: `torch._foreach_add_` and its like apply the function behind this prefix to lists. `foreach=True` steps consist of them.
FOREACH = "_foreach_"
#: What traced steps call that computes nothing: gradient mode, autocast, assertions.
COMPUTES_NOTHING = {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_assert_scalar", "_assert_async"}


# Subclasses of Tensor and of modules

#: `__torch_function__` of subclasses that leave all to `__torch_dispatch__`. Otherwise results are wrapped a second time.
no_torch_function = torch._C._disabled_torch_function_impl


def wrapper_tensor(cls: type[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """An instance of a tensor class that looks like a tensor and owns no memory: what a StateTensor is."""
    return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)


#: Batch and instance normalization of every dimension. `cast_model` keeps their weights in fp32.
BatchNormalization = nn.modules.batchnorm._NormBase


# torch.compile

#: The backend of a name: "inductor", or what the user calls `inner_backend`.
lookup_backend = _lookup_backend


#: What Dynamo holds while it compiles, and so while it calls a backend. A lock of our own beside it could deadlock with it.
dynamo_lock = convert_frame.compile_lock


def is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)` or `module.compile()`: its forward pass can't be watched as it runs."""
    return getattr(module, "_compiled_call_impl", None) is not None or uncompiled_module(module) is not module


def uncompiled_module(module: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` was given."""
    return getattr(module, "_orig_mod", module)


def uncompiled_function(function: Any) -> Any:
    """The function or method that `torch.compile` was given: `inspect` finds the optimizer through it."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def running_backends() -> Iterator[Any]:
    """The backends of the compiled functions on the stack, innermost first, and those that torch wrapped into them.

    A fused optimizer step that runs inside a function compiled by baoc would pass unnoticed.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper" and frame.f_code.co_filename == eval_frame.__file__:
            backend = frame.f_locals.get("callback")
            while backend is not None:
                yield backend
                backend = getattr(backend, "_torchdynamo_orig_backend", None)
        frame = frame.f_back


# What `passes/capture/read_roles.py` reads of the frame that Dynamo traces.

InstructionTranslator = symbolic_convert.InstructionTranslator
GradSource = source.GradSource
cached_traces = eval_frame._debug_get_cache_entry_list
forget_traces = eval_frame.reset_code


def recompile_limit() -> int:
    """How often Dynamo traces one function before it runs it eagerly."""
    return torch._dynamo.config.recompile_limit


def source_of(node: fx.Node) -> Any:
    """Where a graph's input came from; None if Dynamo does not say."""
    return getattr(node, "_dynamo_source", None)


def holders_of(variable: Any) -> tuple[Any, ...]:
    """The objects of which one has the entries of a dictionary that Dynamo traces, whatever class it has."""
    return variable, getattr(variable, "_base_vt", None), getattr(variable, "_dict_vt", None)


# torch.optim


def fused_steps() -> Iterator[tuple[Any, str]]:
    """(module, name) of the functions that `fused=True` calls. torch.compile leaves them alone: they are to be watched."""
    for optimizer in ("adam", "sgd", "adagrad"):
        module, name = importlib.import_module(f"torch.optim.{optimizer}"), f"_fused_{optimizer}"
        if hasattr(module, name):
            yield module, name


def hooks_of(optimizer: Any) -> dict[str, Any]:
    """Attribute -> the hooks in it. A miniature of an optimizer must have none: they would run twice."""
    return {name: hooks for name, hooks in vars(optimizer).items() if name.endswith("_hooks")}


# Tensors as C++ sees them


@dataclass(frozen=True)
class TensorFunctions:
    """Addresses of C functions. Without them tensors are looked at one by one, in Python: slow, but right.

    `data_ptr`: `void*(PyObject*)`, Inductor's. `is_contiguous`: `int(at::Tensor*, bool* result)`, AOTInductor's.
    `bump_version`: `void(at::Tensor*)`, what `torch.autograd.graph.increment_version` calls. `offset`: bytes from a
    Python tensor's start, its `id`, to the `at::Tensor` in it.
    """

    data_ptr: int
    is_contiguous: int
    bump_version: int
    offset: int


DATA_PTR = "_torchinductor_pyobject_tensor_data_ptr"
IS_CONTIGUOUS = "aoti_torch_is_contiguous"
#: torch::autograd::impl::bump_version(at::Tensor const&)
BUMP_VERSION = "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"


def tensor_functions() -> TensorFunctions:
    """Raises LookupError where this release of torch lacks one."""
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
    """Bytes from a Python tensor's `id` to the C++ one, whose only member is the pointer `_cdata`. Raises ValueError."""
    word = ctypes.sizeof(ctypes.c_void_p)
    words = (ctypes.c_void_p * (type(tensor).__basicsize__ // word)).from_address(id(tensor))
    return list(words).index(tensor._cdata) * word


def object_at(identity: int) -> Any:
    """The living object of this `id`."""
    return ctypes.cast(identity, ctypes.py_object).value


def with_python_lock(library: ctypes.CDLL) -> ctypes.PyDLL:
    """The same library, its functions called with Python's lock held. Its file may be gone by now."""
    return ctypes.PyDLL(library._name, handle=library._handle)
