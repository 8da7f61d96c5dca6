"""The plot of step_time.py: ratios to torch's fused step, one panel per model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Bars from 1 to the median ratio, whiskers over the quartiles; words where there is no figure."""
    results = report["results"]
    models, names, counts = (
        list(dict.fromkeys(entry[field] for entry in results)) for field in ("model", "contender", "threads")
    )
    figure = Figure(figsize=(4 * len(models) + 2, 0.35 * len(names) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    height = 0.8 / len(counts)
    for axes, model in zip(panels, models, strict=True):
        axes.set_xscale("log", base=2)
        axes.axvline(1, color="gray", linewidth=0.5)
        for entry in results:
            if entry["model"] != model:
                continue
            series = counts.index(entry["threads"])
            place = names.index(entry["contender"]) + (series - (len(counts) - 1) / 2) * height
            if entry["status"] == "ran":
                ratio = entry["ratio"]
                middle = ratio["median"]
                whisker = [[middle - ratio["low"]], [ratio["high"] - middle]]
                axes.barh(place, middle - 1, height, left=1, color=f"C{series}", xerr=whisker, error_kw={"lw": 0.8})
            else:
                axes.text(1.02, place, entry["status"].partition(":")[0], va="center", fontsize=6)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.5), max(high, 2.0))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(model)
        axes.set_xlabel("step time / torch fused")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    labels = [f"{n} thread{'s' if n > 1 else ''}" for n in counts]
    handles = [panels[0].barh([0], [0], left=1, color=f"C{i}") for i in range(len(counts))]
    figure.legend(handles, labels, loc="outside right upper")
    host = report["machine"]
    figure.suptitle(f"{host['gpu'] or host['cpu']}, torch {host['torch']}", fontsize=9)
    figure.savefig(path, dpi=150)
