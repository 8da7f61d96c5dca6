"""Find `passes/` and `kernels/`, which a checkout has beside this package and an installed package inside.

Each becomes a subpackage through a module spec of its own, rather than through an entry in the package's `__path__`: that
would make every folder of the checkout (`tests/`, and this package a second time) importable as a subpackage.
Runs when it is imported, which `baoc_compile/__init__.py` does first.
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
