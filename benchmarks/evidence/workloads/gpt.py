"""A byte-level GPT, the one of the examples."""

from __future__ import annotations

from evidence.corpus import load_windows
from evidence.workload import Workload
from language_model import GPT, random_batches

WORKLOAD = Workload(
    name="gpt",
    about="a byte-level GPT of 4 blocks, width 160, on the sources of Python's standard library",
    loss="cross-entropy, nats per byte",
    model=GPT,
    load=load_windows,
    batches=random_batches,
    lr=3e-3,
    batch_size=4,
)
