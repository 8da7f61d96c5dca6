"""What baoc knows about one optimizer: its budget, its decisions, its compiled steps. It lives as long as the optimizer."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from baoc_compile.core.budget import MemoryBudget
from baoc_compile.core.codec import Codec
from baoc_compile.core.planner_options import PlannerOptions
from baoc_compile.core.step_graph import ParameterTable
from baoc_compile.state.plan import ParameterPlan, Plan

if TYPE_CHECKING:
    from baoc_compile.passes.blocks.record_calls import ForwardGraph
    from baoc_compile.runtime.configurator import Configurator


@dataclass(frozen=True)
class Decision:
    """One slot's codec, and why it is not what the plan's default says (empty if it is)."""

    codec: Codec
    reason: str = ""


@dataclass
class Session:
    """Decisions are keyed by the parameter itself, so they survive retracing, `add_param_group` and checkpoints.

    `plan` is None until the first decision. `is_explicit` says whether the user named a plan or budget,
    `has_named_plan` whether a plan, which overrides a budget. `configurator` plans anew while training runs; None where
    a plan was named. `blocks`: the names of those that it decided on, by parameter.
    """

    optimizer: weakref.ref[Any]
    model: weakref.ref[torch.nn.Module] | None = None
    memory_budget: MemoryBudget | None = None
    plan: Plan | None = None
    seed: int = 0
    is_explicit: bool = False
    has_named_plan: bool = False
    decisions: MutableMapping[torch.Tensor, dict[str, Decision]] = field(default_factory=WeakTensorKeyDictionary)
    update_scales: MutableMapping[torch.Tensor, float] = field(default_factory=WeakTensorKeyDictionary)
    blocks: MutableMapping[torch.Tensor, str] = field(default_factory=WeakTensorKeyDictionary)
    steps: list[Any] = field(default_factory=list)
    planning: PlannerOptions = field(default_factory=PlannerOptions)
    configurator: Configurator | None = None
    forward: ForwardGraph | None = None
    is_in_checkpoints: bool = False

    def table(self) -> ParameterTable:
        model = self.model() if self.model is not None else None
        return ParameterTable.of(self.optimizer(), model)

    def configure(
        self, memory_budget: MemoryBudget | None, plan: Plan | None, seed: int, planning: PlannerOptions
    ) -> None:
        """Takes the user's wishes; what was already decided stays."""
        if self.is_explicit or (memory_budget is None and plan is None):
            if not self.is_explicit and self.plan is None:
                self.seed, self.planning = seed, planning
            return
        self.memory_budget, self.plan, self.is_explicit = memory_budget, plan, True
        self.has_named_plan = plan is not None
        self.seed = plan.seed if plan is not None else seed
        self.planning = planning

    def forward_graph(self) -> ForwardGraph | None:
        """The model's forward pass, if it was seen: by `prepare(model=...)`, or since the model is compiled with this
        backend; of several the one that uses most of the optimizer's parameters."""
        parameters = self.table().parameters
        seen = [self.forward] if self.forward is not None else list(_FORWARDS)
        ranked = [(len(dict(f.placeholders_of(parameters))), k) for k, f in enumerate(seen)]
        most, which = max(ranked, default=(0, 0))
        return seen[which] if most else None

    def update_scale(self, parameter: torch.Tensor) -> float:
        return self.update_scales.get(parameter, 1.0)

    def decided_plan(self) -> Plan:
        """The plan with every decision made so far, by parameter."""
        table = self.table()
        parameters = {
            index: ParameterPlan(
                table.names[index],
                tuple(p.shape),
                {k: d.codec.name for k, d in self.decisions[p].items()},
                self.update_scale(p),
            )
            for index, p in enumerate(table.parameters)
            if p in self.decisions
        }
        default = self.plan.default if self.plan is not None else {"*": "fp32"}
        budget = self.memory_budget.text if self.memory_budget is not None else ""
        return Plan(default, parameters, self.seed, budget, self.plan.update_scale if self.plan is not None else 1.0)


#: Graphs of forward passes that this backend was given, newest last.
_FORWARDS: deque[ForwardGraph] = deque(maxlen=16)


def saw_forward(forward: ForwardGraph) -> None:
    _FORWARDS.append(forward)


_SESSIONS: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()


def session_of(optimizer: Any) -> Session:
    """The optimizer's session, made at first use."""
    if optimizer not in _SESSIONS:
        _SESSIONS[optimizer] = Session(weakref.ref(optimizer))
    return _SESSIONS[optimizer]


def known_session(optimizer: Any) -> Session | None:
    return _SESSIONS.get(optimizer)


def sessions() -> Iterator[Session]:
    return iter(list(_SESSIONS.values()))
