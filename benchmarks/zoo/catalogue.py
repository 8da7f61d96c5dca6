"""The optimizers of torch and of packages, with the variants that their options make. None is listed by name.

A variant is a class with keyword arguments. Every class has a variant without any. Every flag that is off by default makes
a variant with it on, every flag that is on one with it off, and so does a weight decay or momentum that is 0 by default.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

#: Options that choose an implementation, not another computation, or that belong to training on several machines.
IMPLEMENTATION = {
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "maximize",
    "use_triton",
    "triton",
    "gradient_release",
}
IMPLEMENTATION |= {"verbose", "use_buckets", "bf16_params_format", "ddp", "distributed", "use_distributed"}
NUMBERS = {"weight_decay": 0.1, "momentum": 0.9}


@dataclass(frozen=True)
class Variant:
    """An optimizer class of a package with options.

    package: the package that defines it.
    make: called with parameters; returns the optimizer.
    """

    package: str
    name: str
    make: Callable[[Any], Any]

    def __str__(self) -> str:
        return f"{self.package}:{self.name}"


def variants(package: str) -> Iterator[Variant]:
    """Return the variants of a package's optimizers, the plain ones first."""
    classes = _CLASSES[package]()
    for is_plain in (True, False):
        for name, made in classes.items():
            for label, options in _options(made):
                if is_plain != (not options):
                    continue

                def make(params: Any, made: Any = made, options: dict[str, Any] = options) -> Any:
                    return made(params, **_required(made) | options)

                yield Variant(package, name + label, make)


PACKAGES = ("torch", "timm", "pytorch_optimizer", "schedulefree", "optimi", "lion_pytorch")


def _options(made: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "", {}
    for name, parameter in _parameters(made).items():
        if name in IMPLEMENTATION:
            continue
        if isinstance(parameter.default, bool):
            yield f"[{name}={not parameter.default}]", {name: not parameter.default}
        elif name in NUMBERS and parameter.default == 0:
            yield f"[{name}={NUMBERS[name]}]", {name: NUMBERS[name]}


def _required(made: Any) -> dict[str, Any]:
    """Return a learning rate for classes that demand one, and steps for those that have a schedule."""
    given = {"lr": 1e-3, "num_iterations": 100, "total_steps": 100, "num_epochs": 10, "num_batches_per_epoch": 10}
    parameters = _parameters(made)
    missing = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    return {name: value for name, value in given.items() if name in missing}


def _parameters(made: Any) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(made.__init__ if inspect.isclass(made) else made).parameters
    except (TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in found.items() if p.kind in kinds and n not in ("self", "params", "parameters")}


def _of_module(name: str) -> dict[str, Any]:
    """Return the optimizer classes that a module exports."""
    module = import_module(name)
    found = {}
    for attribute, value in vars(module).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer:
            found[attribute] = value
    return found


def _of_timm() -> dict[str, Any]:
    """Return the optimizers of timm. The package itself imports torchvision, which its optimizers do not need."""
    spec = None if "timm" in sys.modules else find_spec("timm")
    if spec is not None:
        sys.modules["timm"] = package = ModuleType("timm")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["timm.models"] = models = ModuleType("timm.models")
        vars(models)["group_parameters"] = None  # of which only a function in there makes use
    from timm.optim._optim_factory import default_registry

    infos = (default_registry.get_optimizer_info(n) for n in default_registry.list_optimizers())
    found: dict[Any, str] = {}
    for info in infos:
        cls = info.opt_class
        if inspect.isclass(cls) and not cls.__module__.startswith(("torch.", "apex", "bitsandbytes")):
            found.setdefault(cls, cls.__name__)
    return {name: cls for cls, name in found.items()}


def _of_pytorch_optimizer() -> dict[str, Any]:
    from pytorch_optimizer.optimizer import OPTIMIZERS

    names = {}
    for cls in OPTIMIZERS.values():
        if inspect.isclass(cls) and cls.__module__.startswith("pytorch_optimizer"):
            names[cls.__name__] = cls
    return names


_CLASSES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": lambda: _of_module("torch.optim"),
    "timm": _of_timm,
    "pytorch_optimizer": _of_pytorch_optimizer,
    "schedulefree": lambda: _of_module("schedulefree"),
    "optimi": lambda: _of_module("optimi"),
    "lion_pytorch": lambda: _of_module("lion_pytorch"),
}

warnings.filterwarnings("ignore")
