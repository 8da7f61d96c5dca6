"""Lead an optimizer class's `step` to baoc's own step, for the optimizers that have one.

torch wraps the step of every optimizer class once, in a function that calls hooks and opens a profiler range around the
step itself. That function stays the same object, so whoever holds it (a scheduler, a scaler, a trainer, a bound method)
calls what is led:

    the function itself    passes on to `outer`; Dynamo leaves it alone
    outer                  keeps Dynamo away from an optimizer with a session
    hooked                 torch's code: hooks and the profiler range
    inner                  runs baoc's own step if the optimizer has a session
    the step               as the class's author wrote it

An optimizer without a session runs as before. If `torch.compile(..., backend="baoc")` is what runs it, it gets one at its
first step. A class without torch's base class has no hooks: its step is replaced.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any

import torch

from baoc_compile.core.errors import StateError
from baoc_compile.core.torch_private import (
    asks_for_one_graph,
    constant_when_traced,
    is_running_compiled,
    is_running_one_graph,
    leave_alone,
    patch_of_steps,
    replace_patch_of_steps,
    running_backends,
)
from baoc_compile.runtime.own_step import OwnStep
from baoc_compile.runtime.session import ATTRIBUTE, KEY, known_session, sessions

_LOCK = threading.Lock()
_OPTIMIZER_FILE = torch.optim.Optimizer.profile_hook_step.__code__.co_filename

#: Gives an optimizer a session, from the options of `torch.compile`, or adds them to its wishes. `backend` sets it; until then
#: none is given.
ADOPT: list[Callable[[Any, Any], None]] = []


def lead(optimizer_class: type) -> None:
    """Lead the steps of an optimizer class to baoc's own."""
    with _LOCK:
        step = optimizer_class.step  # type: ignore[attr-defined]
        if not isinstance(step, FunctionType) or step.__code__ is _PASSES_ON:
            return
        cell = _cell(step)
        if cell is not None:
            hooked = FunctionType(
                step.__code__, step.__globals__, step.__name__, None, (CellType(_inner(cell.cell_contents)),)
            )
            functools.update_wrapper(hooked, step)
            cell.cell_contents, step.__code__ = _outer(hooked), _PASSES_ON
        else:
            optimizer_class.step = _passing_on(_outer(_inner(step)))  # type: ignore[attr-defined]
        optimizer_class._baoc_key_when_traced = _baoc_key_when_traced  # type: ignore[attr-defined]


def _passing_on(func: Callable[..., Any]) -> FunctionType:
    """Return a function with the signature and the only variable of torch's wrapper."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    assert isinstance(wrapper, FunctionType)
    return wrapper


_PASSES_ON = _passing_on(len).__code__
leave_alone(_passing_on(len))


def _cell(step: FunctionType) -> Any:
    """Return the variable of torch's wrapper that holds the step itself; None if torch has not wrapped the step."""
    code = step.__code__
    if code.co_filename != _OPTIMIZER_FILE or code.co_freevars != ("func",) or not hasattr(step, "hooked"):
        return None
    return (step.__closure__ or (None,))[0]


def own_function(optimizer: Any) -> Callable[..., Any]:
    """Return the step as the class's author wrote it, without torch's wrappers and ours."""
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__") and (
        step.__code__.co_filename == _OPTIMIZER_FILE or step.__code__ is _PASSES_ON or hasattr(step, "led_by_baoc")
    ):
        is_passed = step.__code__ is _PASSES_ON or _cell(step) is not None
        step = step.__closure__[0].cell_contents if is_passed else step.__wrapped__
    return step


def _outer(hooked: Callable[..., Any]) -> Any:
    @functools.wraps(hooked)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling() and is_running_compiled() and _is_left_alone(self):
            return _undisturbed(hooked, self, args, kwargs)
        return hooked(self, *args, **kwargs)

    outer.led_by_baoc = True  # type: ignore[attr-defined]
    leave_alone(outer)
    return outer


@torch.compiler.disable(reason="baoc runs the optimizer's step itself")
def _is_left_alone(optimizer: Any) -> bool:
    """Return whether Dynamo has nothing to do with an optimizer's step. The optimizer gets a session if it is to have one."""
    return own_step_of(optimizer) is not None and not is_running_one_graph()


