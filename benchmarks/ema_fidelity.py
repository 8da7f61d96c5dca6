"""How well does stored state carry an exponential moving average?

The EMA s' = beta s + (1 - beta) x is decoded and stored at every step. Every codec carries the EMA of the same streams
for 2,000 steps at several betas. Signed slots have x = g (a momentum), non-negative ones x = g^2 (a second moment). The
reference is the EMA in float64. The page also has the state formats of FlashOptim (arXiv 2602.23349) and torchao,
re-implemented from their formulas, the 8-bit codecs of version 0.3, and nearest rounding, which was rejected. Writes
docs/ema_fidelity.md.

    OMP_NUM_THREADS=1 python benchmarks/ema_fidelity.py [--steps 2000] [--only e2m torchao] [--seed 0]

Over 350 lines: the rivals' formats, the streams and the page that compares them are one experiment.
"""

from __future__ import annotations

import argparse
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from companded8 import Softsign8, Sqrt8
from torch import Tensor, fx

from baoc_compile.core.codec import Codec, Random
from baoc_compile.kernels.codecs.catalogue import CODECS
from baoc_compile.kernels.codecs.counter_hash import element_words, fold_index, group_words, step_key
from baoc_compile.kernels.dialect.trace_codec import encoded_parts, traced_decode, traced_encode, with_exact_roots
from baoc_compile.passes.migrate.refresh_codebooks import CodebookRefresh
from baoc_compile.state.state_tensor import StateTensor

REPORT = Path(__file__).resolve().parent.parent / "docs" / "ema_fidelity.md"
STEPS = 2000
BETAS = (0.9, 0.999, 0.9999)

#: Stream -> what the gradients are, and how small a share of the start its EMA may become before its run ends.
STREAMS: dict[str, tuple[str, float]] = {
    "zero gradients": (
        "No gradients. State starts as a normally distributed momentum (non-negative: its square).",
        1e-30,
    ),
    "constant": (
        "Every element has a constant gradient, drawn from a normal distribution. State starts as zeros.",
        0.0,
    ),
    "normal": ("Gradients are independent and normal. State starts as zeros.", 0.0),
    "heavy tails": ("Gradients are independent, of Student's t with 3 degrees of freedom. State starts as zeros.", 0.0),
    "one stays": (
        "State starts with magnitudes between 0.9 and 1.1 (non-negative: their squares). In every group one element keeps "
        "its gradient, and the gradients of the others stop. Errors are measured over the others.",
        1e-3,
    ),
}
LATE_SAMPLES = 10  # in the last tenth of a run

#: Elements of one state at most, and groups of it.
ELEMENTS, GROUPS = 4096, 64


# storing


class Storage(ABC):
    """State of shape `[runs, groups, width]`."""

    @abstractmethod
    def decode(self) -> Tensor: ...

    @abstractmethod
    def store(self, value: Tensor) -> None: ...

    def advance(self, decay: Tensor, increment: Tensor) -> None:
        """One step of an EMA."""
        self.store(decay * self.decode() + increment)


