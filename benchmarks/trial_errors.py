"""How far off are the updates of torch's optimizers in the trials by which plans are judged?

Each is tried with all state in 8 bits, and in 4. Twice the worst is what `passes/trials/trials.py` trusts.

    python benchmarks/trial_errors.py
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

import baoc_compile
from baoc_compile.core.codec import Codec
from baoc_compile.passes.trials import trials
from baoc_compile.runtime import decide_storage

optim = torch.optim
OPTIMIZERS: dict[str, Any] = {
    **{c.__name__: c for c in (optim.Adadelta, optim.Adagrad, optim.Adamax, optim.AdamW, optim.Muon)},
    **{c.__name__: c for c in (optim.ASGD, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Rprop)},
    "AdamW, amsgrad": partial(optim.AdamW, amsgrad=True),
    "RMSprop, momentum": partial(optim.RMSprop, momentum=0.9),
    "SGD, momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "SGD, Nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def errors_of(make: Any, plan: str) -> list[float]:
    """Return the errors of the trials that an optimizer's plan goes through."""
    found: list[float] = []

    def tried(make: trials.Make, codecs: Mapping[str, Codec], seed: int) -> tuple[dict[str, str], float]:
        reasons, error = trials.why_exact(make, codecs, seed)
        found.append(error)
        return reasons, error

    decide_storage.why_exact = tried
    parameter = torch.nn.Parameter(0.1 * torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    optimizer = make([parameter])
    baoc_compile.prepare(optimizer, plan=plan)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return found


def main() -> None:
    warnings.simplefilter("ignore", baoc_compile.BaocWarning)
    for plan in ("8bit", "4bit"):
        for name, make in OPTIMIZERS.items():
            print(plan, name, *(f"{error:.4f}" for error in errors_of(make, plan)), flush=True)


if __name__ == "__main__":
    main()
