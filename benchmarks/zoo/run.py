"""Step the optimizers of torch and of packages with and without baoc, and write docs/zoo.md.

Each variant runs in a process of its own; results are kept in benchmarks/results/zoo.json, so a run that was stopped
goes on where it was. `--again` measures all anew.

    python benchmarks/zoo/run.py [--packages torch timm] [--match Adam] [--again] [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import deque
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # helpers that are compiled: the same in eager, without the minutes

from catalogue import PACKAGES, variants
from measure import measure
from paths import RESULTS
from report import write_report

SECONDS = 60  # for one variant
FILE = RESULTS / "zoo.json"


def _run(variant: Any, out: Connection) -> None:
    out.send(measure(variant))
    out.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="*", default=[p for p in PACKAGES if find_spec(p) is not None])
    parser.add_argument("--match", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    found = [v for package in arguments.packages for v in variants(package) if arguments.match in str(v)]
    waiting = deque(v for v in found if arguments.again or str(v) not in known)
    context = multiprocessing.get_context("fork")
    running: list[tuple[Any, Any, Connection, float]] = []
    while waiting or running:
        while waiting and len(running) < arguments.processes:
            variant = waiting.popleft()
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(variant, send), daemon=True)
            process.start()
            send.close()
            running.append((variant, process, receive, time.monotonic()))
        time.sleep(0.02)
        for entry in list(running):
            variant, process, receive, began = entry
            outcome: dict[str, Any] | None = None
            if receive.poll():
                try:
                    outcome = receive.recv()
                except EOFError:
                    outcome = {"name": str(variant), "crashed": f"exit code {process.exitcode}"}
            elif time.monotonic() - began > SECONDS:
                outcome = {"name": str(variant), "crashed": f"not done after {SECONDS} s"}
            if outcome is None:
                continue
            process.kill()
            process.join()
            running.remove(entry)
            known[str(variant)] = outcome
            _say(outcome)
            lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in known.items())
            FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    write_report(known)


def _say(outcome: dict[str, Any]) -> None:
    runs = outcome.get("runs", {})
    text = outcome.get("crashed") or outcome.get("eager") or ""
    for name, run in runs.items():
        text += f" {name}: " + (run["raised"][:60] or f"{run['cosine']:.4f} {run['error']:.3g}")
    print(f"{outcome['name']:60s}{text}", flush=True)


if __name__ == "__main__":
    main()