class CodecStorage(Storage):
    """One `StateTensor` for every run, all stored at once: their parts are slices of stacked ones.

    Learned codebooks are refreshed at their clocks. `nearest`: words of one half, which make every rounding nearest.
    """

    def __init__(self, codec: Codec, start: Tensor, nearest: bool = False, seed: int = 0):
        self.codec, self.nearest, (self.runs, self.groups, self.width) = codec, nearest, start.shape
        self.states = [
            StateTensor.encoded(value, codec, str(run), seed)
            if value.any()
            else StateTensor.empty(value.shape, value.dtype, value.device, codec, str(run), seed)
            for run, value in enumerate(start)
        ]
        self.parts = {name: torch.stack([s.parts[name] for s in self.states]) for name in self.states[0].parts}
        for run, state in enumerate(self.states):
            state.parts = {name: part[run] for name, part in self.parts.items()}
        self.refresh = CodebookRefresh(self.states)
        self.salts = torch.tensor([s.salt for s in self.states], dtype=torch.int32).view(-1, 1, 1)
        self.index = fold_index(torch.arange(self.groups * self.width)).view(self.groups, self.width)
        self.encoder = with_exact_roots(_with_own_codebooks(traced_encode(codec)))
        self.decoder = with_exact_roots(_with_own_codebooks(traced_decode(codec)))
        if nearest:
            self.store(start)

    def decode(self) -> Tensor:
        return self.decoder(*(self._grouped(part.name) for part in self.codec.parts))[0]

    def store(self, value: Tensor) -> None:
        random = self._random()
        codebooks = [self.parts[part.name] for part in self.codec.parts if part.per == "codebook"]
        encoded = self.encoder(value, random.element, random.group, *codebooks)
        for part, new in zip(encoded_parts(self.codec), encoded, strict=True):
            flat = new[..., ::2] | new[..., 1::2] << 4 if part.bits == 4 else new
            self.parts[part.name].copy_(flat.view_as(self.parts[part.name]))
        self.parts["clock"].add_(1)

    def advance(self, decay: Tensor, increment: Tensor) -> None:
        self.refresh.tick()
        super().advance(decay, increment)

    def _random(self) -> Random:
        if self.nearest:
            half = torch.full((), -(2**31), dtype=torch.int32)
            return Random(half.expand(self.groups, self.width), half.expand(self.groups, 1))
        key = step_key(self.salts, self.parts["clock"].view(-1, 1, 1))
        return Random(element_words(key, self.index), group_words(key, self.index[:, :1]))

    def _grouped(self, name: str) -> Tensor:
        part = next(p for p in self.codec.parts if p.name == name)
        stored = self.parts[name]
        if part.per == "codebook":
            return stored
        if part.bits == 4:
            stored = torch.stack([stored & 15, stored >> 4], -1)
        return stored.view(self.runs, self.groups, -1)


