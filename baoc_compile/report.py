"""`report`: what every block of parameters got, why, what it costs, and how good the plan is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baoc_compile.core.errors import BudgetError, OptionError, StateError
from baoc_compile.core.profile import BlockCandidate, BlockStatistics
from baoc_compile.passes.plan.solve_plan import Solution, frontier_of, solve_profile, uniform_points
from baoc_compile.runtime.configurator import configurator_of
from baoc_compile.runtime.session import known_session
from baoc_compile.state.entries import state_bytes
from baoc_compile.state.wrapped_optimizer import inside

COLUMNS: tuple[str, ...] = ("block", "tensors", "elements", "anisotropy", "stability", "noise", "SNR row/col")
COLUMNS += ("configuration", "bytes", "risk", "time")
LEFT = {"block", "configuration"}


@dataclass(frozen=True)
class Report:
    """What was decided for an optimizer. `print` it, hand it to rich, or `plot` it.

    solution: the plan that was solved last.
    history: every decision, with its reason.
    state_bytes: exact bytes of the optimizer's state now.
    seconds: time spent on sampling, solving and migrating, in seconds.
    """

    solution: Solution
    history: tuple[str, ...]
    state_bytes: int
    seconds: dict[str, float]

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row per block, largest first, in the order of `COLUMNS`."""
        profile = self.solution.profile
        together = zip(profile.blocks, profile.statistics, self.solution.chosen, strict=True)
        sizes = [sum(math.prod(profile.shapes[i]) for i in b.parameters) for b in profile.blocks]
        rows = [
            (n, (b.name, str(len(b.parameters)), f"{n:,}", *_statistics(s), *_choice(c)))
            for n, (b, s, c) in zip(sizes, together, strict=True)
        ]
        return [row for _, row in sorted(rows, key=lambda r: -r[0])]

    def totals(self) -> list[str]:
        """Return lines on the whole plan: state, step time, risk with its certificate, and sampling."""
        solution, profile = self.solution, self.solution.profile
        used, numel = solution.allocation.size_bytes, max(profile.numel, 1)
        measured = "measured" if profile.time_is_measured else "reckoned from bytes moved"
        lines = [
            f"state: {used:,} of at most {solution.budget_bytes:,} bytes, {used / max(profile.full_bytes, 1):.1%} of full "
            f"precision, {used / numel:.3f} bytes per parameter; now {self.state_bytes:,}",
            f"step: {solution.time_ns / 1e6:.3f} ms predicted ({measured})"
            + (f" of at most {solution.budget_ns / 1e6:.3f} ms" if solution.budget_ns is not None else "")
            + f"; full precision {profile.full_ns / 1e6:.3f} ms",
            f"risk: {solution.allocation.risk:.3g} nats per window of {profile.steps} steps; {solution.allocation.certificate}",
        ]
        if profile.steps:
            lines.append(
                f"sampled: {profile.sampled_elements:,} elements, {profile.sampled_bytes / 2**20:.1f} MiB of host memory; "
                + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
            )
        else:
            lines.append("nothing was sampled: risks are only the order that is expected before anything is measured")
        return lines

    def __str__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if name in LEFT else cell.rjust(width)
                for cell, width, name in zip(row, widths, COLUMNS, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.totals(), *self.history])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table()
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
        for row in self.rows():
            table.add_row(*row)
        return Group(table, *self.totals(), *self.history)

    def plot(self, path: str | Path) -> None:
        """Plot risk against bytes of state: the frontier, the chosen point, and the uniform configurations.

        Raises OptionError without matplotlib (`pip install 'baoc-compile[report]'`).
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise OptionError("plot: needs matplotlib; pip install 'baoc-compile[report]'") from error
        profile, numel = self.solution.profile, max(self.solution.profile.numel, 1)
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        points = frontier_of(profile)
        smallest = min((risk for _, risk in points if risk > 0.0), default=1e-9)
        axes.step(
            [size / numel for size, _ in points], [r for _, r in points], where="post", label="frontier, by block"
        )
        for label, size, risk in uniform_points(profile):
            axes.plot(size / numel, risk, "o", color="gray", markersize=4)
            axes.annotate(label, (size / numel, risk), fontsize=7, xytext=(4, 3), textcoords="offset points")
        chosen = self.solution.allocation
        axes.plot(chosen.size_bytes / numel, chosen.risk, "*", color="C3", markersize=13, label="chosen", zorder=3)
        axes.axvline(self.solution.budget_bytes / numel, color="C3", linewidth=0.8, linestyle=":", label="budget")
        axes.plot([], [], "o", color="gray", markersize=4, label="uniform")
        axes.set_xscale("symlog", linthresh=0.25, base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yscale("symlog", linthresh=smallest)
        axes.set_xlabel("bytes of optimizer state per parameter")
        axes.set_ylabel(f"risk (nats per window of {profile.steps} steps)")
        axes.legend()
        figure.savefig(path, dpi=150)


def _statistics(s: BlockStatistics) -> tuple[str, ...]:
    ratios = [f"{v.get('row', math.nan):.2g}/{v.get('column', math.nan):.2g}" for v in (s.snr or {}).values()]
    return f"{s.anisotropy:.2f}", f"{s.stability:.3f}", f"{s.noise:.1f}", ", ".join(ratios)


def _choice(c: BlockCandidate) -> tuple[str, ...]:
    return c.label, f"{c.size_bytes:,}", f"{c.risk:.1e}", f"{c.time_ns / 1e3:.1f} us"


def report(optimizer: Any) -> Report:
    """Return the report of the plan that was solved last; before the first, that of the starting plan.

    optimizer: the optimizer, or a wrapper that has it inside.

    Raises StateError before the first step, and for an optimizer that follows a named plan.
    """
    optimizer = inside(optimizer)
    session, configurator = known_session(optimizer), configurator_of(optimizer)
    if session is None or configurator is None or session.request.budget is None:
        raise StateError(
            "report: this optimizer plans nothing by itself: prepare it with a memory_budget rather than a plan, and call "
            "its step"
        )
    solution = configurator.solution
    if solution is None:
        if session.own is None or not session.own.rules:
            raise StateError("report: call the optimizer's step once")
        profile = configurator.profile_now(session.own.rules)
        try:
            solution = solve_profile(profile, session.request.budget, configurator.planner.time_budget)
        except BudgetError as error:
            raise StateError(f"report: no plan fits: {error}") from error
        solution = solution.kept()
    return Report(solution, tuple(configurator.history), state_bytes(optimizer), dict(configurator.seconds))
