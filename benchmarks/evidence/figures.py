"""The figures of the page: loss gap against bytes, and training curves laid over the baseline's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evidence.compare import Comparison, Row
from evidence.contenders import CONTENDERS
from evidence.contenders.contender import OURS, RIVAL
from evidence.contenders.ours import BUDGETS, REFERENCE

NO_STATE = 0.03  # bytes per parameter at which contenders without state are drawn
PERCENT_TICKS = (-10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100)
LINEAR = 0.3  # per cent of gap, up to which the scale is linear
CURVES = ("8bit", "4bit", "1.1 B/param", "0.5 B/param", "0.3 B/param")
OUR_COLOR = "tab:blue"
PLANS = frozenset(contender.name for contender in BUDGETS)
MARKERS = "sD^vP*X<>phd8H"


def _panels(
    count: int, most_columns: int, width: float, height: float, rows: int = 1
) -> tuple[Figure, list[list[Any]]]:
    """Return a figure, and for each of `count` panels its axes, `rows` of them one above the other."""
    columns = min(most_columns, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns + 2, max(height * lines, 6)), layout="constrained")
    axes = figure.subplots(rows * lines, columns, squeeze=False)
    found = [[axes[rows * (i // columns) + r][i % columns] for r in range(rows)] for i in range(count)]
    used = {id(one) for some in found for one in some}
    for one in axes.flat:
        one.set_visible(id(one) in used)
    return figure, found


def frontier(rows: Sequence[Row]) -> list[Row]:
    """Return ours that have a smaller gap than all of ours with fewer bytes, from fewest bytes to most."""
    found: list[Row] = []
    for row in sorted((r for r in rows if r.kind == OURS and r.gap), key=lambda r: r.bytes_per_parameter):
        assert row.gap is not None
        if all(row.gap.mean < other.gap.mean for other in found if other.gap):
            found.append(row)
    return found


def draw_gaps(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the gap to the baseline against bytes per parameter, one panel a workload."""
    figure, panels = _panels(len(comparisons), 2, 6.5, 3.6)
    rivals = [name for name, contender in CONTENDERS.items() if contender.kind == RIVAL]
    handles: dict[str, Any] = {}
    for comparison, (axes,) in zip(comparisons, panels, strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        exact = comparison.rows[0].bytes_per_parameter
        handles["fp32"] = axes.plot(exact, 0, color="black", marker="o", linestyle="none", zorder=4)[0]
        for row in comparison.rows:
            if row.gap is None:
                continue
            x = max(row.bytes_per_parameter, NO_STATE)
            y = 100 * row.gap.mean / comparison.loss
            error = 0.0 if math.isnan(row.gap.half) else 100 * row.gap.half / comparison.loss
            name = row.contender
            if row.kind == OURS:
                name = "our plans" if name in PLANS else "our formats"
                style: dict[str, Any] = {"color": OUR_COLOR, "marker": "o", "markersize": 5, "zorder": 3}
                style["markerfacecolor"] = OUR_COLOR if name == "our plans" else "white"
            else:
                index = rivals.index(name)
                style = {"color": f"C{1 + index % 9}", "marker": MARKERS[index % len(MARKERS)], "markersize": 6}
            axes.errorbar(x, y, error, linestyle="none", elinewidth=1, alpha=0.35, color=style["color"])
            (handles[name],) = axes.plot(x, y, linestyle="none", **style)
        line = frontier(comparison.rows)
        (drawn,) = axes.plot(
            [row.bytes_per_parameter for row in line],
            [100 * row.gap.mean / comparison.loss for row in line if row.gap],
            color=OUR_COLOR,
            linewidth=1.2,
        )
        handles["our frontier"] = drawn
        axes.set_xscale("log")
        axes.set_xlim(0.8 * NO_STATE, 10)
        axes.set_xticks([NO_STATE, 0.1, 0.3, 1, 2, 4, 8], ["none", "0.1", "0.3", "1", "2", "4", "8"])
        axes.set_xticks([], minor=True)
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.7)
        low, high = axes.get_ylim()
        axes.set_ylim(min(1.5 * low, -LINEAR), max(1.5 * high, LINEAR))
        shown = [tick for tick in PERCENT_TICKS if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        axes.set_yticks(shown, [f"{tick:+g}" if tick else "0" for tick in shown])
        axes.set_yticks([], minor=True)
        axes.grid(alpha=0.2)
        axes.set_title(f"{comparison.workload} (fp32: {comparison.loss:.4g})")
    figure.supxlabel("bytes of optimizer state per parameter")
    figure.supylabel("gap to fp32, % of its validation loss")
    order = [name for name in ("fp32", "our plans", "our formats", "our frontier", *rivals) if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside right upper")
    figure.savefig(path, dpi=110)


def draw_curves(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw training losses above, and below what they differ by from the baseline's of the same seed."""
    figure, panels = _panels(len(comparisons), 4, 4.0, 4.6, rows=2)
    handles: dict[str, Any] = {}
    for comparison, (above, below) in zip(comparisons, panels, strict=True):
        exact = {seed: run["curve"] for (name, seed), run in comparison.runs.items() if name == REFERENCE.name}
        for index, name in enumerate((REFERENCE.name, *CURVES)):
            style: dict[str, Any] = {"color": f"C{index - 1}" if index else "black", "linewidth": 1 if index else 2.5}
            curves = {s: run["curve"] for (other, s), run in comparison.runs.items() if other == name and s in exact}
            if not curves:
                continue
            steps = [point[0] for point in next(iter(exact.values()))]
            losses = [[point[1] for point in curve] for curve in curves.values()]
            means = [statistics.fmean(column) for column in zip(*losses, strict=False)]
            (handles[name],) = above.plot(steps[: len(means)], means, **style)
            gaps = [[a[1] - b[1] for a, b in zip(curve, exact[s], strict=False)] for s, curve in curves.items()]
            apart = [100 * statistics.fmean(c) / m for c, m in zip(zip(*gaps, strict=False), means, strict=False)]
            below.plot(steps[: len(apart)], apart, **style)
        above.set_yscale("log")
        above.set_title(comparison.workload)
        above.yaxis.set_major_formatter("{x:.3g}")
        above.yaxis.set_minor_formatter("{x:.3g}")
        above.tick_params(axis="y", which="both", labelsize=7)
        above.set_xticklabels([])
        above.set_ylabel("training loss")
        below.set_ylabel("% above fp32")
        below.set_xlabel("step")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    figure.savefig(path, dpi=110)