def _with_own_codebooks(source: fx.Graph) -> fx.Graph:
    """A codec's graph in which every run takes from its own codebook."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(source, {}))
    for node in graph.nodes:
        if node.target is torch.ops.aten.take.default:
            node.target = _take_own
    return graph


def _take_own(codebooks: Tensor, index: Tensor) -> Tensor:
    return codebooks.gather(1, index.reshape(len(index), -1)).view(index.shape)


class RoundedStorage(Storage):
    """What remains of float32 values after a function has rounded them."""

    def __init__(self, rounded: Callable[[Tensor], Tensor], start: Tensor):
        self.rounded = rounded
        self.store(start)

    def decode(self) -> Tensor:
        return self.value

    def store(self, value: Tensor) -> None:
        self.value = self.rounded(value)


# rivals


def flashoptim_signed(value: Tensor) -> Tensor:
    """int8 softsign codes, fp16 scales; groups are the last dimension."""
    scale = value.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    x = value / scale
    z = torch.floor(2 * x / (1 + x.abs()) * 127 + 0.5) / 127
    return z / (2 - z.abs()) * scale.half().float()


def flashoptim_nonnegative(value: Tensor) -> Tensor:
    """uint8 codes and fp16 scales of the square root."""
    root = value.sqrt()
    scale = root.amax(-1, keepdim=True).clamp(min=1e-12)
    return (torch.floor(root / scale * 255 + 0.5) / 255 * scale.half().float()) ** 2


def dynamic_map(signed: bool, bits: int) -> Tensor:
    """Ascending levels with `bits` - 1 decimal exponents, each decade with twice the levels of the one below it."""
    exponents = bits - 1
    levels = [0.0, 1.0]
    for k in range(exponents):
        edges = torch.linspace(0.1, 1, 2 ** (k if signed else k + 1) + 1)
        decade = (10.0 ** (k - exponents + 1) * (edges[:-1] + edges[1:]) / 2.0).tolist()
        levels += decade + [-level for level in decade] * signed
    return torch.tensor(sorted(levels))


def torchao_map(signed: bool, bits: int) -> Tensor:
    return dynamic_map(signed, bits) if signed or bits == 8 else torch.arange(1, 17) / 16


def torchao(levels: Tensor, value: Tensor) -> Tensor:
    """The nearest level, fp32 scales."""
    scale = value.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    return levels[torch.bucketize(value / scale, (levels[1:] + levels[:-1]) / 2, right=True)] * scale


# what is compared


@dataclass(frozen=True)
class Format:
    name: str
    signed: bool
    width: int
    bytes_per_element: float
    make: Callable[[Tensor], Storage]


def formats(seed: int = 0) -> list[Format]:
    def ours(codec: Codec, signed: bool, name: str = "", nearest: bool = False) -> Format:
        make = partial(CodecStorage, codec, nearest=nearest, seed=seed)
        size = codec.storage_bytes(torch.Size([1 << 24])) / 2**24
        return Format(name or f"`{codec.name}`", signed, codec.group_size or 32, size, make)

    def rival(name: str, signed: bool, width: int, size: float, rounded: Callable[[Tensor], Tensor]) -> Format:
        return Format(name, signed, width, size, partial(RoundedStorage, rounded))

    signed_names = ("bf16", "e2m5", "e3m4", "codebook8", "e2m1", "codebook4")
    other_names = ("bf16", "e2m6", "e3m5", "e4m4", "ucodebook8", "e2m2", "e3m1", "ucodebook4")
    chosen = [ours(CODECS[name], True) for name in signed_names] + [ours(CODECS[name], False) for name in other_names]
    chosen += [
        ours(Softsign8(), True, "0.3: `softsign8`"),
        ours(Sqrt8(), False, "0.3: `sqrt8`"),
        ours(CODECS["e2m5"], True, "rejected: `e2m5`, nearest", nearest=True),
        rival("FlashOptim 8-bit *", True, 32, 1 + 2 / 32, flashoptim_signed),
        rival("FlashOptim 8-bit *", False, 32, 1 + 2 / 32, flashoptim_nonnegative),
    ]
    for signed in (True, False):
        chosen += [
            rival("bf16, nearest", signed, 32, 2.0, lambda value: value.bfloat16().float()),
            rival("torchao 8-bit *", signed, 256, 1 + 4 / 256, partial(torchao, torchao_map(signed, 8))),
            rival("torchao 4-bit *", signed, 128, 0.5 + 4 / 128, partial(torchao, torchao_map(signed, 4))),
        ]
    return chosen


# measuring


@dataclass(frozen=True)
class Run:
    stream: str
    beta: float
    steps: int

    def samples(self) -> list[int]:
        """The steps after which it is measured; the last one is its end."""
        tenth = self.steps / 10
        return sorted({round(self.steps - tenth * k / LATE_SAMPLES) for k in range(LATE_SAMPLES)})


def runs(steps: int, betas: tuple[float, ...] = BETAS, streams: tuple[str, ...] = tuple(STREAMS)) -> list[Run]:
    """A decaying EMA is measured before it falls below its stream's share of the start."""
    chosen = []
    for stream, beta in product(streams, betas):
        least = STREAMS[stream][1]
        chosen.append(Run(stream, beta, min(steps, int(math.log(least) / math.log(beta))) if least else steps))
    return chosen


@dataclass(frozen=True)
class Result:
    """Errors and drift are relative to the mean magnitude of the exact EMA; `late` and `drift` are means over samples.

    `drift`: mean of (stored - exact) * sign(exact), so that it is negative where magnitudes read too small, and the
    standard error of the mean over groups.
    """

    end: float
    late: float
    drift: float
    drift_error: float

    @staticmethod
    def of(samples: list[Tensor]) -> Result:
        """`samples`: `[3, groups]` each; sums of errors, of signed errors and of exact magnitudes."""
        error, signed, size = torch.stack(samples, 1)
        relative_error = error.sum(1) / size.sum(1)
        drift = (signed / size.mean(1, keepdim=True)).mean(0)
        deviation = float(drift.std()) / math.sqrt(len(drift))
        return Result(float(relative_error[-1]), float(relative_error.mean()), float(drift.mean()), deviation)


#: By signedness, format and run.
Results = dict[tuple[bool, str, Run], Result]


