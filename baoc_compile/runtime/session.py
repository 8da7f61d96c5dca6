"""Session: what baoc knows about one optimizer: the request, the storage of its state, its step.

A session is an attribute of its optimizer, refers to it weakly, and is freed with it. `copy.deepcopy` and `pickle` of
an optimizer carry the session along, without what is bound to tensors.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch

from baoc_compile.core.parameter_table import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.passes.blocks.parameter_roles import ParameterRole, roles_by_index
from baoc_compile.passes.blocks.record_calls import ForwardGraph
from baoc_compile.state.plan import Plan
from baoc_compile.state.request import Request

log = logging.getLogger("baoc")

#: The attribute of an optimizer that holds its session.
ATTRIBUTE = "_baoc_session"
#: The attribute that holds its key, by which compiled functions refer to it.
KEY = "_baoc_key"
_KEYS = itertools.count(1)


class StepPlanner(Protocol):
    """What plans anew while steps run; see `Configurator`."""

    def step(self, own: Any, run: Callable[[], Any]) -> Any: ...

    def begin_step(self, own: Any) -> None: ...

    def observing(self, bound: Any) -> AbstractContextManager[None]: ...

    def end_step(self, own: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class StepsInParts(Protocol):
    """What steps parameters as soon as their gradients are complete; see `release_gradients`."""

    def finish(self) -> None:
        """Step what has not been stepped yet, and end the step."""

    def release(self) -> None:
        """Drop everything that is bound to tensors."""

    def remove(self) -> None:
        """Step all parameters in `optimizer.step()` from now on."""


@dataclass(eq=False)
class Session:
    """What baoc knows about one optimizer.

    optimizer: the optimizer, held weakly.
    model: the model, held weakly; None if `prepare` was given none.
    request: what the user asked for.
    key: a number that no other session of the process has.
    own: baoc's own step; None before the first one.
    configurator: plans anew while training runs; None if a plan was named.
    resumed: saved state, from a copy or a checkpoint, for a configurator that does not exist yet.
    known_roles: roles of a copy's parameters, from the original; used until a forward pass is seen.
    forward: the model's forward graph, recorded after `prepare(model=...)`.
    hooks: handles of the hooks by which the optimizer's `state_dict` holds the plan.
    """

    optimizer: weakref.ref[Any]
    model: weakref.ref[torch.nn.Module] | None = None
    request: Request = field(default_factory=Request)
    own: Any = None
    key: int = field(default_factory=lambda: next(_KEYS))
    configurator: StepPlanner | None = None
    resumed: Mapping[str, Any] | None = None
    known_roles: Mapping[int, ParameterRole] = field(default_factory=dict)
    forward: ForwardGraph | None = None
    hooks: list[Any] = field(default_factory=list)
    _storage: Storage = field(default_factory=Storage)
    #: The parameters to which the indices of `_storage` refer; None means those that the optimizer has now.
    _parameters: list[weakref.ref[torch.Tensor]] | None = None

    def table(self) -> ParameterTable:
        """Return the optimizer's parameters, as they are now."""
        model = self.model() if self.model is not None else None
        return ParameterTable.of(self.optimizer(), model)

    @property
    def storage(self) -> Storage:
        """How the state of the optimizer's parameters is stored, by their present indices."""
        optimizer: Any = self.optimizer()
        now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self._parameters is not None and _are_same(self._parameters, now):
            return self._storage
        if self._parameters is not None:
            index = {id(parameter): i for i, parameter in enumerate(now)}
            known = [(old, p()) for old, p in enumerate(self._parameters)]
            moved = {old: index[id(p)] for old, p in known if p is not None and id(p) in index}
            self._storage = self._storage.reindexed(moved)
        self._parameters = [weakref.ref(parameter) for parameter in now]
        return self._storage

    def store(self, storage: Storage) -> None:
        """Replace `storage`. This is the only way to change it."""
        self._storage = storage
        self._parameters = [weakref.ref(parameter) for parameter in self.table().parameters]

    def plan(self) -> Plan:
        """Return the storage as a plan."""
        return Plan.written(self.storage, self.table())

    def roles(self) -> Mapping[int, ParameterRole]:
        """Return parameter index -> role in the model, as far as its forward pass was seen.

        The pass is seen after `prepare(model=...)`, or when the model is compiled with this backend. Of several passes,
        the one that uses most of the optimizer's parameters counts.
        """
        parameters = self.table().parameters
        seen = [self.forward] if self.forward is not None else list(_FORWARDS)
        ranked = [(len(dict(f.placeholders_of(parameters))), k) for k, f in enumerate(seen)]
        most, which = max(ranked, default=(0, 0))
        return roles_by_index(seen[which], parameters) if most else self.known_roles

    def forget(self) -> None:
        """Remove the hooks that keep the optimizer's checkpoints."""
        for handle in self.hooks:
            handle.remove()
        self.hooks = []

    # copies

    def attach(self) -> None:
        """Make this the optimizer's session, and part of the optimizer's copies and pickles."""
        optimizer: Any = self.optimizer()
        vars(optimizer)[ATTRIBUTE], vars(optimizer)[KEY] = self, self.key
        _SESSIONS.add(self)
        own = getattr(type(optimizer), "__getstate__", None)
        # object's `__getstate__` copies all attributes, the session among them; a class's own one may not
        if own is not None and own is not getattr(object, "__getstate__", None):
            vars(optimizer)["__getstate__"] = _StateWithSession(optimizer)

    def __reduce__(self) -> Any:
        """Return how a copy is made: from the optimizer's copy, and from the storage as in a checkpoint."""
        configurator = self.configurator.state_dict() if self.configurator is not None else self.resumed
        carried = Carried(_portable(self.request), self.plan().to_json(), dict(self.roles()), configurator)
        return _revive, (self.optimizer(), carried)


