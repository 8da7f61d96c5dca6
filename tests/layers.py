"""The layout of the package as rules over its imports: what may import what, and how large files and folders may be.

Modules are given as a mapping from their path in the repository to their text. Every import counts: at the top of a file,
inside a function, and under `TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import networkx as nx

PACKAGE = "baoc_compile"

#: Each layer imports itself and those before it. Whatever is in no folder of these names is the face.
LAYERS = ("core", "kernels", "state", "passes", "runtime", "face")

#: Layer -> its rooms. Each room imports itself and those before it.
ROOMS = {
    "kernels": ("codecs", "dialect", "build", "launch", "eager", "cpp", "triton"),
    "passes": (
        "numbers",
        "recorder",
        "capture",
        "rules",
        "blocks",
        "programs",
        "risk",
        "solve",
        "plan",
        "migrate",
        "trials",
        "rewrite",
    ),
}

MOST_FILES = 14  # of a folder, `__init__.py` not counted
MOST_LINES = 350
EXCUSE = "Over 350 lines:"  # in the docstring of a longer file, followed by the reason

Modules = Mapping[str, str]


@dataclass(frozen=True)
class Import:
    """`importer` and `imported` are names of modules; `line` is where the statement stands."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules_of(root: Path) -> dict[str, str]:
    """The package as it lies in a checkout."""
    files = (file for folder in (PACKAGE, *ROOMS) for file in sorted((root / folder).rglob("*.py")))
    return {file.relative_to(root).as_posix(): file.read_text() for file in files}


def name_of(path: str) -> str:
    """The name that a file is imported by."""
    parts = [*PurePosixPath(path).with_suffix("").parts]
    if parts[0] != PACKAGE:
        parts.insert(0, PACKAGE)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    folder = module.split(".")[1:2]
    return folder[0] if folder and folder[0] in LAYERS else "face"


def imports_of(modules: Modules) -> list[Import]:
    """All imports of one module of the package by another."""
    names = {name_of(path) for path in modules}
    packages = {name_of(path) for path in modules if path.endswith("__init__.py")}
    found = []
    for path, text in modules.items():
        importer = name_of(path)
        for node in ast.walk(ast.parse(text)):
            for imported in _imported(node, importer, importer in packages, names):
                found.append(Import(importer, imported, node.lineno))  # type: ignore[attr-defined]
    return list(dict.fromkeys(found))


def _imported(node: ast.AST, importer: str, is_package: bool, names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = importer.split(".")[: None if is_package and node.level == 1 else int(is_package) - node.level]
            base = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:  # a module, or a name in one
            inside = f"{base}.{alias.name}"
            if inside in names or base in names:
                yield inside if inside in names else base


def upward(modules: Modules) -> list[str]:
    """Imports against the order of the layers, or against the order of the rooms of one layer."""
    return [str(i) for i in imports_of(modules) if not _is_allowed(i.importer, i.imported)]


def _is_allowed(importer: str, imported: str) -> bool:
    low, high = layer_of(imported), layer_of(importer)
    if low != high:
        return LAYERS.index(low) < LAYERS.index(high)
    if high not in ROOMS:
        return True
    low, high = (module.split(".")[2] for module in (imported, importer))
    return ROOMS[layer_of(importer)].index(low) <= ROOMS[layer_of(importer)].index(high)


def circles(modules: Modules) -> list[list[str]]:
    """Sets of modules that import one another."""
    graph = nx.DiGraph([(i.importer, i.imported) for i in imports_of(modules)])
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def homeless(modules: Modules) -> list[str]:
    """Files of a layer with rooms that lie in none of them."""
    parts = {path: PurePosixPath(path).parts for path in modules}
    return [path for path, p in parts.items() if p[0] in ROOMS and (len(p) != 3 or p[1] not in ROOMS[p[0]])]


def crowded(modules: Modules) -> list[str]:
    """Folders with too many files."""
    files = Counter(str(PurePosixPath(path).parent) for path in modules if not path.endswith("__init__.py"))
    return [f"{folder}: {count} files" for folder, count in files.items() if count > MOST_FILES]


def too_long(modules: Modules) -> list[str]:
    """Files with too many lines whose docstring does not say why."""
    found = []
    for path, text in modules.items():
        lines = len(text.splitlines())
        if lines > MOST_LINES and EXCUSE not in (ast.get_docstring(ast.parse(text)) or ""):
            found.append(f"{path}: {lines} lines")
    return found
