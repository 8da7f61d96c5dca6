"""What baoc knows about one optimizer: what was asked for, how its state is stored, its compiled steps.

A session belongs to its optimizer: it is an attribute of it, refers to it weakly, and goes with it. `copy.deepcopy` and
`pickle` of an optimizer carry the session along, without compiled steps.
"""

from __future__ import annotations

import logging
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch

from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.core.storage import Storage
from baoc_compile.passes.blocks.parameter_roles import ParameterRole, roles_by_index
from baoc_compile.passes.blocks.record_calls import ForwardGraph
from baoc_compile.state.plan import Plan
from baoc_compile.state.request import Request

log = logging.getLogger("baoc")

#: The attribute of an optimizer that holds its session.
ATTRIBUTE = "_baoc_session"


class StepPlanner(Protocol):
    """Plans anew while compiled steps run; see `Configurator`."""

    def step(self, compiled: Any, run: Callable[[], Any]) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(eq=False)
class Session:
    """Everything that outlives a trace.

    optimizer, model: referred to weakly.
    request: what the user asked for.
    steps: the compiled steps, oldest first.
    configurator: plans anew while training runs; None where a plan was named.
    resumed: the state of the configurator that is still to be made, from a copy or a checkpoint.
    known_roles: of a copy's parameters, from the original; used as long as no forward pass was seen.
    forward: the model's forward graph, seen since `prepare(model=...)`.
    is_in_checkpoints: does the optimizer's `state_dict` hold the plan?
    """

    optimizer: weakref.ref[Any]
    model: weakref.ref[torch.nn.Module] | None = None
    request: Request = field(default_factory=Request)
    steps: list[Any] = field(default_factory=list)
    configurator: StepPlanner | None = None
    resumed: Mapping[str, Any] | None = None
    known_roles: Mapping[int, ParameterRole] = field(default_factory=dict)
    forward: ForwardGraph | None = None
    is_in_checkpoints: bool = False
    _storage: Storage = field(default_factory=Storage)
    #: The parameters that the indices of `_storage` count, or None: those of the optimizer as it is.
    _parameters: list[weakref.ref[torch.Tensor]] | None = None

    def table(self) -> ParameterTable:
        model = self.model() if self.model is not None else None
        return ParameterTable.of(self.optimizer(), model)

    @property
    def storage(self) -> Storage:
        """How the state of the optimizer's parameters is stored, by their indices as they are now."""
        now = self.table().parameters
        if self._parameters is not None and not _are_same(self._parameters, now):
            index = {id(parameter): i for i, parameter in enumerate(now)}
            known = [(old, p()) for old, p in enumerate(self._parameters)]
            moved = {old: index[id(p)] for old, p in known if p is not None and id(p) in index}
            self._storage = self._storage.reindexed(moved)
        self._parameters = [weakref.ref(parameter) for parameter in now]
        return self._storage

    def store(self, storage: Storage) -> None:
        """The one way to change `storage`."""
        self._storage = storage
        self._parameters = [weakref.ref(parameter) for parameter in self.table().parameters]

    def plan(self) -> Plan:
        """The storage, written down."""
        return Plan.written(self.storage, self.table())

    def roles(self) -> Mapping[int, ParameterRole]:
        """What parameters are to the model, by index, as far as its forward pass was seen: by `prepare(model=...)`, or since
        the model is compiled with this backend; of several passes that which uses most of the optimizer's parameters."""
        parameters = self.table().parameters
        seen = [self.forward] if self.forward is not None else list(_FORWARDS)
        ranked = [(len(dict(f.placeholders_of(parameters))), k) for k, f in enumerate(seen)]
        most, which = max(ranked, default=(0, 0))
        return roles_by_index(seen[which], parameters) if most else self.known_roles

    # copies

    def attach(self) -> None:
        """Becomes the optimizer's session, and part of its copies and pickles."""
        optimizer: Any = self.optimizer()
        vars(optimizer)[ATTRIBUTE] = self
        _SESSIONS.add(self)
        own = getattr(type(optimizer), "__getstate__", None)
        if own is not None and own is not getattr(object, "__getstate__", None):  # object's copies all attributes
            vars(optimizer)["__getstate__"] = _StateWithSession(optimizer)

    def __reduce__(self) -> Any:
        """What a copy is made from: the optimizer's copy by then, and the storage as in a checkpoint."""
        configurator = self.configurator.state_dict() if self.configurator is not None else self.resumed
        carried = Carried(_portable(self.request), self.plan().to_json(), dict(self.roles()), configurator)
        return _revive, (self.optimizer(), carried)


class _StateWithSession:
    """`optimizer.__getstate__`, with the session beside what the class's own gives.

    torch's copies and pickles only defaults, state and groups.
    """

    def __init__(self, optimizer: Any):
        self._optimizer = weakref.ref(optimizer)

    def __call__(self) -> Any:
        optimizer: Any = self._optimizer()
        state = type(optimizer).__getstate__(optimizer)
        if not isinstance(state, dict):
            return state
        kept = {name: value for name, value in state.items() if name != "__getstate__"}
        return kept | {ATTRIBUTE: vars(optimizer)[ATTRIBUTE]}


def _portable(request: Request) -> Request:
    """`request`, without a grouping that can't be pickled (a lambda); one line in the log says so."""
    try:
        pickle.dumps(request.planner.blocks)
    except Exception as error:
        log.warning("blocks: %r is left out of copies of the optimizer: %s", request.planner.blocks, error)
        return replace(request, planner=replace(request.planner, blocks=None))
    return request


class Carried(NamedTuple):
    """What a copy of an optimizer takes along: plain data. `plan`: the storage, as in a checkpoint."""

    request: Request
    plan: str
    roles: Mapping[int, ParameterRole]
    configurator: Mapping[str, Any] | None


def _revive(optimizer: Any, carried: Carried) -> Session:
    """The session of a copy, whose attributes may still be missing."""
    session = Session(
        weakref.ref(optimizer), request=carried.request, resumed=carried.configurator, known_roles=carried.roles
    )
    session._storage = Plan.from_json(carried.plan).storage
    session.attach()
    return session


def _are_same(known: Sequence[weakref.ref[torch.Tensor]], now: Sequence[torch.Tensor]) -> bool:
    return len(known) == len(now) and all(old() is new for old, new in zip(known, now, strict=True))


#: Graphs of forward passes that this backend was given, newest last.
_FORWARDS: deque[ForwardGraph] = deque(maxlen=16)


def saw_forward(forward: ForwardGraph) -> None:
    _FORWARDS.append(forward)


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def session_of(optimizer: Any) -> Session:
    """The optimizer's session, made at first use."""
    session = known_session(optimizer)
    if session is None:
        session = Session(weakref.ref(optimizer))
        session.attach()
    return session


def known_session(optimizer: Any) -> Session | None:
    """The session of an optimizer, or of what may be one; None if it has none."""
    session = getattr(optimizer, "__dict__", {}).get(ATTRIBUTE)
    if (
        isinstance(session, Session) and session.optimizer() is not optimizer
    ):  # of the one that this is a shallow copy of
        _, (_, carried) = session.__reduce__()
        session = _revive(optimizer, carried)
    return session


def sessions() -> Iterator[Session]:
    return iter(list(_SESSIONS))
