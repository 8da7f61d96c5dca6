"""Rivals that torch and packages ship, as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from evidence.contenders.contender import Contender, Setting
from evidence.rules import ADAMW, LION, SGD

#: Weights that GaLore and APOLLO leave to Adam, by parts of their names: what is no layer inside the network.
NOT_PROJECTED = ("embed", "position", "character", "head")


def _imported(module: str, name: str, **options: Any) -> Callable[[Setting], Any]:
    return lambda setting: getattr(import_module(module), name)(setting.parameters, lr=setting.lr, **options)


def _uncompiled(module: str, name: str, **options: Any) -> Callable[[Setting], Any]:
    """Return a maker whose step is not compiled: the same numbers without the minutes."""

    def make(setting: Setting) -> Any:
        optimizer = _imported(module, name, **options)(setting)
        optimizer.step = torch.compiler.disable(optimizer.step, recursive=True)
        return optimizer

    return make


def _low_rank(name: str, weight_decay: float, **group: Any) -> Callable[[Setting], Any]:
    """Return a maker of a projecting optimizer: a quarter of the rank of every matrix inside the network."""

    def make(setting: Setting) -> Any:
        by_rank: defaultdict[int, list[torch.Tensor]] = defaultdict(list)
        for path, parameter in setting.model.named_parameters():
            if parameter.requires_grad:
                is_projected = parameter.ndim == 2 and not any(part in path for part in NOT_PROJECTED)
                by_rank[max(1, min(parameter.shape) // 4) if is_projected else 0].append(parameter)
        groups = [{"params": some, **({"rank": rank, **group} if rank else {})} for rank, some in by_rank.items()]
        optimizer = getattr(import_module("pytorch_optimizer"), name)
        return optimizer(groups, lr=setting.lr, weight_decay=weight_decay)

    return make


def _adafactor(setting: Setting) -> Any:
    return torch.optim.Adafactor(setting.parameters, lr=setting.lr, weight_decay=0.01)


def _no_momentum(setting: Setting) -> Any:
    return SGD.make(setting.parameters, setting.lr, momentum=0.0)


TORCHAO = tuple(
    Contender(
        f"torchao {bits}bit",
        f"torchao's AdamW{bits}bit (levels in blocks of {block}), not compiled",
        {ADAMW.name: _uncompiled("torchao.optim", f"AdamW{bits}bit", weight_decay=0.01)},
        package="torchao",
    )
    for bits, block in ((8, 256), (4, 128))
)
BITSANDBYTES = Contender(
    "bitsandbytes 8bit",
    "bitsandbytes' 8-bit optimizer (dynamic levels in blocks of 256)",
    {
        ADAMW.name: _imported("bitsandbytes.optim", "AdamW8bit", weight_decay=0.01),
        SGD.name: _imported("bitsandbytes.optim", "SGD8bit", momentum=0.9, weight_decay=5e-4),
        LION.name: _imported("bitsandbytes.optim", "Lion8bit", weight_decay=0.1),
    },
    package="bitsandbytes",
)
OTHER_OPTIMIZERS = (
    Contender(
        "Adafactor",
        "torch's Adafactor: no momentum, factored second moments, steps relative to the weights",
        {ADAMW.name: _adafactor},
        factors=(3.0, 10.0, 30.0),
    ),
    Contender(
        "CAME",
        "CAME (pytorch_optimizer): momentum in full precision, factored second moments and confidences",
        {ADAMW.name: _imported("pytorch_optimizer", "CAME", weight_decay=0.01)},
        factors=(0.35, 0.6, 1.0),  # its authors: one to three times smaller than AdamW's
        package="pytorch-optimizer",
    ),
    Contender(
        "GaLore",
        "GaLore (pytorch_optimizer): AdamW in a quarter of the rank, by singular vectors, renewed every 200 steps",
        {ADAMW.name: _low_rank("GaLore", 0.01, scale=0.25, update_proj_gap=200, projection_type="std")},
        factors=(2.0, 4.0, 8.0),  # its updates are scaled by a quarter
        package="pytorch-optimizer",
    ),
    Contender(
        "APOLLO",
        "APOLLO (pytorch_optimizer): gradients scaled by tensor as AdamW scales a random projection of a quarter of the rank",
        {ADAMW.name: _low_rank("APOLLO", 0.01, scale=1.0, update_proj_gap=200, projection_type="std")},
        factors=(1.0, 2.0, 4.0),
        package="pytorch-optimizer",
    ),
    Contender(
        "SGD",
        "torch's SGD without momentum, which has no state",
        {ADAMW.name: _no_momentum},
        factors=(30.0, 100.0, 300.0),
    ),
    Contender(
        "no momentum",
        "the same SGD without its momentum, which has no state",
        {SGD.name: _no_momentum},
        factors=(3.0, 10.0, 30.0),  # a momentum of 0.9 makes steps ten times as long
    ),
)