@torch.compiler.disable(reason="baoc runs the optimizer's step itself")
def _undisturbed(hooked: Callable[..., Any], optimizer: Any, args: Any, kwargs: Any) -> Any:
    return hooked(optimizer, *args, **kwargs)


def _inner(step: Callable[..., Any]) -> Any:
    @functools.wraps(step)
    def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            if not hasattr(self, ATTRIBUTE) and not _is_compiled_by_baoc():
                return step(self, *args, **kwargs)
            if _wants_one_graph() and not args and not kwargs:
                return torch.ops.baoc.step.default(_parameters(self), self._baoc_key_when_traced())
        elif ATTRIBUTE not in self.__dict__:
            return step(self, *args, **kwargs)
        return _run(step, self, args, kwargs)

    inner.led_by_baoc = True  # type: ignore[attr-defined]
    return inner


@torch.compiler.disable(reason="baoc runs the optimizer's step itself")
def _run(step: Callable[..., Any], optimizer: Any, args: Any, kwargs: Any) -> Any:
    """Run one step: baoc's own if the optimizer has one."""
    own = own_step_of(optimizer)
    if own is None or len(args) > 1 or set(kwargs) - {"closure"}:
        return step(optimizer, *args, **kwargs)
    closure = args[0] if args else kwargs.get("closure")
    return own(optimizer, closure, lambda given: step(optimizer) if given is None else step(optimizer, given))


@constant_when_traced
def _baoc_key_when_traced(self: Any) -> int:
    """Return the key of an optimizer's session, which is made if it has none: Dynamo calls it while it traces.

    Dynamo finds it on the optimizer's class by the function's name.
    """
    own_step_of(self)
    return vars(self)[KEY]


def own_step_of(optimizer: Any) -> OwnStep | None:
    """Return baoc's own step of an optimizer; None if it has none."""
    session = known_session(optimizer)
    if session is None or session.own is None or session.own.bound is None:
        backend = next(filter(_is_baoc, running_backends()), None)
        if backend is not None and ADOPT:
            ADOPT[0](optimizer, getattr(backend, "kwargs", {}).get("options"))
            session = known_session(optimizer)
    if session is None:
        return None
    if session.own is None:
        session.own = OwnStep(session, own_function(optimizer))
    return session.own


def _is_baoc(backend: Any) -> bool:
    return getattr(backend, "compiler_name", "") == "baoc"


@constant_when_traced
def _wants_one_graph() -> bool:
    return asks_for_one_graph()


@constant_when_traced
def _is_compiled_by_baoc() -> bool:
    return bool(ADOPT) and any(map(_is_baoc, running_backends()))


def lead_all() -> None:
    """Lead the steps of all optimizer classes, those that will be made included."""
    optimizer_class: Any
    for optimizer_class in _classes(torch.optim.Optimizer):
        if hasattr(optimizer_class.step, "hooked"):
            lead(optimizer_class)
    patch = patch_of_steps()
    if hasattr(patch, "led_by_baoc"):
        return

    @functools.wraps(patch)
    def patched(self: Any) -> None:
        patch(self)
        lead(type(self))

    patched.led_by_baoc = True  # type: ignore[attr-defined]
    replace_patch_of_steps(patched)


def _classes(base: type) -> Iterator[Any]:
    subclass: Any
    for subclass in list(base.__subclasses__()):
        yield subclass
        yield from _classes(subclass)


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


leave_alone(is_running_compiled)

_library = torch.library.Library("baoc", "FRAGMENT")
_library.define("step(Tensor(a!)[] params, int key) -> ()")


def _step(params: list[torch.Tensor], key: int) -> None:
    """Run the step of the optimizer with this key: what a compiled function that may not break its graph calls."""
    optimizer = next((o for s in sessions() if s.key == key and (o := s.optimizer()) is not None), None)
    if optimizer is None:
        raise StateError("the optimizer of this step is gone: keep a reference to it as long as you step it")
    own = own_step_of(optimizer)
    assert own is not None
    own(optimizer, None, lambda given: own.function(optimizer))
    for given, real in zip(params, _parameters(optimizer), strict=True):
        if (
            given.data_ptr() != real.data_ptr()
        ):  # a compiler that keeps graphs functional passes copies, and copies back
            given.copy_(real)


_library.impl("step", torch.compiler.disable(torch.no_grad()(_step)), "CompositeExplicitAutograd")
_library.impl("step", lambda params, key: None, "Meta")
