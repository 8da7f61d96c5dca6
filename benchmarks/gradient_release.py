"""Peak bytes of gradients and state on a 12-layer transformer, with gradient release and without.

Gradients are counted exactly: hooks on all parameters, which run before those of the release, add up the bytes of every
`p.grad` that exists at that moment. So each peak includes the gradient that has just come. State is counted by
`state_bytes`, at the same moments. Steps are timed as a whole (forward, backward, step, `zero_grad`), contenders in turns.
The aim: with release, the peak is at most 1.3 times the bytes of the largest part plus state. Writes gradient_release.json
and gradient_release.md.

    python benchmarks/gradient_release.py [--width 128] [--rounds 12] [--device cpu]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paired import machine
from paths import RESULTS, shown_at
from torch import nn

import baoc_compile
from baoc_compile import GradientRelease
from baoc_compile.release_gradients import Released

LAYERS, VOCABULARY, TOKENS, WARMUP = 12, 2_048, 64, 3
MOST = 1.3  # times the largest part, plus state

#: Contender -> plan (None: torch alone), and whether gradients are released.
CONTENDERS: dict[str, tuple[str | None, bool]] = {
    "torch": (None, False),
    "fp32": ("fp32", False),
    "fp32, released": ("fp32", True),
    "8bit": ("8bit", False),
    "8bit, released": ("8bit", True),
}


class Model(nn.Module):
    """A decoder of 12 layers over a small vocabulary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, max(width // 64, 1), 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.layers(self.embedding(tokens)))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Training:
    """One contender: it trains, and knows the peaks of its gradients and of its gradients and state together."""

    def __init__(self, plan: str | None, released: bool, width: int, device: str):
        torch.manual_seed(0)
        self.model = Model(width).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.tokens = torch.randint(VOCABULARY, (2, TOKENS), device=device)
        self.parameters = list(self.model.parameters())
        if plan is not None:
            baoc_compile.prepare(self.optimizer, plan=plan)
        self.most_grad_bytes = self.most_bytes = 0
        self.counts = False
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._count)
        self.release: GradientRelease | None = None
        if released:
            self.release = baoc_compile.release_gradients(self.optimizer)

    def _count(self, _: Any) -> None:
        if self.counts:
            grads = [p.grad for p in self.parameters if p.grad is not None and not isinstance(p.grad, Released)]
            size = sum(g.numel() * g.element_size() for g in grads)
            self.most_grad_bytes = max(self.most_grad_bytes, size)
            self.most_bytes = max(self.most_bytes, size + baoc_compile.state_bytes(self.optimizer))

    def step(self) -> None:
        self.model(self.tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def largest_part_bytes(self) -> int:
        """Return the bytes of the largest part; without release, of all gradients."""
        parts = [self.parameters] if self.release is None else [part.parameters for part in self.release.parts]
        return max(sum(p.numel() * p.element_size() for p in part) for part in parts)


def seconds(step: Callable[[], None], device: str) -> float:
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def run(width: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Return what every contender takes."""
    runs = {name: Training(*given, width, device) for name, given in CONTENDERS.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for training in runs.values():
        for _ in range(WARMUP):
            training.step()
        training.counts = True
        training.step()
        training.counts = False
    for _ in range(rounds):
        for name, training in runs.items():
            taken[name].append(seconds(training.step, device))
    return [_entry(name, training, taken[name]) for name, training in runs.items()]


def _entry(name: str, training: Training, taken: list[float]) -> dict[str, Any]:
    return {
        "contender": name,
        "parameters": sum(p.numel() for p in training.parameters),
        "parts": 1 if training.release is None else len(training.release.parts),
        "largest_part_bytes": training.largest_part_bytes(),
        "grad_bytes": training.most_grad_bytes,
        "state_bytes": baoc_compile.state_bytes(training.optimizer),
        "peak_bytes": training.most_bytes,
        "seconds": statistics.median(taken),
        "weights": hashlib.sha256(
            b"".join(p.detach().cpu().numpy().tobytes() for p in training.parameters)
        ).hexdigest(),
    }


def missed(results: list[dict[str, Any]]) -> list[str]:
    """Return which aims were missed."""
    found = []
    by_name = {entry["contender"]: entry for entry in results}
    for name, entry in by_name.items():
        if not name.endswith(", released"):
            continue
        limit = MOST * entry["largest_part_bytes"] + entry["state_bytes"]
        if entry["peak_bytes"] > limit:
            found.append(f"{name}: a peak of {entry['peak_bytes']:,} bytes, aim {limit:,.0f}")
        if entry["weights"] != by_name[name.removesuffix(", released")]["weights"]:
            found.append(f"{name}: other weights than without release")
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the page: what ran, and a table."""
    about, results = report["machine"], report["results"]
    where = about["cpu"] + (f", {about['gpu']}" if report["device"] == "cuda" else "")
    lines = [
        "# Gradient release",
        "",
        f"AdamW on a transformer of {LAYERS} layers, {results[0]['parameters']:,} parameters; {where}, 1 thread; python "
        f"{about['python']}, torch {about['torch']}.",
        "Bytes per parameter. *gradients*: the most that are alive at a time; *peak*: the most of gradients and state "
        "together; *largest part*: the",
        "gradients that are stepped together. *ms*: forward, backward and step, the median of "
        f"{report['rounds']} rounds. Made by",
        "`benchmarks/gradient_release.py`, which describes the method.",
        "",
        "| contender | parts | largest part | gradients | state | peak | ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in results:
        sizes = (
            entry[k] / entry["parameters"] for k in ("largest_part_bytes", "grad_bytes", "state_bytes", "peak_bytes")
        )
        shown = [entry["contender"], f"{entry['parts']}", *(f"{s:.2f}" for s in sizes), f"{1e3 * entry['seconds']:.1f}"]
        lines.append("| " + " | ".join(shown) + " |")
    lines += ["", "With and without release, the weights have the same bits."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = run(options.width, options.rounds, options.device)
    asked = {"width": options.width, "rounds": options.rounds, "device": options.device}
    report: dict[str, Any] = {"machine": machine(), **asked, "results": results}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("gradient_release_cuda.json" if options.device == "cuda" else "gradient_release.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    failed = missed(results)
    if failed:
        print(*(f"missed: {aim}" for aim in failed), sep="\n")
        return 1
    shown_at(path, ".md").write_text(markdown(report))
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
