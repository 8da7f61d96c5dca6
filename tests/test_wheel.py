"""What is installed: a wheel with every room of the package and nothing else, from which a compiled step runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import baoc_compile

ROOT = Path(__file__).resolve().parent.parent

#: Folders of the checkout, and the packages that they are installed as.
FOLDERS = {"baoc_compile": "baoc_compile", "passes": "baoc_compile/passes", "kernels": "baoc_compile/kernels"}

STEP = """
import sys
from importlib.metadata import version

import torch

parameter = torch.nn.Parameter(torch.ones(64, 64))
optimizer = torch.optim.AdamW([parameter])
step = torch.compile(optimizer.step, backend="baoc")
for _ in range(2):
    parameter.grad = torch.ones(64, 64)
    step()

import baoc_compile

assert baoc_compile.__file__.startswith(sys.prefix), baoc_compile.__file__
assert baoc_compile.__version__ == version("baoc-compile")
assert (parameter < 1.0).all()
print(*{type(value).__name__ for value in optimizer.state[parameter].values()})
"""


def installed_files() -> set[str]:
    """Of the checkout: sources, headers, and the marker that says that they are typed."""
    files = {}
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".h") or file.name == "py.typed":
                files[file] = f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
    return set(files.values())


def test_every_folder_is_a_package_of_the_wheel():
    listed = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]["packages"]
    folders = {file.rpartition("/")[0].replace("/", ".") for file in installed_files()}
    assert sorted(listed) == sorted(folders)
    assert len(listed) == len(set(listed))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, by the build backend itself: no network, and nothing is left in the checkout."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, built], cwd=copy, check=True, capture_output=True)
    (file,) = built.iterdir()
    return file


def test_the_wheel_holds_every_room_and_nothing_else(wheel):
    assert wheel.name == f"baoc_compile-{baoc_compile.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == installed_files()
    assert {name.partition("/")[0] for name in information} == {f"baoc_compile-{baoc_compile.__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in information)


def test_a_step_runs_from_the_installed_wheel(wheel, tmp_path):
    """Everything but baoc comes from the environment of the tests, which is looked at last."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run([sys.executable, *install], check=True)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, "-c", STEP], cwd=elsewhere, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "StateTensor" in done.stdout.split()
