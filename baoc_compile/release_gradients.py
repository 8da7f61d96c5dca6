"""`release_gradients`: step parameters in the backward pass, as soon as their gradients are complete, and free these.

    hook        a parameter's gradient is complete
    part        its part has all gradients: they are stepped as `optimizer.step()` would, and freed
    step        `optimizer.step()` steps what is left, and ends the step: counts, samples, plans

Parts are cut from the order in which gradients come in the first backward pass, and stay the same from then on.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.errors import OptionError, StateError
from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.torch_private import wrapper_tensor
from baoc_compile.runtime.own_step import OwnStep
from baoc_compile.runtime.session import known_session
from baoc_compile.state.wrapped_optimizer import inside
from baoc_compile.step_part import StepPart, why_not_in_parts


def release_gradients(optimizer: Any, *, every: int = 1, bucket_bytes: int | None = None) -> GradientRelease:
    """Step parameters in the backward pass, as soon as their gradients are complete, and free the gradients.

    The training loop stays as it is. `optimizer.step()` steps what the backward pass has not, and ends the step; parameters
    and state have the bits that they would have without release. Learning rates and other numbers count as they are in
    the backward pass: let schedulers step after `optimizer.step()`, as torch asks for.

    optimizer: an optimizer that was prepared, or a wrapper that has it inside.
    every: backward passes for one `optimizer.step()`. Gradients accumulate until the last of them. If `optimizer.step()`
        comes earlier, it steps all.
    bucket_bytes: parameters are stepped together as soon as their gradients have this many bytes. Default: the bytes of
        the largest gradient, which is the least that is alive at some time anyway.

    From its parameter's step until `optimizer.step()`, a gradient that was freed is a tensor without elements in memory:
    whoever reads it gets a StateError. So clipping by the norm of all gradients (`clip_grad_norm_`) and `GradScaler`, which
    need all gradients before the first parameter is stepped, raise one instead of doing nothing. So does another backward
    pass before `optimizer.step()`, unless `every` says so.

    Returns a handle; `remove()` on it ends the release.

    Raises OptionError for a bad option, for an optimizer that was not prepared or runs as written, for steps that mix
    parameters or count for all of them, and for parameters that are not plain tensors of one device. Several ranks
    (DistributedDataParallel, FSDP) are refused as well: their gradients are complete only after a reduction that comes
    after the hooks, and DistributedDataParallel keeps buffers of all gradients, so nothing would be saved.
    """
    optimizer = inside(optimizer)
    session = known_session(optimizer)
    if session is None:
        raise OptionError(
            "optimizer: release_gradients expects a prepared one; call baoc_compile.prepare(optimizer, ...) first"
        )
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise OptionError(f"every: expected a number of backward passes, 1 or more, got {every!r}")
    if bucket_bytes is not None and (
        isinstance(bucket_bytes, bool) or not isinstance(bucket_bytes, int) or bucket_bytes < 1
    ):
        raise OptionError(f"bucket_bytes: expected a number of bytes, 1 or more, got {bucket_bytes!r}")
    own, table = session.own, session.table()
    reason = _why_not(own, table)
    if reason:
        raise OptionError(f"optimizer: its gradients can't be released: {reason}")
    return GradientRelease(own, table, every, bucket_bytes)


def _why_not(own: OwnStep | None, table: ParameterTable) -> str:
    """Return why the gradients of an optimizer can't be released; empty if they can."""
    if own is not None and own.parts is not None:
        return "they are released already; call remove() on what the first call of release_gradients returned"
    if own is not None and own.refused:
        return f"its step runs as it is written, since {own.refused}"
    if own is None or not own.readings:
        return 'its step has not been read yet (it needs gradients, or the budget is "fit"); take one step first'
    for name, parameter in zip(table.names, table.parameters, strict=True):
        if type(parameter) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(parameter).__name__}, and what completes its gradient is not known"
    devices = sorted({str(p.device) for p in table.parameters})
    if len(devices) > 1:
        return f"its parameters are on {' and '.join(devices)}, whose backward passes run at the same time"
    return _why_not_here() or next(filter(None, (why_not_in_parts(r, table) for r in own.readings)), "")


def _why_not_here() -> str:
    """Return why gradients can't be released in this process; empty if they can."""
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        return (
            "there are several ranks, whose gradients are reduced after the hooks that release them; "
            "DistributedDataParallel keeps buffers of all gradients, so nothing would be saved"
        )
    return ""


