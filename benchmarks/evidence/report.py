"""The page of the evidence, docs/evidence.md, and its figures, from whatever runs there are.

python benchmarks/evidence/report.py [--results benchmarks/results/evidence.jsonl]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paths import RESULTS, shown_at

from evidence.compare import Comparison, Row, compare
from evidence.contenders import CONTENDERS
from evidence.contenders.contender import BASELINE, OURS, RIVAL
from evidence.figures import draw_curves, draw_gaps
from evidence.records import Records, read
from evidence.workloads import WORKLOADS

SEEDS = 3  # of every contender in a complete page

#: Of the page, what stands above this line is written by hand and kept.
GENERATED = "<!-- Below: written by benchmarks/evidence/report.py. -->"


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _gap(row: Row, loss: float) -> str:
    if row.gap is None:
        return "–"
    percent = f"({100 * row.gap.mean / loss:+.2f} %)"
    width = "" if math.isnan(row.gap.half) else f" ± {row.gap.half:.4f}"
    return f"{row.gap.mean:+.4f}{width} {percent}"


def _verdict(row: Row) -> str:
    if row.gap is not None:
        return row.gap.verdict()
    return "–" if row.kind == BASELINE else "diverged"


def table(comparison: Comparison) -> str:
    """Return all runs of a workload, one contender a line."""
    lines = [
        "| contender | bytes a parameter | learning rate | loss by seed | gap to fp32 | which is | other learning rates |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in comparison.rows:
        losses = ", ".join(_loss(loss) for loss in row.losses.values())
        others = ", ".join(f"{lr:.3g}: {_loss(loss)}" for lr, loss in row.other_losses.items())
        name = f"**{row.contender}**" if row.kind == OURS else row.contender
        lines.append(
            f"| {name} | {row.bytes_per_parameter:.3f} | {row.lr:.3g}{' (at an end)' * row.is_at_end} | {losses} | "
            f"{_gap(row, comparison.loss)} | {_verdict(row)} | {others} |"
        )
    return "\n".join(lines)


def summary(comparisons: Sequence[Comparison]) -> str:
    """Return on how many workloads each contender is better and worse than fp32."""
    lines = [
        "| contender | better on | worse on | no difference shown on | one seed, or diverged |",
        "|---|---|---|---|---|",
    ]
    for name in CONTENDERS:
        found: dict[str, list[str]] = {}
        for comparison in comparisons:
            for row in comparison.rows:
                if row.contender == name and row.kind != BASELINE:
                    found.setdefault(_verdict(row), []).append(comparison.workload)
        if found:
            cells = [", ".join(found.get(verdict, ())) for verdict in ("better", "worse", "no difference shown")]
            rest = ", ".join(found.get("one seed", []) + [f"{w} (diverged)" for w in found.get("diverged", [])])
            lines.append(f"| {name} | {' | '.join(cells)} | {rest} |")
    return "\n".join(lines)


def missing(records: Records) -> list[str]:
    """Return what a complete page would have besides, a line a workload."""
    lines = []
    for name, workload in WORKLOADS.items():
        found = compare(name, records)
        ran = {row.contender: row for row in found.rows} if found else {}
        failed = found.failed if found else {}
        gaps = []
        for contender in CONTENDERS.values():
            if workload.rule.name not in contender.make or contender.name in failed:
                continue
            row = ran.get(contender.name)
            seeds = [str(seed) for seed in range(SEEDS) if row is None or seed not in row.losses]
            if row is None or len(seeds) == SEEDS:
                gaps.append(contender.name)
            elif seeds:
                gaps.append(f"{contender.name} (seed {', '.join(seeds)})")
            elif contender.kind == RIVAL and len(row.other_losses) < len(contender.factors) - 1:
                gaps.append(f"{contender.name} (learning rates)")
        if gaps:
            lines.append(f"- **{name}**: {', '.join(gaps)}.")
    return lines


def write_report(records: Records, results: Path) -> Path | None:
    """Write the page and its figures; return where, or None if there is nothing to compare."""
    comparisons = [found for name in WORKLOADS if (found := compare(name, records))]
    if not comparisons:
        return None
    page, gaps = shown_at(results, ".md"), shown_at(results, ".png")
    curves = gaps.with_name(f"{gaps.stem}_curves.png")
    draw_gaps(comparisons, gaps)
    draw_curves(comparisons, curves)
    by_hand = (
        page.read_text().partition(GENERATED)[0] if page.exists() else "# Evidence: whole trainings, beside rivals\n\n"
    )
    ran = [record for record in records.values() if "error" not in record]
    cpus, releases, versions = (" and ".join(sorted({run[field] for run in ran})) for field in ("cpu", "torch", "code"))
    sections = [
        f"{by_hand}{GENERATED}",
        "Made by `python benchmarks/evidence/run.py` and `benchmarks/evidence/report.py`. Every run is one training in one "
        "thread, from the seed's weights on the seed's batches. The learning rate warms up over a tenth of the steps, then "
        "follows a cosine to 0; gradients are clipped to norm 1. fp32 is torch's own optimizer; its learning rate is the best "
        "of a grid, which is widened while the best is at an end. Ours runs with the same one. A rival has a grid of three "
        "around its authors' advice, and *at an end* says that the best of them was the smallest or the largest. The gap is the "
        "validation loss minus fp32's with the same seed: its mean, half its 95 % confidence interval (t), and the mean "
        "in per cent of fp32's loss. A contender *is* better or worse if the interval leaves out 0. Of some 25 contenders a "
        f"workload, about one would be called so by chance. {len(ran)} runs. Hardware: {cpus} (CPU), torch {releases}. "
        f"Code: {versions}.",
        f"![gap to fp32 against bytes of state per parameter]({gaps.name})",
        f"![training losses, and their difference to fp32]({curves.name})",
        "## Better and worse than fp32",
        summary(comparisons),
        "## Contenders",
        "\n".join(f"- **{contender.name}**: {contender.about}." for contender in CONTENDERS.values()),
        "## Missing",
        "\n".join(missing(records)) or "Nothing.",
    ]
    for comparison in comparisons:
        workload = WORKLOADS[comparison.workload]
        some = next(iter(comparison.runs.values()))
        sections += [
            f"## {workload.name}",
            f"{workload.about[0].upper()}{workload.about[1:]}. {some['parameters']:,} trained parameters, {workload.rule.name}, "
            f"{workload.steps} steps at batch size {workload.batch_size}. The loss is {workload.loss}.",
            table(comparison),
        ]
        if comparison.failed:
            sections.append("\n".join(f"- {name} did not run: {error}." for name, error in comparison.failed.items()))
    page.write_text("\n\n".join(sections) + "\n")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "evidence.jsonl")
    options = parser.parse_args()
    page = write_report(read(options.results), options.results)
    print(f"Report: {page}" if page else f"No run of fp32 in {options.results}: no report.")


if __name__ == "__main__":
    main()
