"""The GPT, trained with Lion instead of AdamW."""

from __future__ import annotations

from dataclasses import replace

from evidence.rules import LION
from evidence.workloads import gpt

WORKLOAD = replace(
    gpt.WORKLOAD,
    name="lion",
    about=f"{gpt.WORKLOAD.about}, trained with Lion",
    rule=LION,
    lr=5e-4,
)
