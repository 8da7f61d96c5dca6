"""Train a small language model for 300 steps with ten optimizers of packages, eagerly and under a budget of 30 %.

Each pair starts from the same weights and sees the same batches. Two eager runs with other batches show the noise. Writes
benchmarks/results/zoo_language.json and the second table of docs/zoo.md.

    python benchmarks/zoo/language.py [--seeds 2] [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from catalogue import variants
from measure import BUDGET
from paths import RESULTS, ROOT
from report import write_learning

sys.path.insert(0, str(ROOT / "examples"))
import baoc_compile
import language_model

STEPS, BATCH = 300, 8
#: Optimizer -> learning rate; names of the catalogue.
TRAINED = {
    "schedulefree:AdamWScheduleFree": 3e-3,
    "optimi:Ranger": 2e-3,
    "pytorch_optimizer:AccSGD": 0.1,
    "pytorch_optimizer:Prodigy": 1.0,
    "timm:Lamb": 5e-3,
    "timm:Adan": 2e-3,
    "pytorch_optimizer:AdEMAMix": 1e-3,
    "timm:Mars": 2e-3,
    "timm:Muon": 5e-3,
    "pytorch_optimizer:SOAP": 2e-3,
}
FILE = RESULTS / "zoo_language.json"


def train(name: str, prepared: bool, seed: int) -> dict[str, Any]:
    """Return the loss on held-out text, and the bytes of float state of parameters' shapes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = language_model.GPT(width=64, depth=2, heads=4)
    data, held_out = language_model.load_corpus()
    variant = next(v for v in variants(name.split(":")[0]) if str(v) == name)
    optimizer = variant.make([p for p in model.parameters()])
    for group in optimizer.param_groups:
        group["lr"] = TRAINED[name]
    train_mode = getattr(optimizer, "train", None)
    if callable(train_mode):
        train_mode()
    if prepared:
        baoc_compile.prepare(optimizer, memory_budget=BUDGET, warmup_steps=0)
    batches = language_model.random_batches(data, BATCH, seed)
    for _ in range(STEPS):
        tokens, targets = next(batches)
        loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    eval_mode = getattr(optimizer, "eval", None)
    if callable(eval_mode):
        eval_mode()
    return {"name": name, "prepared": prepared, "seed": seed, "loss": language_model.evaluate(model, held_out)}


def _run(job: tuple[str, bool, int]) -> dict[str, Any]:
    try:
        return train(*job)
    except Exception as error:
        return {"name": job[0], "prepared": job[1], "seed": job[2], "error": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    jobs = [(name, prepared, seed) for name in TRAINED for seed in range(arguments.seeds) for prepared in (False, True)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=4) as pool:
        results = []
        for result in pool.imap(_run, jobs):
            results.append(result)
            print(result, flush=True)
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n")
    write_learning(results)


if __name__ == "__main__":
    main()
