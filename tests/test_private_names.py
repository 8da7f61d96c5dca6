"""Only one file of the package uses private names of torch and CPython."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import baoc_compile
from baoc_compile.core import torch_private as private

ROOM = Path(private.__file__)
ROOT = Path(baoc_compile.__file__).parents[1]


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_names(source: str, own: frozenset[str] = frozenset()) -> Iterator[str]:
    """Uses of names that a source has no right to: private modules and their contents, private attributes by dot or by
    string (unless they are in `own`), and CPython's objects as memory."""
    imported = set()  # from a private module, whatever they are called
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("baoc_compile"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            chain = dotted(node)
            operator = chain.startswith(("torch.ops.", "aten."))
            names = [] if operator or (is_private(node.attr) and node.attr in own) else [chain]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            text = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            names = [text] if isinstance(text, str) and text not in own else []
        else:
            continue
        imported |= {name for name in names if concerns_private(name)}
    yield from sorted(imported)


def concerns_private(name: str) -> bool:
    first, _, rest = name.partition(".")
    parts = [part for part in (rest if first in ("self", "cls", "super()") else name).split(".") if part]
    return (
        is_private((parts or [""])[-1])
        or (first == "torch" and any(map(is_private, parts)))
        or name.startswith("torch.fx.experimental")
        or name.endswith((".py_object.value", ".from_address", ".__basicsize__", ".pythonapi"))
    )


def dotted(node: ast.expr) -> str:
    """`a.b.c`; of what is no name, "()"."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


def defined(source: str) -> Iterator[str]:
    """The private names that a source gives to things of its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and dotted(node.value) in ("self", "cls")
        ):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def sources() -> list[Path]:
    folders = [Path(baoc_compile.__file__).parent, *(ROOT / name for name in ("passes", "kernels"))]
    return [path for folder in folders for path in sorted(folder.rglob("*.py")) if path != ROOM]


def test_no_other_file_uses_a_private_name():
    """Whoever adopts a new torch would have to look everywhere."""
    paths = sources()
    assert len(paths) > 100
    own = frozenset(name for path in paths for name in defined(path.read_text()) if is_private(name))
    found = {str(path.relative_to(ROOT)): list(private_names(path.read_text(), own)) for path in paths}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._dynamo.reset()",
        "import torch\nx = torch._C._dynamo.guards",
        "import torch._inductor.config as config",
        "from torch._subclasses import FakeTensor",
        "from torch import _foreach_add_",
        "from torch.utils import _pytree",
        "from torch.fx.experimental.proxy_tensor import make_fx",
        "import sys\nframe = sys._getframe()",
        "from torch import nn\nx = nn.modules.batchnorm._NormBase",
        "def f(func):\n    return func._schema",
        "def f(node):\n    return getattr(node, '_dynamo_source', None)",
        "def f(tensor):\n    return wrap(tensor)._cdata",
        "import ctypes\nctypes.c_void_p.from_address(3)",
        "import torch\nclass A:\n    def f(self):\n        self.x = torch._utils.f()",
    ],
)
def test_the_check_finds(source):
    assert list(private_names(source))


def test_the_check_lets_pass():
    source = """
    from torch import Tensor
    from baoc_compile.core.torch_private import FakeTensor
    import torch
    class A:
        def _f(self, other: A):
            self._x = torch.ops.aten._to_copy.default
            return other._f() + self._x + getattr(other, "__dict__", torch.__version__)
    """
    source = "\n".join(line.removeprefix("    ") for line in io.StringIO(source))
    assert not list(private_names(source, frozenset(defined(source))))
