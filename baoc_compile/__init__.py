"""baoc: optimizers whose memory is a budget you set.

The lines that a training script needs:

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    baoc_compile.prepare(optimizer, model=model, memory_budget="28%")

From then on, `optimizer.step()` is baoc's own.
"""

from baoc_compile import _checkout  # noqa: F401  (first: it finds passes/ and kernels/)
from baoc_compile.backend import baoc
from baoc_compile.cast_model import CastReport, cast_model
from baoc_compile.configurations import ConfigurationTable, configurations
from baoc_compile.core.configuration import Configuration
from baoc_compile.core.errors import (
    BaocError,
    BaocWarning,
    BudgetError,
    OptionError,
    PlanError,
    StateError,
    UnsupportedStep,
)
from baoc_compile.core.profile import Profile
from baoc_compile.inspection import Inspection, inspect
from baoc_compile.offline import profile, solve
from baoc_compile.passes.risk.find_sharing import find_sharing
from baoc_compile.prepare import prepare, restore
from baoc_compile.release_gradients import GradientRelease, release_gradients
from baoc_compile.report import Report, report
from baoc_compile.runtime.checkpoint import export_state_dict, master_weights
from baoc_compile.state.entries import state_bytes
from baoc_compile.state.plan import Plan
from baoc_compile.state.state_tensor import StateTensor
from baoc_compile.with_budget import with_budget

__version__ = "0.7.0"

__all__ = [
    "BaocError",
    "BaocWarning",
    "BudgetError",
    "CastReport",
    "Configuration",
    "ConfigurationTable",
    "GradientRelease",
    "Inspection",
    "OptionError",
    "Plan",
    "PlanError",
    "Profile",
    "Report",
    "StateError",
    "StateTensor",
    "UnsupportedStep",
    "baoc",
    "cast_model",
    "configurations",
    "export_state_dict",
    "find_sharing",
    "inspect",
    "master_weights",
    "prepare",
    "profile",
    "release_gradients",
    "report",
    "restore",
    "solve",
    "state_bytes",
    "with_budget",
]