class Course:
    """The EMAs of all runs in groups of one width, and the formats that carry them."""

    def __init__(self, signed: bool, width: int, chosen: list[Run], first: Tensor):
        self.signed, self.runs, self.width = signed, chosen, width
        self.groups = min(GROUPS, first.shape[1] // width)
        normal, uniform = (row[: self.groups * width].view(self.groups, width) for row in first)
        self.constant = normal
        self.stays = torch.arange(width) == width // 3
        self.level = normal.sign() * (0.9 + 0.2 * uniform)
        starts = {"zero gradients": normal, "one stays": self.level}
        gradients = [starts.get(run.stream, torch.zeros_like(normal)) for run in chosen]
        self.start = self._moment(torch.stack(gradients))
        self.exact = self.start.double()
        self.beta = torch.tensor([run.beta for run in chosen], dtype=torch.float64).view(-1, 1, 1)
        self.storages: dict[str, Storage] = {}
        self.sums: dict[tuple[str, int], list[Tensor]] = {}
        self.due = {step: [r for r, run in enumerate(chosen) if step in run.samples()] for step in range(1, STEPS + 1)}

    def _moment(self, gradient: Tensor) -> Tensor:
        return gradient if self.signed else gradient * gradient

    def advance(self, step: int, noise: Mapping[str, Tensor]) -> None:
        """Step number `step`, counted from 1."""
        gradients = {name: row[: self.constant.numel()].view_as(self.constant) for name, row in noise.items()}
        gradients["zero gradients"] = torch.zeros_like(self.constant)
        gradients["constant"] = self.constant
        gradients["one stays"] = torch.where(self.stays, self.level, 0.0)
        new = self._moment(torch.stack([gradients[run.stream] for run in self.runs]))
        self.exact = self.beta * self.exact + (1 - self.beta) * new.double()
        decay, share = self.beta.float(), (1 - self.beta).float()
        new = share * new
        for name, storage in self.storages.items():
            storage.advance(decay, new)
            for run in self.due.get(step, ()):
                self.sums.setdefault((name, run), []).append(self._sums(run, storage.decode()[run]))

    def _sums(self, run: int, stored: Tensor) -> Tensor:
        exact, counted = self.exact[run], torch.ones(self.width, dtype=torch.bool)
        if self.runs[run].stream == "one stays":
            counted = ~self.stays
        error = stored.double() - exact
        values = torch.stack([error.abs(), error * exact.sign(), exact.abs()])
        return values[:, :, counted].sum(-1)

    def results(self) -> Results:
        return {(self.signed, name, self.runs[run]): Result.of(sums) for (name, run), sums in self.sums.items()}


def noise(elements: int, seed: int) -> tuple[Tensor, Iterator[dict[str, Tensor]]]:
    """What constants are drawn from (normal and uniform), and the random gradients of every step."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.stack([torch.randn(elements, generator=generator), torch.rand(elements, generator=generator)])

    def steps() -> Iterator[dict[str, Tensor]]:
        while True:
            normal, *others = torch.randn(5, elements, generator=generator)
            tails = others[0] / (torch.stack(others[1:]).square().sum(0) / 3).sqrt()
            yield {"normal": normal, "heavy tails": tails}

    return first, steps()


@torch.no_grad()
def courses(
    chosen: list[Format], planned: list[Run], seed: int = 0, elements: int = ELEMENTS
) -> Iterator[tuple[int, list[Course]]]:
    """The number of every step done, from 0, and all courses after it."""
    first, gradients = noise(elements, seed)
    found: dict[tuple[bool, int], Course] = {}
    for form in chosen:
        key = (form.signed, form.width)
        if key not in found:
            found[key] = Course(*key, planned, first)
        found[key].storages[form.name] = form.make(found[key].start)
    yield 0, list(found.values())
    for step in range(1, max(run.steps for run in planned) + 1):
        row = next(gradients)
        for course in found.values():
            course.advance(step, row)
        yield step, list(found.values())


def measure(chosen: list[Format], planned: list[Run], seed: int = 0) -> Results:
    *_, (_, done) = courses(chosen, planned, seed)
    return {key: result for course in done for key, result in course.results().items()}


# reporting


def percent(value: float) -> str:
    """Three significant digits, in per cent."""
    scaled = abs(100 * value)
    if not math.isfinite(scaled) or scaled >= 1e5 or 0 < scaled < 1e-3:
        return f"{100 * value:.1e}"
    return f"{100 * value:.{max(0, 2 - math.floor(math.log10(scaled))) if scaled else 0}f}"


def drift_text(result: Result) -> str:
    error = 100 * result.drift_error
    if not 1e-4 < error < 1e4:
        return f"{100 * result.drift:+.2g} ± {error:.1g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{100 * result.drift:+.{digits}f} ± {error:.{digits}f}"


def table(stream: str, signed: bool, chosen: list[Format], results: Results) -> str:
    planned = sorted({run for s, _, run in results if s == signed and run.stream == stream}, key=lambda run: run.beta)
    heads = [f"β {run.beta:g}, step {run.steps}: end | late | drift" for run in planned]
    lines = [f"| stored as | bytes | {' | '.join(heads)} |", "|" + "---|" * (2 + 3 * len(planned))]
    for form in chosen:
        if form.signed == signed:
            cells = []
            for run in planned:
                result = results[signed, form.name, run]
                cells += [percent(result.end), percent(result.late), drift_text(result)]
            lines.append(f"| {form.name} | {form.bytes_per_element:.4g} | {' | '.join(cells)} |")
    return "\n".join(lines)


#: Of the report's file, what stands above this line is written by hand and kept.
GENERATED = "<!-- Below: written by benchmarks/ema_fidelity.py. -->"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def report(chosen: list[Format], results: Results, command: str, page: Path) -> None:
    by_hand = page.read_text().partition(GENERATED)[0] if page.exists() else "# Fidelity of stored moving averages\n\n"
    sections = [
        f"{by_hand}{GENERATED}",
        f"Made by `{command}`. At every step, an exponential moving average s' = β s + (1 - β) x is decoded, updated in fp32 "
        f"and stored again. State has up to {GROUPS} groups of the codec's group size (bf16: 32) and {ELEMENTS} elements "
        "at most. Every row sees the same gradients g; signed slots have x = g, non-negative ones x = g². All columns "
        "are in per cent of the mean magnitude of the exact EMA, computed in float64. *end* is the mean |stored - exact| "
        f"after the last step. *late* is the same, averaged over {LATE_SAMPLES} steps of the last tenth. *drift* is the mean "
        "of (stored - exact) sign(exact) over the same steps, negative where magnitudes read too small, ± its standard "
        "error over groups. A decaying EMA is measured before it has fallen below 1e-30 (one stays: 1e-3) of its "
        "start, so its number of steps may be smaller. *bytes* counts an element of a large tensor. Rows marked * are our "
        "re-implementation of the formats of FlashOptim (arXiv 2602.23349: softsign int8 and square-root uint8, groups "
        "of 32, fp16 scales) and of torchao (dynamic maps in blocks of 256 with 8 bits; with 4 bits in blocks of 128, "
        "non-negative slots linear without 0; fp32 scales), rounding to nearest. They decode to the same bits as "
        "torchao 0.18.0's functions and flashoptim 0.1.4's Triton kernels (interpreted). Hardware: "
        f"{cpu_name()} (CPU, one thread), torch {torch.__version__}.",
    ]
    for stream, signed in product(STREAMS, (True, False)):
        title = f"## {stream[0].upper()}{stream[1:]}"
        sections += [f"{title}\n\n{STREAMS[stream][0]}\n\n### Signed" if signed else "### Non-negative"]
        sections.append(table(stream, signed, chosen, results))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(sections) + "\n")
    print(f"Report: {page}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="at most %(default)s")
    parser.add_argument("--only", nargs="+", default=[""], help="formats whose name has one of these in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [form for form in formats(options.seed) if any(part in form.name for part in options.only)]
    started = time.perf_counter()
    results = measure(chosen, runs(min(options.steps, STEPS)), options.seed)
    print(f"{len(chosen)} formats in {time.perf_counter() - started:.0f} s")
    changed = [f"--seed {options.seed}"] * (options.seed != 0) + [f"--steps {options.steps}"] * (options.steps != STEPS)
    report(chosen, results, " ".join(["python benchmarks/ema_fidelity.py", *changed]), options.report)


if __name__ == "__main__":
    main()
