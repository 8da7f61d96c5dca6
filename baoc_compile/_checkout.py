"""Find `passes/` and `kernels/`: beside this package in a checkout, inside it once installed.

Importing this module makes each a subpackage, with a module spec of its own. An entry in the package's `__path__` would
do more: every folder of the checkout (`tests/`, and this package a second time) would become importable as a
subpackage. `baoc_compile/__init__.py` imports this module first.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

SIBLINGS = ("passes", "kernels")


def _find_siblings() -> None:
    package = sys.modules[__name__.rpartition(".")[0]]
    inside = Path(__file__).parent
    for name in SIBLINGS:
        if not (inside / name).is_dir():
            spec = ModuleSpec(f"{package.__name__}.{name}", None, is_package=True)
            spec.submodule_search_locations = [str(inside.parent / name)]
            module = module_from_spec(spec)
            sys.modules[spec.name] = module
            setattr(package, name, module)


_find_siblings()
