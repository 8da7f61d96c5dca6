"""`cast_model`: low-precision weights, except where fp32 is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baoc_compile.core.errors import OptionError
from baoc_compile.core.torch_private import BatchNormalization, tree_map

#: Modules that divide by a statistic of their input. Their few weights stay fp32, and they compute in fp32.
NORMALIZATIONS = (BatchNormalization, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass
class CastReport:
    """What `cast_model` did. `print` it.

    dtype: the new type of the weights.
    cast: names of the parameters that now have it.
    kept: name of a parameter or buffer -> why it did not change.
    bytes_before: bytes of all parameters before.
    bytes_after: bytes of all parameters now.
    """

    dtype: torch.dtype
    cast: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        lines = [f"{len(self.cast)} parameters are {name} now: {self.bytes_before} -> {self.bytes_after} bytes"]
        return "\n".join(lines + [f"    kept {name}: {reason}" for name, reason in self.kept.items()])


def cast_model(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16, *, keep: Callable[[str, nn.Module], bool] | None = None
) -> CastReport:
    """Cast the weights of `model` to bfloat16 or float16 in place, and report what changed.

    model: the model. Its parameters stay the same objects, so optimizers and tied weights remain valid.
    dtype: torch.bfloat16 or torch.float16.
    keep: `keep(name, module)` returns True for further modules to leave as they are, with all modules below them.

    Buffers (running statistics, frequencies), parameters that are not fp32, and normalization modules stay as they are.
    A module that is kept gets its input in fp32, and its output is cast to `dtype`. The caller casts the model's
    inputs.

    A low-precision weight loses updates smaller than half a unit in its last place. To learn from them, store what the
    weight lacks: `prepare(optimizer, plan={"param": "24bit"})` (or "32bit", "stochastic").

    Raises OptionError for another dtype, or for a model without fp32 parameters; nothing has changed then.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise OptionError(f"dtype: expected torch.bfloat16 or torch.float16, got {dtype}")
    if not any(p.dtype == torch.float32 for p in model.parameters()):
        raise OptionError("model: it has no fp32 parameters to cast")
    report = CastReport(dtype, bytes_before=_bytes(model))
    kept_below: dict[nn.Module, str] = {}
    to_widen: list[nn.Module] = []
    for name, module in model.named_modules():
        if module in kept_below:
            continue
        if keep is not None and keep(name, module):
            kept_below |= dict.fromkeys(module.modules(), f"keep() says so of {name or 'the model'!r}")
            to_widen.append(module)
        elif isinstance(module, NORMALIZATIONS):
            kept_below[module] = f"{type(module).__name__} normalizes"
            to_widen.append(module)
    for module in to_widen:
        _compute_in_fp32(module, dtype)
    keepers = {id(p): kept_below[m] for m in kept_below for p in m.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if id(parameter) in keepers:
            report.kept[name] = keepers[id(parameter)]
        elif parameter.dtype != torch.float32:
            report.kept[name] = f"it is {str(parameter.dtype).removeprefix('torch.')}"
        else:
            parameter.data = parameter.data.to(dtype)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to(dtype)
            report.cast.append(name)
    report.kept |= {name: "a buffer" for name, _ in model.named_buffers()}
    report.bytes_after = _bytes(model)
    return report


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _compute_in_fp32(module: nn.Module, dtype: torch.dtype) -> None:
    module.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    module.register_forward_hook(partial(_narrow_output, dtype))


def _widen_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(lambda v: v.float() if _is_floating(v) else v, (args, kwargs))


def _narrow_output(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return tree_map(lambda v: v.to(dtype) if _is_floating(v) else v, output)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
