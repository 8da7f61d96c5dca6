"""Train a byte-level GPT twice from one seed: with AdamW in fp32, and with the same AdamW under a memory budget.

    python examples/train_language_model.py --budget 15% --steps 400

The second run starts with one configuration for all parameters. It samples gradients, and then gives every block of
parameters its own configuration; the report shows which, and why. Both runs start from the same weights and see the
same batches, so their losses can be compared step by step.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import baoc_compile
from language_model import GPT, evaluate, load_corpus, random_batches


@dataclass
class Run:
    """The result of one training run.

    name: label in table and plot.
    optimizer: the optimizer after the last step.
    parameters: number of the model's parameters.
    train_losses: training loss by step, in nats per byte.
    validation_loss: loss after the last step, in nats per byte.
    step_ms: median time of the optimizer's step, in milliseconds.
    """

    name: str
    optimizer: torch.optim.Optimizer
    parameters: int
    train_losses: list[float]
    validation_loss: float
    step_ms: float

    @property
    def state_bytes(self) -> int:
        """Exact bytes of the optimizer's state."""
        return baoc_compile.state_bytes(self.optimizer)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of the optimizer's state per parameter."""
        return self.state_bytes / self.parameters


def warmup_then_cosine(steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate by step: a linear warm-up over a tenth of the steps, capped by a cosine to 0."""
    warmup = max(1, steps // 10)
    return lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2)


def train(
    name: str, corpus: tuple[Tensor, Tensor], args: argparse.Namespace, progress: Progress, compress: bool
) -> Run:
    """Train one model and return the result; `compress` selects AdamW under the memory budget."""
    train_bytes, validation_bytes = corpus
    torch.manual_seed(args.seed)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(args.steps))
    if compress:
        baoc_compile.prepare(
            optimizer, model=model, memory_budget=args.budget, seed=args.seed, warmup_steps=args.warmup
        )

    train_losses, step_ms = [], []
    task = progress.add_task(name, total=args.steps, loss=math.nan)
    for inputs, targets in islice(random_batches(train_bytes, args.batch_size, args.seed), args.steps):
        optimizer.zero_grad()
        loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        start = time.perf_counter()
        optimizer.step()
        step_ms.append(1e3 * (time.perf_counter() - start))
        scheduler.step()
        train_losses.append(loss.item())
        progress.update(task, advance=1, loss=train_losses[-1])

    return Run(
        name=name,
        optimizer=optimizer,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_losses=train_losses,
        validation_loss=evaluate(model, validation_bytes),
        step_ms=statistics.median(step_ms[args.steps // 10 :]),  # without the first steps, which compile
    )


def comparison(runs: list[Run]) -> Table:
    """Return a table with one row per run."""
    table = Table("optimizer", title="One model, one seed, the same batches")
    for column in ("state bytes", "bytes/param", "validation loss", "ms per step"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            run.name,
            f"{run.state_bytes:,}",
            f"{run.bytes_per_parameter:.3f}",
            f"{run.validation_loss:.4f}",
            f"{run.step_ms:.2f}",
        )
    return table


def plot(runs: list[Run], path: Path) -> None:
    """Plot the training losses of both runs, and their difference."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, difference = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for run, linewidth in zip(runs, (2.5, 0.9), strict=True):  # the curves all but coincide
        label = f"{run.name}: {run.bytes_per_parameter:.2f} bytes per parameter, validation {run.validation_loss:.3f}"
        losses.plot(run.train_losses, label=label, linewidth=linewidth)
    losses.set_ylabel("training loss (nats per byte)")
    losses.legend()
    exact, compressed = (torch.tensor(run.train_losses) for run in runs)
    difference.axhline(0, color="gray", linewidth=0.5)
    difference.plot(compressed - exact, color="C1", linewidth=0.9)
    difference.set_ylabel("difference")
    difference.set_xlabel("step")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train both runs, print the report and the comparison, and save the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="15%", help='optimizer state: "15%%" of fp32, "2.2 B/param" or "3 MiB"')
    parser.add_argument("--warmup", type=int, default=100, help="steps before the plan is solved")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="where the loss curves go")
    args = parser.parse_args()

    console = Console(width=max(160, Console().width) if not sys.stdout.isatty() else None)
    corpus = load_corpus()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as progress:
        exact = train("AdamW, fp32", corpus, args, progress, compress=False)
        compressed = train(f"AdamW, baoc {args.budget}", corpus, args, progress, compress=True)

    print(baoc_compile.inspect(compressed.optimizer))
    report = baoc_compile.report(compressed.optimizer)
    console.print(report)
    console.print(comparison([exact, compressed]))
    share = compressed.state_bytes / exact.state_bytes
    difference = compressed.validation_loss - exact.validation_loss
    console.print(f"State: {share:.1%} of fp32. Validation loss: {difference:+.4f} nats against fp32.")
    plot([exact, compressed], args.out)
    frontier = args.out.with_stem(f"{args.out.stem}_frontier")
    report.plot(frontier)
    console.print(f"Both curves: {args.out.resolve()}")
    console.print(f"Every budget's best plan, and this one: {frontier.resolve()}")


if __name__ == "__main__":
    main()
