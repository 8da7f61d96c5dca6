"""The cache folder: whatever is wrong with it, training goes on with the same bits, and nothing foreign is executed.

Over 350 lines: all faults that a folder can have stand together, so that one that is missing is seen.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cache_training import (
    Trained,
    add_side_by_side,
    apart,
    build_side_by_side,
    source_of,
    train,
    train_homeless,
    train_twice,
)
from filelock import FileLock

from baoc_compile.core.errors import CompilerMissing
from baoc_compile.kernels.build import cache, compile_cpp
from baoc_compile.kernels.build.cache import Folder, cache_folder
from baoc_compile.kernels.build.load_triton import load_module
from baoc_compile.kernels.triton.tune_launch import _shape_of

ANOTHER_USER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[Path, Trained]:
    """A cache folder with all programs of the training, and what comes of it."""
    folder = tmp_path_factory.mktemp("good") / "cache"
    trained = apart(train, {"BAOC_CACHE_DIR": str(folder)})
    assert trained.programs == {"CppProgram"} and trained.addresses and not trained.warnings
    return folder, trained


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def temporary(tmp_path) -> Path:
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def build(folder, monkeypatch) -> Callable[[str], int]:
    """Compiles in this process and runs."""
    monkeypatch.setenv("BAOC_CACHE_DIR", str(folder))
    compile_cpp.build.cache_clear()
    return lambda source: compile_cpp.build(source).run()


def programs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


# a folder that can't be used


@pytest.fixture
def mounted(folder) -> Iterator[Callable[[str], bool]]:
    """Mounts an empty file system with these options as the cache folder. False where that is not permitted."""
    done = []

    def mount(options: str) -> bool:
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "baoc-test", str(folder)]
        if shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0:
            done.append(folder)
        return bool(done)

    yield mount
    for path in done:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize(
    "fault,options,reason",
    [("noexec", "noexec", "mounted noexec"), ("full", "size=16k", "No space left"), ("read-only", "ro", "Read-only")],
)
def test_a_file_system_that_is_noexec_or_full_or_read_only(good, folder, temporary, mounted, fault, options, reason):
    """Simulated where nothing can be mounted."""
    injected = "" if mounted(options) else fault
    if injected == "noexec":
        reason = "failed to map"
    trained = apart(train, {"BAOC_CACHE_DIR": str(folder)}, str(temporary), injected)
    assert_trained_elsewhere(trained, good, folder, temporary, reason)


def _a_file(folder: Path) -> None:
    folder.write_text("in the folder's place")


def _below_a_file(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.write_text("in the place of the folder above")


def _a_link(folder: Path) -> None:
    folder.with_name("target").mkdir(mode=0o700)
    folder.symlink_to("target")


def _a_dangling_link(folder: Path) -> None:
    folder.symlink_to("nowhere")


def _writable_for_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)


def _writable_for_the_group(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def _of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, ANOTHER_USER, ANOTHER_USER)


@pytest.mark.parametrize(
    "arrange,reason",
    [
        (_a_file, "exists|[Nn]ot a directory"),
        (_below_a_file, "[Nn]ot a directory"),
        (_a_link, "symbolic link"),
        (_a_dangling_link, "symbolic link|exists"),
        (_writable_for_all, "other users may write to it .mode 1777"),
        (_writable_for_the_group, "other users may write to it .mode 0770"),
        pytest.param(_of_another_user, f"belongs to another user .uid {ANOTHER_USER}", marks=needs_root),
    ],
)
def test_a_folder_that_is_none_or_that_others_control(good, tmp_path, temporary, arrange, reason):
    folder = tmp_path / "above" / "cache"
    folder.parent.mkdir()
    arrange(folder)
    trained = apart(train, {"BAOC_CACHE_DIR": str(folder)}, str(temporary))
    assert_trained_elsewhere(trained, good, folder, temporary, reason)


def test_a_user_without_a_home(good, temporary):
    trained = apart(train_homeless, str(temporary))
    assert_trained_elsewhere(trained, good, Path("~/.cache/baoc"), temporary, "no home directory")


def assert_trained_elsewhere(trained: Trained, good, folder: Path, temporary: Path, reason: str) -> None:
    """With compiled code, and without leaving any behind."""
    assert trained.bits == good[1].bits
    assert trained.programs == {"CppProgram"} and trained.addresses
    assert_one_warning(trained, folder, reason)
    assert list(temporary.iterdir()) == []
    assert not folder.is_dir() or programs_in(folder) == []


def assert_one_warning(trained: Trained, folder: Path, reason: str) -> None:
    (warning,) = trained.warnings
    assert f"cache folder {folder} (" in warning and "BAOC_CACHE_DIR" in warning
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(warning)


def test_neither_the_folder_nor_a_temporary_one(good, folder, tmp_path):
    """Torch operations; at the next compilation, with a folder that works, compiled code."""
    folder.write_text("in the folder's place")
    mended = tmp_path / "mended"
    first, second = apart(
        train_twice, {"BAOC_CACHE_DIR": str(folder)}, str(tmp_path / "missing"), {"BAOC_CACHE_DIR": str(mended)}
    )
    assert first.programs == {"TorchProgram"} and not first.addresses
    assert_one_warning(first, folder, "No such file or directory")
    assert second.programs == {"CppProgram"} and second.addresses
    assert second.warnings == []
    assert first.bits == second.bits == good[1].bits
    assert len(programs_in(mended)) == len(programs_in(good[0]))


def test_a_compiler_that_is_installed_later(good, folder, tmp_path):
    broken, mended = tmp_path / "broken", "g++" if shutil.which("g++") else "clang++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    first, second = apart(train_twice, {"BAOC_CACHE_DIR": str(folder), "CXX": str(broken)}, "", {"CXX": mended})
    assert first.programs == {"TorchProgram"} and not first.addresses
    assert_one_warning(first, folder, "exit status 1")
    assert second.programs == {"CppProgram"} and second.addresses
    assert second.warnings == []
    assert first.bits == second.bits == good[1].bits


# files that can't be used are compiled again, without a warning


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _without_its_end(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 32)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _bit_flipped(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 3] ^= 4
    path.write_bytes(contents)


def _foreign(path: Path) -> None:
    """A library of another program, which runs when it is loaded."""
    text = path.with_name("foreign.cpp")
    text.write_text("#include <cstdlib>\n__attribute__((constructor)) void loaded() { abort(); }\n")
    compiler = compile_cpp.compiler().split()
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", str(path), str(text)], check=True)
    path.chmod(0o600)
    text.unlink()


def _of_another_program(path: Path) -> None:
    """Intact, but under another name."""
    os.truncate(path, path.stat().st_size - 32)
    cache.seal(path, "another.so")


def _a_link_to_itself(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _written_by_others(path: Path) -> None:
    path.chmod(0o666)


def _given_away(path: Path) -> None:
    os.chown(path, ANOTHER_USER, ANOTHER_USER)


DAMAGES = [
    _truncated,
    _without_its_end,
    _empty,
    _bit_flipped,
    _foreign,
    _of_another_program,
    _a_link_to_itself,
    _a_pipe,
    _written_by_others,
    pytest.param(_given_away, marks=needs_root),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_replaced(folder, build, damage):
    assert [build(source_of(n)) for n in (3, 4)] == [3, 4]
    contents = {path: path.read_bytes() for path in programs_in(folder)}
    for path in contents:
        damage(path)
        assert not cache.is_intact(path)
    compile_cpp.build.cache_clear()
    assert [build(source_of(n)) for n in (3, 4)] == [3, 4]
    assert {path: path.read_bytes() for path in programs_in(folder)} == contents
    for path in contents:
        assert cache.is_intact(path) and path.lstat().st_uid == os.geteuid()
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_a_program_made_for_other_system_libraries_is_replaced(folder, build):
    build(source_of(5))
    (path,) = programs_in(folder)
    path.write_text("intact, but nothing that could be loaded here")
    cache.seal(path, path.name)
    assert cache.is_intact(path)
    compile_cpp.build.cache_clear()
    assert build(source_of(5)) == 5
    assert not path.read_bytes().startswith(b"intact")


@pytest.mark.parametrize("damage", [_truncated, _empty, _bit_flipped, _foreign])
def test_training_goes_on_with_damaged_files(good, folder, damage):
    shutil.copytree(good[0], folder)
    folder.chmod(0o700)
    for path in programs_in(folder):
        damage(path)
    trained = apart(train, {"BAOC_CACHE_DIR": str(folder)})
    assert trained.bits == good[1].bits
    assert trained.programs == {"CppProgram"} and trained.addresses and trained.warnings == []
    assert all(map(cache.is_intact, programs_in(folder)))


def test_programs_in_a_read_only_folder_are_used(folder, build, monkeypatch):
    """With a compiler that would fail."""
    build(source_of(5))
    compile_cpp.build.cache_clear()
    monkeypatch.setattr(compile_cpp, "_compiled", None)
    folder.chmod(0o500)
    assert build(source_of(5)) == 5


# the folder that is made


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_missing_folder_is_made_for_this_user_alone(tmp_path, monkeypatch, umask):
    folder = tmp_path / "above" / "cache"
    monkeypatch.setenv("BAOC_CACHE_DIR", str(folder))
    compile_cpp.build.cache_clear()
    before = os.umask(umask)
    try:
        assert compile_cpp.build(source_of(6)).run() == 6
        cache_folder().add_entries("numbers.json", {"a": 1})
    finally:
        os.umask(before)
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes.keys() == {".so", ".json", ".lock"}
    assert {mode & 0o077 for mode in modes.values()} == {0}
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BAOC_CACHE_DIR", raising=False)
    assert cache_folder() == Folder(tmp_path / "baoc")
    monkeypatch.setenv("BAOC_CACHE_DIR", "")
    assert cache_folder() == Folder(tmp_path / "baoc")
    monkeypatch.setattr(cache, "user_cache_path", None)  # not even asked
    monkeypatch.setenv("BAOC_CACHE_DIR", "/elsewhere")
    assert cache_folder() == Folder(Path("/elsewhere"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc: paths do not go through the open folder")
def test_the_folder_that_was_checked_is_the_one_that_is_used(folder):
    with Folder(folder).opened() as opened:
        (opened / "name").write_text("checked")
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        (folder / "name").write_text("exchanged")
        assert (opened / "name").read_text() == "checked"


def test_triton_sources_need_no_file(folder, monkeypatch):
    monkeypatch.setenv("BAOC_CACHE_DIR", str(folder))
    source = "import inspect\ndef function():\n    return 1\nread = inspect.getsource(function)\n"
    module = load_module(source)
    assert module.function() == 1
    assert module.read == "def function():\n    return 1\n"
    assert not folder.exists()


def test_what_is_unfinished_or_unused_for_long_is_removed(folder, build):
    build(source_of(7))
    (used,) = programs_in(folder)
    unfinished, running, unused = (
        folder / f"{cache._UNFINISHED}a",
        folder / f"{cache._UNFINISHED}b",
        folder / f"{'0' * 24}.so",
    )
    for path in (unfinished, running):
        path.mkdir()
        (path / "program.so").touch()
    others = [folder / "step_times.json", folder / "notes.txt", folder / f"{'0' * 23}.so"]
    for path in (unused, *others):
        path.touch()
    for path in (unfinished, unused, used, *others):
        os.utime(path, (0, 0))
    compile_cpp.build.cache_clear()
    build(source_of(7))  # is used again
    build(source_of(8))
    assert not unfinished.exists() and not unused.exists()
    assert used.exists() and running.exists() and all(path.exists() for path in others)


# several processes


@pytest.mark.parametrize("rounds,with_locks", [(20, True), (6, False)])
def test_two_processes_that_compile_the_same(folder, tmp_path, rounds, with_locks):
    counted, counts = tmp_path / "counted", tmp_path / "counts"
    counted.write_text(f'#!/bin/sh\necho >> {counts}\nexec {compile_cpp.compiler()} "$@"\n')
    counted.chmod(0o700)
    environment = {"BAOC_CACHE_DIR": str(folder), "CXX": str(counted)}
    assert build_side_by_side(environment, rounds, with_locks) == [0, 0]
    assert len(programs_in(folder)) == rounds and all(map(cache.is_intact, programs_in(folder)))
    assert list(folder.glob(f"{cache._UNFINISHED}*")) == []
    if with_locks:
        assert len(counts.read_text().splitlines()) == rounds


def test_a_process_that_keeps_the_lock_for_ever(folder, build, monkeypatch):
    build(source_of(9))
    (path,) = programs_in(folder)
    path.unlink()
    compile_cpp.build.cache_clear()
    monkeypatch.setattr(compile_cpp, "SECONDS_TO_COMPILE", 0.2)
    with FileLock(path.with_suffix(".lock")):
        assert build(source_of(9)) == 9
    assert cache.is_intact(path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks(folder, build, monkeypatch, recwarn, code):
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(compile_cpp, "SECONDS_TO_COMPILE", 0.2)
    assert build(source_of(10)) == 10
    assert len(programs_in(folder)) == 1
    cache_folder().add_entries("numbers.json", {"a": 1})
    assert cache_folder().entries("numbers.json") == {"a": 1}


def test_a_failed_compilation_is_tried_again(folder, build, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CompilerMissing, match="BAOC_CACHE_DIR"):
        build(source_of(11))
    monkeypatch.delenv("CXX")
    assert build(source_of(11)) == 11


# files of numbers


def test_two_processes_keep_each_others_entries(folder):
    assert add_side_by_side(folder, 50) == [0, 0]
    expected = {f"{letter}{number}": number for letter in "ab" for number in range(50)}
    assert Folder(folder).entries("numbers.json") == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00", "[" * 100_000])
def test_a_damaged_file_of_numbers_counts_as_empty(folder, text):
    folder.mkdir(mode=0o700)
    (folder / "numbers.json").write_text(text)
    assert Folder(folder).entries("numbers.json") == {}
    Folder(folder).add_entries("numbers.json", {"a": 1})
    assert json.loads((folder / "numbers.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("damage", [_written_by_others, _a_pipe, _a_link_to_itself])
def test_numbers_that_others_may_have_written_are_not_read(folder, damage):
    Folder(folder).add_entries("numbers.json", {"a": 1})
    damage(folder / "numbers.json")
    assert Folder(folder).entries("numbers.json") == {}
    Folder(folder).add_entries("numbers.json", {"b": 2})
    assert Folder(folder).entries("numbers.json") == {"b": 2}


@pytest.mark.parametrize(
    "entry", [None, 3, [], [1, 2], [1, 2, 3, 4], [1, 2, 0], [1, 2, -3], [1, 2, 3.0], [1, 2, True], {}]
)
def test_a_damaged_launch_shape_counts_as_unknown(entry):
    assert _shape_of(entry) is None


def test_a_remembered_launch_shape():
    shape = _shape_of([512, 4, 2])
    assert shape is not None and (shape.tile, shape.tiles, shape.warps) == (512, 4, 2)
