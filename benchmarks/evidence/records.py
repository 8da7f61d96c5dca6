"""The file of runs: one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.train import Job

__all__ = ["Records", "append", "read"]

#: The last record of every job.
Records = dict[Job, dict[str, Any]]


def read(file: Path) -> Records:
    """Return what the file has; a line that was cut off when its writer was stopped counts as not written."""
    records: Records = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[Job.of(record)] = record
    return records


def append(file: Path, record: Mapping[str, Any]) -> None:
    """Write one line by a single call, on a line of its own whatever the last one looks like."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    line = "\n" * cut_off + json.dumps(record) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
