"""One training: a job, and the record that it leaves."""

from __future__ import annotations

import math
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from evidence.contenders import CONTENDERS
from evidence.contenders.contender import Setting
from evidence.workload import validation_loss
from evidence.workloads import WORKLOADS
from train_language_model import warmup_then_cosine

POINTS = 20  # of a curve
SHARE = 8  # one of so many batches of validation is looked at for a point of the curve


@dataclass(frozen=True)
class Job:
    """What distinguishes a run: two with the same are the same run."""

    workload: str
    contender: str
    lr: float
    seed: int
    steps: int
    batch_size: int

    @staticmethod
    def of(record: dict[str, Any]) -> Job:
        return Job(*(record[name] for name in Job.__dataclass_fields__))


def train(job: Job) -> dict[str, Any]:
    """Return the record of a training. It ends early where the loss is no number any more.

    The curve has the step, the mean of the training loss since the point before, and the loss on a share of validation.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    contender = CONTENDERS[job.contender]
    workload = replace(WORKLOADS[job.workload], steps=job.steps, batch_size=job.batch_size)
    data, validation = workload.load()
    torch.manual_seed(job.seed)
    model = workload.model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    setting = Setting(workload.rule, model, list(parameters), job.lr, job.seed)
    optimizer = contender.make[workload.rule.name](setting)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine(job.steps))

    losses: list[float] = []
    curve: list[tuple[int, float, float]] = []
    every = max(1, job.steps // POINTS)
    for step, batch in enumerate(islice(workload.batches(data, job.batch_size, job.seed), job.steps), start=1):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        if step % every == 0:
            curve.append((step, statistics.fmean(losses[-every:]), validation_loss(model, validation[::SHARE])))

    count = sum(parameter.numel() for parameter in parameters)
    return {
        **asdict(job),
        "parameters": count,
        "bytes_per_parameter": contender.bytes(optimizer) / count,
        "validation_loss": validation_loss(model, validation),
        "train_loss": statistics.fmean(losses[-max(1, job.steps // 10) :]),  # of the last tenth of the steps
        "curve": curve,
        "seconds": time.perf_counter() - started,
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
