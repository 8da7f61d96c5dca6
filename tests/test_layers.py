"""The package keeps its layout: face > runtime > passes > state > kernels > core, no circles, no crowds, no second copies."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from layers import EXCUSE, MOST_FILES, MOST_LINES, ROOMS, circles, crowded, homeless, modules_of, too_long, upward

ROOT = Path(__file__).resolve().parent.parent

MODULES = modules_of(ROOT)


def test_nothing_imports_upward():
    found = upward(MODULES)
    assert not found, "\n".join(found)


def test_no_modules_import_one_another():
    found = circles(MODULES)
    assert not found, "\n".join(map(str, found))


def test_every_pass_and_kernel_has_a_room():
    assert homeless(MODULES) == []
    assert {path.rpartition("/")[0] for path in MODULES if path.startswith(tuple(ROOMS))} == {
        f"{layer}/{room}" for layer, rooms in ROOMS.items() for room in rooms
    }


def test_no_folder_is_crowded():
    assert crowded(MODULES) == []


def test_long_files_say_why():
    others = [file for folder in ("tests", "benchmarks", "examples") for file in (ROOT / folder).glob("*.py")]
    assert too_long(MODULES | {file.relative_to(ROOT).as_posix(): file.read_text() for file in others}) == []


@pytest.mark.parametrize("room", [f"{layer}/{room}" for layer, rooms in ROOMS.items() for room in rooms])
def test_rooms_say_what_they_are(room):
    assert ast.get_docstring(ast.parse(MODULES[f"{room}/__init__.py"]))


# one name for each module

REFUSED = """
import importlib, sys

names = sys.argv[1:]
for first in (None, "baoc_compile"):
    if first:
        importlib.import_module(first)
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        sys.exit(f"{name} is importable" + (f" after {first}" if first else ""))
"""

FILES = """
import importlib, sys
from collections import defaultdict

for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":  # it is not everywhere
            raise
by_file = defaultdict(list)
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None):
        by_file[module.__file__].append(name)
twice = [names for names in by_file.values() if len(names) > 1 and any("baoc" in name for name in names)]
sys.exit(str(twice) if twice else 0)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In the root of the checkout, which is where Python looks for modules first."""
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_no_module_has_a_second_name():
    rooms = [f"{layer}.{room}" for layer, rooms in ROOMS.items() for room in rooms]
    files = ["kernels.codecs.plain", "passes.solve.relax", "passes.rules.canonicalize"]
    done = run(REFUSED, "baoc_compile.tests", "baoc_compile.baoc_compile.core.errors", *rooms, *files)
    assert done.returncode == 0, done.stderr
    assert run(REFUSED, "json").returncode == 1


def test_no_file_is_imported_twice():
    from layers import name_of

    done = run(FILES, *map(name_of, MODULES))
    assert done.returncode == 0, done.stderr


# the rules themselves

SOUND = {
    "baoc_compile/__init__.py": "from baoc_compile.core.rule import Rule",
    "baoc_compile/core/__init__.py": "",
    "baoc_compile/core/rule.py": "import math",
    "baoc_compile/face.py": "import baoc_compile.runtime.session\nfrom baoc_compile.passes.risk import assess",
    "baoc_compile/runtime/session.py": "def f():\n    from baoc_compile.passes.risk.assess import risk",
    "passes/risk/assess.py": "from baoc_compile.passes.rules.extract import rules\nfrom baoc_compile.core import rule",
    "passes/rules/extract.py": "from baoc_compile.kernels.codecs.plain import Bfloat16",
    "kernels/codecs/plain.py": "from ...core.rule import Rule",
}

#: Added to what is sound: a path, a text, and what the rules say.
UPWARD = {
    "at the top": ("baoc_compile/core/up.py", "from baoc_compile.runtime.session import Session", "runtime.session"),
    "of the face": ("passes/risk/up.py", "import baoc_compile", "risk.up:1 imports baoc_compile"),
    "of a module": ("kernels/codecs/up.py", "from baoc_compile.passes.risk import assess", "passes.risk.assess"),
    "relative": ("kernels/codecs/up.py", "from ...runtime import session", "runtime.session"),
    "lazy": ("passes/risk/up.py", "def f():\n    import baoc_compile.face", "risk.up:2 imports baoc_compile.face"),
    "for types": (
        "baoc_compile/core/up.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from baoc_compile.passes.risk.assess import Risk",
        "core.up:3 imports baoc_compile.passes.risk.assess",
    ),
    "of a later stage": (
        "passes/rules/up.py",
        "from baoc_compile.passes.risk.assess import risk",
        "passes.risk.assess",
    ),
}


def test_what_is_sound_passes():
    assert not upward(SOUND) and not circles(SOUND) and not crowded(SOUND) and not homeless(SOUND)


@pytest.mark.parametrize("path,text,found", UPWARD.values(), ids=UPWARD)
def test_an_upward_import_is_found(path, text, found):
    (only,) = upward(SOUND | {path: text})
    assert found in only


def test_a_circle_is_found_even_if_it_is_only_of_types():
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from baoc_compile.core.rule import Rule"
    ring = {
        "baoc_compile/core/rule.py": "from baoc_compile.core.codec import Codec",
        "baoc_compile/core/codec.py": types,
    }
    assert circles(SOUND | ring) == [["baoc_compile.core.codec", "baoc_compile.core.rule"]]
    assert not upward(SOUND | ring)


def test_a_crowded_folder_is_found():
    full = {f"passes/solve/m{i}.py": "" for i in range(MOST_FILES)} | {"passes/solve/__init__.py": ""}
    assert not crowded(full)
    assert crowded(full | {"passes/solve/another.py": ""}) == [f"passes/solve: {MOST_FILES + 1} files"]


def test_a_file_without_a_room_is_found():
    assert homeless({"passes/lower.py": "", "kernels/attic/x.py": "", "kernels/cpp/deep/x.py": ""}) == [
        "passes/lower.py",
        "kernels/attic/x.py",
        "kernels/cpp/deep/x.py",
    ]


def test_a_long_file_needs_a_reason():
    lines = '"""Text."""\n' + "x = 1\n" * (MOST_LINES - 1)
    assert not too_long({"a.py": lines})
    assert too_long({"a.py": lines + "x = 1\n"}) == [f"a.py: {MOST_LINES + 1} lines"]
    assert not too_long({"a.py": lines.replace("Text.", f"Text.\n\n{EXCUSE} it is a table.") + "x = 1\n"})
    assert too_long({"a.py": lines + f"# {EXCUSE} no docstring\n"})
