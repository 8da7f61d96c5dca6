"""One variant: eager, under the plan fp32, under a budget, and simulated."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from simulate import Simulation, float_state
from torch import Tensor
from training import WAYS, Way, train

import baoc_compile

STEPS = 20
BUDGET = "30%"
COSINE, ERROR = 0.995, 0.1
ROUNDING = 1e-3  # relative, of the plan fp32: numbers are eager's, but rounding may turn a sign


class Clock:
    """Processor seconds of the second half of a training, losses and gradients included."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, optimizer: Any, problem: Any) -> None:
        self.times.append(time.process_time())

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[len(self.times) // 2]


@dataclass
class Run:
    """One training beside eager's. `error`: of the whole update, relative. `bytes`: of float state of parameters' shapes."""

    cosine: float = 0.0
    error: float = 0.0
    bytes: int = 0
    programs: int = 0
    replays: int = 0
    seconds: float = 0.0
    raised: str = ""
    refused: str = ""
    notices: list[str] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    name: str
    eager: str = ""  # why it does not run
    seconds: float = 0.0
    bytes: int = 0
    types: list[str] = field(default_factory=list)  # of float state of parameters' shapes
    runs: dict[str, Run] = field(default_factory=dict)


def measure(variant: Any) -> dict[str, Any]:
    """Return a `Result` as a dictionary."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    result = Result(str(variant))
    reference: list[Tensor] = []
    for way in WAYS:
        clock = Clock()
        try:
            optimizer, _, reference = train(variant.make, way, STEPS, after=clock)
            result.eager = ""
            break
        except Exception as error:
            result.eager = result.eager or f"{type(error).__name__}: {error}"[:200]
    if result.eager:
        return asdict(result)
    result.seconds = clock.seconds
    _, _, again = train(variant.make, way, STEPS)
    if not all(map(torch.equal, reference, again)):
        result.eager = "draws random numbers"
    elif not reference[-1].isfinite().all() or not reference[-1].any():
        result.eager = "does not train here"
    result.bytes = sum(_bytes(value) for _, _, value in float_state(optimizer))
    result.types = sorted({str(value.dtype).removeprefix("torch.") for _, _, value in float_state(optimizer)})
    if not result.eager:
        for name, options in (("fp32", {"plan": "fp32"}), (BUDGET, {"memory_budget": BUDGET})):
            result.runs[name] = _beside(reference, variant, way, options)
        result.runs["simulated"] = _simulated(reference, variant, way)
    return asdict(result)


def _beside(reference: list[Tensor], variant: Any, way: Way, options: dict[str, Any]) -> Run:
    run, clock = Run(), Clock()

    def prepare(optimizer: Any) -> None:
        baoc_compile.prepare(optimizer, **options)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            optimizer, _, updates = train(variant.make, way, STEPS, prepare, clock)
            run.cosine, run.error = compare(updates[-1], reference[-1])
            run.seconds = clock.seconds
            run.bytes = sum(_bytes(value) for _, _, value in float_state(optimizer))
            _describe(run, optimizer)
        except Exception as error:
            run.raised = f"{type(error).__name__}: {error}"[:300]
    run.notices += [str(w.message)[:300] for w in caught if issubclass(w.category, baoc_compile.BaocWarning)]
    return run


def _describe(run: Run, optimizer: Any) -> None:
    """Fill in what baoc says of the step."""
    from baoc_compile.runtime.session import known_session
    from baoc_compile.state.wrapped_optimizer import inside

    optimizer = inside(optimizer)
    session = known_session(optimizer)
    own = session.own if session is not None else None
    if own is None:
        return
    run.refused = own.refused
    for reading in own.readings[:1]:
        run.programs = len({rule.key for rule in reading.rules.values()})
        run.replays = len(reading.reasons)
        run.notices += [f"replay: {reason}" for reason in dict.fromkeys(reading.reasons.values())]
    for parameter, key, value in float_state(optimizer):
        codec = getattr(value, "codec", None)
        run.stored[f"{tuple(parameter.shape)} {key}"] = codec.name if codec is not None else str(value.dtype)


def _simulated(reference: list[Tensor], variant: Any, way: Way) -> Run:
    run = Run()
    try:
        _, _, updates = train(variant.make, way, STEPS, after=Simulation())
        run.cosine, run.error = compare(updates[-1], reference[-1])
    except Exception as error:
        run.raised = f"{type(error).__name__}: {error}"[:200]
    return run


def compare(ours: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the cosine of two updates, and the length of their difference relative to the second."""
    if not ours.isfinite().all():
        return 0.0, float("inf")
    cosine = float(ours @ reference / (ours.norm() * reference.norm()).clamp_min(1e-300))
    return cosine, float((ours - reference).norm() / reference.norm())


def _bytes(value: Tensor) -> int:
    stored = getattr(value, "storage_bytes", None)
    return int(stored) if stored is not None else value.numel() * value.element_size()
