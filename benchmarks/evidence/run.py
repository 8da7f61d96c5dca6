"""Train every workload with every contender, and write docs/evidence.md. It can be stopped and started at any time.

Every finished run is a line of the results. What is there is not run again; a run that failed is there with its error.

    python benchmarks/evidence/run.py [--workloads gpt vit] [--contenders fp32 8bit] [--seeds 3] [--processes 2]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from paths import RESULTS, ROOT

from evidence.contenders import CONTENDERS
from evidence.contenders.ours import REFERENCE
from evidence.records import append, read
from evidence.report import write_report
from evidence.schedule import Order
from evidence.train import Job, train
from evidence.workloads import WORKLOADS

QUICK = {"workloads": ["vit"], "contenders": ["fp32", "8bit", "4bit", "0.5 B/param"], "seeds": 3}


def code_version() -> str:
    """Return the commit, with a plus if anything but results has changed since."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return (git("describe", "--always", "--abbrev=12") or "unknown") + "+" * bool(changed)


def attempt(job: Job, version: str, out: Connection) -> None:
    """Send the record of a run, or of its failure; it runs in a process of its own."""
    try:
        record = train(job)
    except Exception as error:
        traceback.print_exc()
        record = {**asdict(job), "error": f"{type(error).__name__}: {error}"}
    out.send({**record, "code": version})


def described(record: dict[str, Any]) -> str:
    run = "{workload}/{contender} lr {lr:g} seed {seed}: ".format(**record)
    if "error" in record:
        return run + record["error"]
    return run + "loss {validation_loss:.4f}, {bytes_per_parameter:.3f} B/param, {seconds:.0f} s".format(**record)


def run_all(order: Order, results: Path, processes: int, again: frozenset[Job]) -> None:
    """Run what is wanted and not there, `processes` at a time; `again`: jobs to run although they are there."""
    context = get_context("spawn")
    running: dict[Connection, tuple[Job, BaseProcess, str]] = {}
    done: set[Job] = set()
    try:
        while True:
            records = read(results)
            busy = {job for job, _, _ in running.values()}
            wanted = dict.fromkeys(order.jobs(records))
            waiting = [job for job in wanted if job not in busy and (job not in records or job in again - done)]
            for job in waiting[: processes - len(running)]:
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=attempt, args=(job, version := code_version(), send), daemon=True)
                process.start()
                send.close()
                running[receive] = job, process, version
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                job, ended, version = running.pop(ready)
                try:
                    record = ready.recv()
                except EOFError:
                    ended.join()
                    record = {**asdict(job), "error": f"exit code {ended.exitcode}", "code": version}
                append(results, record)
                done.add(job)
                print(f"{time.strftime('%H:%M:%S')} [{len(waiting)} known to wait] {described(record)}", flush=True)
    finally:
        for _, unfinished, _ in running.values():
            unfinished.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--steps", type=int, help="instead of the workload's own number")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--quick", action="store_true", help=f"as with {QUICK}")
    parser.add_argument("--retry", action="store_true", help="also what has failed")
    parser.add_argument("--results", type=Path, default=RESULTS / "evidence.jsonl")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes started now
    contenders = dict.fromkeys([REFERENCE.name, *options.contenders])
    order = Order(options.workloads, list(contenders), options.seeds, options.steps)
    failed = frozenset(job for job, record in read(options.results).items() if options.retry and "error" in record)
    run_all(order, options.results, options.processes, failed)
    print(f"Report: {write_report(read(options.results), options.results)}")


if __name__ == "__main__":
    main()
