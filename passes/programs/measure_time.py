"""Measure how long a step takes under a configuration, by timing its own programs over synthetic tensors.

Three timings give the time per launch, per tensor and per element: launches over one small tensor, over many small
tensors and over large ones. As in training, every launch refreshes its table and then runs its program.
`TimeModel.predict` adds the host's time for a call of the compiled `step`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from baoc_compile.core.codec import Codec, Sharing
from baoc_compile.core.errors import CannotEmit, CompilerMissing
from baoc_compile.core.program_graph import Executable, Operand, ProgramGraph, Signature
from baoc_compile.core.rule import UpdateRule
from baoc_compile.kernels.build.compile_cpp import compiler
from baoc_compile.kernels.codecs.catalogue import full_precision
from baoc_compile.kernels.codecs.counter_hash import slot_salt
from baoc_compile.kernels.codecs.sharing import Shared
from baoc_compile.kernels.cpp.emit import CppEmitter
from baoc_compile.kernels.launch.fused_update import BoundLaunch, Launch
from baoc_compile.kernels.launch.survey import Parameters
from baoc_compile.passes.programs.bytes_moved import bytes_moved
from baoc_compile.passes.programs.compose_program import compose_step
from baoc_compile.passes.programs.make_programs import Need, programs_of
from baoc_compile.passes.programs.step_cost import Cost, RememberedTimes, Sample, device_name, fit
from baoc_compile.passes.programs.time_call import time_call, with_threads

#: The host's time for a step besides its launches, the same for every plan: torch's wrapper of the step, checks, numbers. These
#: are constants, not measured on the machine at hand: the time beyond the programs of 10 tensors, and what each more adds, on
#: an AMD EPYC (docs/host_time.md).
HOST_NS_PER_STEP = 70_000.0
HOST_NS_PER_TENSOR = 200.0

#: The time to refresh a launch's table, for a step that is not measured.
UNMEASURED_NS_PER_LAUNCH = 15_000.0
UNMEASURED_NS_PER_TENSOR = 300.0

#: Limits on the elements and bytes of all large tensors together: more than the caches of a processor or a GPU hold.
MOST_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 25}
MOST_BYTES = 1 << 28
LEAST_ELEMENTS = 1 << 16
SMALL_ELEMENTS = 256
SMALL_TENSORS, LARGE_TENSORS = 32, 8

#: Seconds that each timing lasts, and nanoseconds that one step may take: a slower step is not limited by memory.
SMALL_SECONDS, LARGE_SECONDS = 0.03, 0.15
MOST_NS = 5e7

#: The version of the method of timing: change it to discard older timings.
METHOD = 2


class TimeModel:
    """A model of step times on one device.

    device: the device; "cuda" means the current one.
    threads: threads on a CPU; torch's number by default.
    elements: elements of all parameters that a step updates together, because tensors that fit into caches are faster.
        Rounded up to a power of two, at least `LEAST_ELEMENTS` and at most `MOST_ELEMENTS`.
    """

    def __init__(self, device: torch.device | str, threads: int | None = None, elements: int = 1 << 25):
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.threads = threads or torch.get_num_threads() if self.device.type == "cpu" else 1
        most = MOST_ELEMENTS.get(self.device.type, MOST_ELEMENTS["cpu"])
        self.elements = min(max(LEAST_ELEMENTS, _power_of_two(elements)), most)
        self.remembered = RememberedTimes()
        self.name = f"{device_name(self.device)}, {self.threads} threads, torch {torch.__version__}"
        self._costs: dict[str, Cost] = {}
        self._bytes_per_ns: float | None = None

    def cost(
        self, rule: UpdateRule, codecs: Mapping[str, Codec], signature: Signature, *, measure: bool = True
    ) -> Cost:
        """Return the cost of a rule's programs under a configuration, on the model's device.

        rule: the update rule.
        codecs: the codec of every slot; slots that the rule creates may be left out.
        signature: the types; its device is ignored.
        measure: whether to time programs without an earlier timing; if not, their cost is estimated from bytes moved.
        """
        signature = replace(signature, device=str(self.device))
        codecs = {**{key: full_precision(signature.param_dtype) for key in rule.created}, **codecs}
        names = tuple((key, codec.name) for key, codec in codecs.items())
        of = _hash(METHOD, rule.key, names, signature)
        if of not in self._costs or (measure and not self._costs[of].is_measured):
            self._costs[of] = self._find(rule, codecs, signature, measure, of)
        return self._costs[of]

    def _find(self, rule: UpdateRule, codecs: dict[str, Codec], signature: Signature, measure: bool, of: str) -> Cost:
        """Find the cost `of` in the earlier timings, else measure or estimate it.

        Emitting the programs' sources takes far longer than the rest, so it is done only if timings of them may exist.
        """
        elements = _within_memory(self.elements, codecs, signature)
        key = f"{self.name}, {elements} elements, {of}, "
        if not measure and not self.remembered.has(key):
            return self._reckoned(rule, codecs, signature, elements, of)
        key += _hash(*map(source_of, compose_step(rule, codecs, signature)))
        known = self.remembered.cost(key)
        if known is not None:
            return known
        if not measure:
            return self._reckoned(rule, codecs, signature, elements, of)
        (made,) = programs_of([Need(rule, tuple(codecs.items()), signature)])
        samples, is_quiet = self._samples(made, codecs, elements)
        launch, tensor, element = fit(samples)
        cost = Cost(element, launch, tensor, True, of)
        if is_quiet:
            self.remembered.keep(key, cost)
        return cost

    def predict(self, loads: Iterable[tuple[Cost, int, int]], *, host: bool = True) -> float:
        """Return the nanoseconds of a step.

        loads: (cost, elements, tensors); loads with the same programs share their launches.
        host: whether to add the host's time for a call of `step()` besides its launches.
        """
        total, launched = HOST_NS_PER_STEP if host else 0.0, set()
        for cost, elements, tensors in loads:
            total += cost.ns(elements, tensors) + (HOST_NS_PER_TENSOR * tensors if host else 0.0)
            total -= cost.ns_per_launch if cost.programs in launched else 0.0
            launched.add(cost.programs)
        return total

    @property
    def bytes_per_ns(self) -> float:
        """The memory bandwidth: bytes read and written per nanosecond by a copy that moves `MOST_BYTES / 2` bytes.

        Measured once for each device and number of threads.
        """
        key = f"{self.name}, copy"
        self._bytes_per_ns = self._bytes_per_ns or self.remembered.number(key)
        if self._bytes_per_ns is None:
            source = torch.ones(MOST_BYTES // 4 // 4, device=self.device)
            target = torch.zeros_like(source)
            with with_threads(self.threads):
                ns, is_quiet = time_call(lambda: target.copy_(source), self.device, self.threads, LARGE_SECONDS)
            self._bytes_per_ns = 2 * source.nbytes / ns
            if is_quiet:
                self.remembered.keep(key, self._bytes_per_ns)
        return self._bytes_per_ns

    def _reckoned(
        self, rule: UpdateRule, codecs: dict[str, Codec], signature: Signature, elements: int, of: str
    ) -> Cost:
        """Estimate a cost from the bytes moved at the speed of a copy: too low if arithmetic limits the program."""
        shape = matrix(elements // LARGE_TENSORS, codecs.values())
        parameter = torch.empty(shape, dtype=signature.param_dtype, device="meta")
        ns = bytes_moved(rule, codecs, parameter) / shape.numel() / self.bytes_per_ns
        return Cost(ns, UNMEASURED_NS_PER_LAUNCH, UNMEASURED_NS_PER_TENSOR, False, of)

    def _samples(
        self, made: Sequence[tuple[ProgramGraph, Executable]], codecs: Mapping[str, Codec], elements: int
    ) -> tuple[list[Sample], bool]:
        """Take the three timings; also return whether the large one had the processors to itself."""

        def timed(tensors: int, elements: int, threads: int, seconds: float) -> tuple[Sample, bool]:
            shape = matrix(elements // tensors, codecs.values())
            ns, is_quiet = time_call(synthetic_step(made, codecs, shape, tensors), self.device, threads, seconds)
            return Sample(tensors, tensors * shape.numel(), ns), is_quiet

        with with_threads(self.threads):
            one, _ = timed(1, SMALL_ELEMENTS, 1, SMALL_SECONDS)
            many, _ = timed(SMALL_TENSORS, SMALL_TENSORS * SMALL_ELEMENTS, 1, SMALL_SECONDS)
            affordable = _power_of_two(MOST_NS * many.elements / many.ns)
            elements = max(LEAST_ELEMENTS, min(elements, affordable))
            large, is_quiet = timed(LARGE_TENSORS, elements, self.threads, LARGE_SECONDS)
        return [one, many, large], is_quiet


def source_of(graph: ProgramGraph) -> str:
    """Return the source that `lower` compiles for this program, or the torch code that it runs if it cannot compile."""
    try:
        if graph.signature.device_type == "cpu" and compiler():
            return CppEmitter(graph).source
        if graph.signature.device_type == "cuda":
            from baoc_compile.kernels.triton.emit import TritonEmitter
            from baoc_compile.kernels.triton.emit_average import TritonAverageEmitter

            return (TritonAverageEmitter if graph.folds else TritonEmitter)(graph).source
    except (CompilerMissing, CannotEmit, ImportError):
        pass
    return graph.gm.code


def _hash(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def matrix(elements: int, codecs: Iterable[Codec]) -> torch.Size:
    """Return the shape of a roughly square matrix of about `elements` elements that the sharing codecs can divide."""
    shared = [c for c in codecs if isinstance(c, Shared) and c.size]
    of_rows = math.lcm(*(c.size for c in shared if c.form in ("head", "run")))
    of_columns = math.lcm(*(c.size for c in shared if c.form == "column_head"))
    rows = of_rows * max(1, round(math.sqrt(elements) / of_rows))
    return torch.Size((rows, of_columns * max(1, round(elements / rows / of_columns))))


def _power_of_two(number: float) -> int:
    """Return the smallest power of two that is >= `number`, and >= 1."""
    return 1 << math.ceil(math.log2(max(number, 1.0)))


def _within_memory(elements: int, codecs: Mapping[str, Codec], signature: Signature) -> int:
    """Halve `elements` until parameters, gradients and state take no more than `MOST_BYTES`."""
    shape = matrix(elements, codecs.values())
    stored = sum(codec.storage_bytes(shape) for codec in codecs.values()) / shape.numel()
    each = stored + signature.param_dtype.itemsize + signature.grad_dtype.itemsize
    return elements >> max(0, math.ceil(math.log2(elements * each / MOST_BYTES)))


def synthetic_step(
    made: Sequence[tuple[ProgramGraph, Executable]], codecs: Mapping[str, Codec], shape: torch.Size, count: int
) -> Callable[[], None]:
    """Return a function that launches a step over `count` tensors of `shape`, with normal gradients and fresh state."""
    signature = made[0][0].signature
    device = torch.device(signature.device)
    params = [_normal(shape, signature.param_dtype, device) for _ in range(count)]
    grads = [_normal(shape, signature.grad_dtype, device) for _ in range(count)]
    stored: list[dict[tuple[str, str, str], Tensor]] = [{} for _ in range(count)]
    launches = []
    for graph, executable in made:
        launch = Launch(graph, executable)
        for own in stored:  # the programs of one step share their operands
            own |= {o.place: _first(o, codecs, shape, device) for o in launch.state_operands if o.place not in own}
        sharing = {o.name: _sharing(o, codecs, shape) for o in graph.shared}
        numbers = {o.name: _number(o) for o in graph.numbers}
        launch.parameters, launch.shapes, launch.varying = ["synthetic"] * count, [shape] * count, [{}] * count
        launch.numbers, launch.sharing = [numbers] * count, [sharing] * count
        launch.indices = list(range(count))
        launches.append(BoundLaunch(launch, params, [own[o.place] for own in stored for o in launch.state_operands]))
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    seen = Parameters(params, [signature.grad_dtype] * count)

    def step() -> None:
        seen.look()
        for bound in launches:
            bound(seen)

    return step


def _normal(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of normal values, which repeat after `LEAST_ELEMENTS`."""
    numel = shape.numel()
    few = torch.randn(min(numel, LEAST_ELEMENTS), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return few.repeat(-(-numel // len(few)))[:numel].view(shape)


def _number(operand: Operand) -> float:
    """Return the number for an operand: the slot's salt, or 0.5 (-0.5 if negative) moved into the rule's interval.

    With 0.5, state neither decays to numbers that processors compute slowly, nor grows.
    """
    if operand.source == "salt":
        return float(slot_salt(0, operand.slot))
    bounds = operand.input.bounds if operand.input else (0.0, 1.0)
    return min(max(0.5, bounds[0]), bounds[1]) if bounds[1] > 0.0 else max(-0.5, bounds[0])


def _sharing(operand: Operand, codecs: Mapping[str, Codec], shape: torch.Size) -> Sharing:
    """Return which elements have a value of a shared operand in common."""
    if operand.part is not None:
        return codecs[operand.slot].sharing(operand.part, shape)
    assert operand.input is not None
    return operand.input.sharing(shape)


def _first(operand: Operand, codecs: Mapping[str, Codec], shape: torch.Size, device: torch.device) -> Tensor:
    """Return the first value of a part of a slot, of what is reduced and lines (1), a clock (0) or a counter (100)."""
    if operand.part is not None:
        return codecs[operand.slot].initial(operand.part, shape, device)
    if operand.per == "shared":
        return torch.ones(_sharing(operand, codecs, shape).cycle, dtype=operand.dtype, device=device)
    count = 0 if operand.source == "clock" else 100
    return torch.full((), count, dtype=operand.dtype, device=device)
