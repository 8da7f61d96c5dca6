"""Lead an optimizer class's `step` to baoc's own step, for the optimizers that have one.

torch wraps the step of every optimizer class once, in a function that calls hooks and opens a profiler range around the
step itself. What that function calls is replaced. So whoever calls the step, however it was bound before (by a scheduler, a
scaler, a trainer), calls it with all hooks, and `optimizer.step` stays what it was. Classes without torch's base class get
another `step`.

An optimizer without a session runs as before. If `torch.compile(..., backend="baoc")` is what runs it, it gets one at its
first step.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch

from baoc_compile.core.errors import StateError
from baoc_compile.core.torch_private import (
    asks_for_one_graph,
    constant_when_traced,
    is_running_compiled,
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
        if not isinstance(step, FunctionType):
            return
        cell = _cell(step)
        if cell is not None:
            if not hasattr(cell.cell_contents, "led_by_baoc"):
                cell.cell_contents = _led(cell.cell_contents)
                leave_alone(cell.cell_contents)
        elif not hasattr(step, "led_by_baoc"):
            optimizer_class.step = made = _led(step)  # type: ignore[attr-defined]
            # Dynamo comes to this frame first, and is to trace it: it must not share the code that is left alone
            made.__code__ = made.__code__.replace()
        optimizer_class._baoc_key_when_traced = _baoc_key_when_traced  # type: ignore[attr-defined]


def _cell(step: FunctionType) -> Any:
    """Return the variable of torch's wrapper that holds the step itself; None if torch has not wrapped the step."""
    code = step.__code__
    if code.co_filename != _OPTIMIZER_FILE or "func" not in code.co_freevars or not hasattr(step, "hooked"):
        return None
    return (step.__closure__ or ())[code.co_freevars.index("func")]


def own_function(optimizer: Any) -> Callable[..., Any]:
    """Return the step as the class's author wrote it, without torch's wrappers and ours."""
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__") and (
        step.__code__.co_filename == _OPTIMIZER_FILE or hasattr(step, "led_by_baoc")
    ):
        cell = _cell(step)
        step = cell.cell_contents if cell is not None else step.__wrapped__
    return step


def _led(step: Callable[..., Any]) -> Any:
    @functools.wraps(step)
    def led(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if not hasattr(self, ATTRIBUTE) and not _is_compiled_by_baoc():
                return step(self, *args, **kwargs)
            if _wants_one_graph() and not args and not kwargs:
                return torch.ops.baoc.step.default(_parameters(self), self._baoc_key_when_traced())
        elif ATTRIBUTE not in self.__dict__ and not is_running_compiled():
            return step(self, *args, **kwargs)
        return _run(step, self, args, kwargs)

    led.led_by_baoc = True  # type: ignore[attr-defined]
    return led


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
