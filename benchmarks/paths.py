"""Where benchmarks write: raw results to benchmarks/results/, pages and plots to docs/."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def shown_at(results: Path, suffix: str) -> Path:
    """The page (".md") or plot (".png") of a file of results: in docs/ if that lies in RESULTS, else beside it."""
    folder = DOCS if results.resolve().parent == RESULTS else results.parent
    return folder / f"{results.stem}{suffix}"
