"""docs/zoo.md from the results of `run.py`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from measure import BUDGET, COSINE, ERROR, ROUNDING, STEPS
from paired import machine
from paths import DOCS
from training import SHAPES

MARK = "<!-- Written by benchmarks/zoo/run.py from here -->\n"
LEARNING = "<!-- Written by benchmarks/zoo/language.py from here -->\n"


def is_right(run: Mapping[str, Any]) -> bool:
    return not run["raised"] and run["cosine"] >= COSINE and run["error"] <= ERROR


def verdict(result: Mapping[str, Any]) -> str:
    """Return what a variant does under the budget, in one word or two."""
    if result.get("crashed"):
        return "crashed"
    if result["eager"]:
        return "not run"
    full, small, simulated = (result["runs"][name] for name in ("fp32", BUDGET, "simulated"))
    if full["raised"] or small["raised"]:
        return "raises"
    if full["error"] > _rounding(result):
        return "wrong in fp32"
    if not is_right(small):
        if not is_right(simulated):
            return "off, as simulated"
        return "off, warned" if any("off in a trial" in notice for notice in small["notices"]) else "wrong"
    if not result["bytes"]:
        return "no state"
    return "right" if small["bytes"] <= 0.31 * result["bytes"] else "right, larger"


def _rounding(result: Mapping[str, Any]) -> float:
    """Return how far updates in full precision may be off: as far as the types round in which eager keeps its state."""
    return max([ROUNDING, *(torch.finfo(getattr(torch, name)).eps for name in result.get("types", ()))])


def way(result: Mapping[str, Any]) -> str:
    run = result["runs"][BUDGET]
    return "as written" if run["refused"] else "replay" if run["replays"] else "programs"


ORDER = (
    "right",
    "no state",
    "right, larger",
    "off, as simulated",
    "off, warned",
    "wrong",
    "wrong in fp32",
    "raises",
    "crashed",
    "not run",
)


def write_report(known: Mapping[str, Any]) -> None:
    """Write the tables."""
    packages: dict[str, list[Any]] = defaultdict(list)
    for name, result in known.items():
        packages[name.split(":")[0]].append(result)
    lines = [f"{machine()['cpu']}, torch {torch.__version__}; {STEPS} steps, shapes {SHAPES}.", ""]
    lines += ["| package | variants | " + " | ".join(ORDER) + " |", "|---" * (len(ORDER) + 2) + "|"]
    total: Counter[str] = Counter()
    for package, results in packages.items():
        counts = Counter(map(verdict, results))
        total += counts
        lines.append(f"| {package} | {len(results)} | " + " | ".join(str(counts[v] or "") for v in ORDER) + " |")
    lines.append(f"| **all** | {len(known)} | " + " | ".join(str(total[v] or "") for v in ORDER) + " |")
    ran = [r for r in known.values() if verdict(r) not in ("not run", "crashed", "raises")]
    ways = Counter(map(way, ran))
    lines += ["", "How the steps ran under the budget: " + ", ".join(f"{n} {w}" for w, n in ways.most_common()) + "."]
    for name in ways:
        ratios = [r["runs"][BUDGET]["seconds"] / max(r["seconds"], 1e-6) for r in ran if way(r) == name]
        lines.append(
            f"Time of a training step, over eager's, {name}: median {median(ratios):.2f}, largest {max(ratios):.2f}."
        )
    lines += ["", "## What is not right, or larger than the budget", ""]
    lines += ["Variants that differ by an option only are counted together.", ""]
    lines += ["| optimizer | variants | verdict | cosine | error | bytes | why |", "|---|---|---|---|---|---|---|"]
    groups: dict[Any, list[Any]] = defaultdict(list)
    for name, result in known.items():
        if verdict(result) not in ("right", "no state", "not run"):
            groups[re.sub(r"\[.*", "", name), verdict(result)].append(result)
    for (name, what), results in sorted(groups.items(), key=lambda item: (ORDER.index(item[0][1]), item[0][0])):
        lines.append(_row(name, what, results))
    before, _, _ = _page().partition(MARK)
    (DOCS / "zoo.md").write_text(before + MARK + "\n" + "\n".join(lines) + "\n")


def write_learning(results: list[dict[str, Any]]) -> None:
    """Write the table of losses, which stands before the others."""
    lines = ["| optimizer | eager | under the budget | difference |", "|---|---|---|---|"]
    for name in dict.fromkeys(r["name"] for r in results):
        runs = [r for r in results if r["name"] == name]
        failed = next((r["error"] for r in runs if "error" in r), "")
        if failed:
            lines.append(f"| {name} | | | {failed} |")
            continue
        eager, ours = ([r["loss"] for r in runs if r["prepared"] is prepared] for prepared in (False, True))
        shown = [", ".join(f"{loss:.4f}" for loss in losses) for losses in (eager, ours)]
        differences = ", ".join(f"{b - a:+.4f}" for a, b in zip(eager, ours, strict=True))
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {differences} |")
    before, _, rest = _page().partition(LEARNING)
    _, mark, after = rest.partition(MARK)
    table = "\n".join(lines)
    (DOCS / "zoo.md").write_text(f"{before}{LEARNING}\n{table}\n\n{mark or MARK}{after}")


def _page() -> str:
    return (DOCS / "zoo.md").read_text() if (DOCS / "zoo.md").exists() else LEARNING + MARK


def _row(name: str, what: str, results: list[Any]) -> str:
    first = results[0]
    if what == "crashed":
        return f"| {name} | {len(results)} | {what} | | | | {first['crashed']} |"
    run = first["runs"][BUDGET]
    why = run["raised"] or first["runs"]["fp32"]["raised"] or " ".join(n for n in run["notices"] if "trial" in n)
    why = why or run["refused"] or " ".join(run["notices"])
    share = f"{run['bytes'] / first['bytes']:.0%}" if first["bytes"] else ""
    short = why.replace("|", "/").replace("\n", " ")[:160]
    return f"| {name} | {len(results)} | {what} | {run['cosine']:.4f} | {run['error']:.3g} | {share} | {short} |"