class GradientRelease:
    """The release of an optimizer's gradients; `remove()` ends it.

    every: backward passes for one step.
    bucket_bytes: bytes of gradients at which a part is complete.
    parts: the parts, in the order of the first backward pass.
    """

    def __init__(self, own: OwnStep, table: ParameterTable, every: int, bucket_bytes: int | None):
        self.own, self.every = own, every
        self.parts: list[StepPart] = []
        self._part_of: dict[int, StepPart] = {}  # by the parameter's id
        self._hooks: dict[int, Any] = {}
        self._names = {id(p): name for p, name in zip(table.parameters, table.names, strict=True)}
        trained = [p for p in table.parameters if p.requires_grad]
        self.bucket_bytes = bucket_bytes or max(map(_grad_bytes, trained), default=1)
        #: Of the step in progress: how often each gradient came, how many of each part are complete, whose gradients were
        #: released, and whose parameters wait to be in a part.
        self._came: dict[int, int] = {}
        self._complete: dict[StepPart, int] = {}
        self._released: dict[int, Tensor] = {}
        self._waiting: list[Tensor] = []
        self._has_begun = False
        for parameter in trained:
            self._watch(parameter)
        own.parts = self

    def _watch(self, parameter: Tensor) -> None:
        reference = weakref.ref(self)

        def came(parameter: Tensor) -> None:
            release = reference()
            if release is not None:
                release._came_to(parameter)

        self._hooks[id(parameter)] = parameter.register_post_accumulate_grad_hook(came)

    # in the backward pass

    @torch.no_grad()
    def _came_to(self, parameter: Tensor) -> None:
        """Note that a gradient was added to; step the part that is complete with it."""
        own, key = self.own, id(parameter)
        with own.lock:
            if own.refused:
                return
            if not self._came and (reason := _why_not_here()):
                raise StateError(f"release_gradients: {reason}")
            self._came[key] = self._came.get(key, 0) + 1
            if self._came[key] > self.every:
                raise StateError(_told(self._names.get(key, "a parameter"), self.every))
            if self._came[key] < self.every:
                return
            part = self._part_of.get(key)
            if part is None:
                self._wait(parameter)
                return
            self._complete[part] = self._complete.get(part, 0) + 1
            if self._complete[part] == len(part.parameters):
                self._step(part)

    def _wait(self, parameter: Tensor) -> None:
        """Let a parameter wait for others with which it makes a new part."""
        self._waiting.append(parameter)
        if sum(map(_grad_bytes, self._waiting)) >= self.bucket_bytes:
            self._cut()

    def _cut(self) -> None:
        """Make the waiting parameters a part, and step it."""
        part = StepPart(self.own, self._waiting)
        self._waiting = []
        self.parts.append(part)
        self._part_of |= {id(p): part for p in part.parameters}
        self._step(part)

    def _step(self, part: StepPart) -> None:
        """Step a part, and free its gradients."""
        own = self.own
        bound, configurator = part.ready(), own.session.configurator
        self._begin()
        with configurator.observing(bound) if configurator is not None else nullcontext():
            bound.run(own.session.table)
        bound.numbers.commit(own.session.optimizer())
        own.unborn.were_stepped(bound.present)
        for parameter in part.parameters:
            if parameter.grad is not None:
                parameter.grad = Released(parameter, self._names.get(id(parameter), "a parameter"), self.every)
                self._released[id(parameter)] = parameter

    def _begin(self) -> None:
        configurator = self.own.session.configurator
        if not self._has_begun and configurator is not None:
            configurator.begin_step(self.own)
        self._has_begun = True

    # in `optimizer.step()`

    @torch.no_grad()
    def finish(self) -> None:
        """Step what the backward passes have not stepped, and end the step. Raises StateError."""
        own = self.own
        parameters = own.session.table().parameters
        again = next((p for p in self._released.values() if _has_grad(p)), None)
        if again is not None:
            raise StateError(
                f"release_gradients: {self._names.get(id(again), 'a parameter')} was given another gradient after its step in "
                "the backward pass; give it before, or call remove() on what release_gradients returned"
            )
        for parameter in reversed(parameters):
            if parameter.requires_grad and id(parameter) not in self._hooks:  # it is new, or was frozen
                self._watch(parameter)
            if _has_grad(parameter) and id(parameter) not in self._part_of and not _is_in(parameter, self._waiting):
                self._wait(parameter)
        if self._waiting:
            self._cut()
        for part in self.parts:
            if any(map(_has_grad, part.parameters)):
                self._step(part)
        self._begin()
        self._forget()
        bound, configurator = own.bound, own.session.configurator
        if configurator is not None:
            configurator.end_step(own)
        if bound is not None:
            own.ended(bound)

    def _forget(self) -> None:
        """Forget the step in progress."""
        for parameter in self._released.values():
            if isinstance(parameter.grad, Released):
                parameter.grad = None
        self._came, self._complete, self._released, self._has_begun = {}, {}, {}, False

    # ends

    def release(self) -> None:
        """Drop all that is bound to tensors; the next backward pass binds again."""
        for part in self.parts:
            part.release()

    def remove(self) -> None:
        """Let `optimizer.step()` step all parameters from now on. A step that a backward pass has begun is ended first."""
        with self.own.lock:
            if self._released:
                self.finish()
            for hook in self._hooks.values():
                hook.remove()
            self._hooks = {}
            self.release()
            if self.own.parts is self:
                self.own.parts = None


class Released(Tensor):
    """In the place of a gradient that was freed: it has a shape and a type, and raises StateError when it is read."""

    @staticmethod
    def __new__(cls, parameter: Tensor, name: str, every: int) -> Released:
        made = wrapper_tensor(cls, parameter.shape, parameter.dtype, parameter.device, parameter.stride())
        made.told = _told(name, every)
        return made

    told: str

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        found = [a for given in args for a in (given if isinstance(given, (list, tuple)) else [given])]
        raise StateError(next((a.told for a in found if isinstance(a, cls)), "the gradient was released"))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<the released gradient of a parameter of shape {tuple(self.shape)}>"


def _told(name: str, every: int) -> str:
    passes = "its backward pass" if every == 1 else f"backward pass {every}"
    return (
        f"{name} was stepped in {passes}, and its gradient was freed (release_gradients). What needs all gradients before the "
        "step (clip_grad_norm_, GradScaler, hooks) can't be combined with release_gradients: leave it out, or call remove() on "
        "what release_gradients returned. Another backward pass before optimizer.step(), or one that adds to a parameter "
        f"several times, needs release_gradients(optimizer, every=n), now {every}, n additions for each step"
    )


def _grad_bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _has_grad(parameter: Tensor) -> bool:
    return parameter.grad is not None and not isinstance(parameter.grad, Released)


def _is_in(parameter: Tensor, others: list[Tensor]) -> bool:
    return any(parameter is other for other in others)