class _StateWithSession:
    """An optimizer's `__getstate__` that adds the session to what the class's own returns.

    torch's own returns only defaults, state and groups.
    """

    def __init__(self, optimizer: Any):
        self._optimizer = weakref.ref(optimizer)

    def __call__(self) -> Any:
        optimizer: Any = self._optimizer()
        state = type(optimizer).__getstate__(optimizer)
        if not isinstance(state, dict):
            return state
        kept = {name: value for name, value in state.items() if name not in ("__getstate__", KEY)}
        return kept | {ATTRIBUTE: vars(optimizer)[ATTRIBUTE]}


def _portable(request: Request) -> Request:
    """Return the request without a grouping that can't be pickled, such as a lambda; a line in the log reports it."""
    try:
        pickle.dumps(request.planner.blocks)
    except Exception as error:
        log.warning("blocks: %r is left out of copies of the optimizer: %s", request.planner.blocks, error)
        return replace(request, planner=replace(request.planner, blocks=None))
    return request


class Carried(NamedTuple):
    """What a copy of an optimizer takes along, as plain data.

    request: what the user asked for.
    plan: the storage, as in a checkpoint.
    roles: parameter index -> role in the model.
    configurator: the configurator's state; None without one.
    """

    request: Request
    plan: str
    roles: Mapping[int, ParameterRole]
    configurator: Mapping[str, Any] | None


def _revive(optimizer: Any, carried: Carried) -> Session:
    """Return the session of a copy whose attributes may still be missing."""
    session = Session(
        weakref.ref(optimizer), request=carried.request, resumed=carried.configurator, known_roles=carried.roles
    )
    session._storage = Plan.from_json(carried.plan).storage
    session.attach()
    return session


def _are_same(known: Sequence[weakref.ref[torch.Tensor]], now: Sequence[torch.Tensor]) -> bool:
    return len(known) == len(now) and all(old() is new for old, new in zip(known, now, strict=True))


#: Forward graphs that torch gave this backend, newest last.
_FORWARDS: deque[ForwardGraph] = deque(maxlen=16)


def saw_forward(forward: ForwardGraph) -> None:
    """Remember the forward graph of a compiled model."""
    _FORWARDS.append(forward)


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def session_of(optimizer: Any) -> Session:
    """Return the optimizer's session, which is made at first use."""
    session = known_session(optimizer)
    if session is None:
        session = Session(weakref.ref(optimizer))
        session.attach()
    return session


def known_session(optimizer: Any) -> Session | None:
    """Return the session of an optimizer, or of anything that may be one; None if it has none."""
    session = getattr(optimizer, "__dict__", {}).get(ATTRIBUTE)
    # a shallow copy has the original's session as an attribute
    if isinstance(session, Session) and session.optimizer() is not optimizer:
        _, (_, carried) = session.__reduce__()
        session = _revive(optimizer, carried)
    return session


def sessions() -> Iterator[Session]:
    """Return an iterator over all living sessions."""
    return iter(list(_SESSIONS))
