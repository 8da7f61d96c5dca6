"""The cache folder: compiled programs, launch shapes and step times, shared by all processes of a user.

The environment variable `BAOC_CACHE_DIR` names the folder. Without it, the folder is `baoc` in the user's cache
directory: on Linux `$XDG_CACHE_HOME/baoc` or `~/.cache/baoc`. It may be deleted at any time.

Compiled programs are executed, so the folder and its files must belong to the user, and nobody else may write to them.
Files are written under a temporary name and then renamed: a reader sees either the old file or the new one. A compiled
program ends with a digest of its contents and its name, which is checked before loading.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

log = logging.getLogger("baoc")

_UNFINISHED = "unfinished-"

#: Age at which an unfinished folder's process is presumed dead; time that a program is kept without being loaded; time
#: to wait for another process that updates a file of numbers.
SECONDS_TO_FINISH, SECONDS_UNUSED, SECONDS_TO_UPDATE = 3600.0, 90 * 86400.0, 5.0

_NO_LINKS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
_FOLDER = _NO_LINKS | getattr(os, "O_DIRECTORY", 0)
_FILE = _NO_LINKS | getattr(os, "O_NONBLOCK", 0)  # a pipe in place of a file would block
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Folder:
    """A folder that belongs to this user alone.

    path: where the folder is, or would be.
    why_not: why there can't be one; empty otherwise.
    """

    path: Path
    why_not: str = ""

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Open the folder, creating it if missing, and yield a path to it. Raises OSError if it can't be used.

        On Linux the path goes through the open folder. It leads to the folder that was checked, even if another user
        renames a folder above it.
        """
        if self.why_not:
            raise FileNotFoundError(self.why_not)
        _make(self.path)
        try:
            descriptor = os.open(self.path, _FOLDER)
        except OSError:
            if self.path.is_symlink():
                raise NotADirectoryError("it is a symbolic link, not a folder") from None
            raise
        try:
            _check_owner(os.fstat(descriptor))
            through = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
            yield through if through.exists() else self.path
        finally:
            os.close(descriptor)

    def entries(self, name: str) -> dict[str, Any]:
        """Return the entries of a JSON file; none if it is missing, damaged or unreadable."""
        try:
            with self.opened() as folder:
                found = json.loads(read(folder / name))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def add_entries(self, name: str, new: dict[str, Any]) -> None:
        """Add entries to a JSON file, replacing the file. A file that can't be written stays as it is."""
        try:
            with self.opened() as at, locked(at / f"{name}.lock", SECONDS_TO_UPDATE), unfinished(at) as scratch:
                (scratch / name).write_text(json.dumps(self.entries(name) | new, indent=1))
                (scratch / name).chmod(0o600)
                os.replace(scratch / name, at / name)
        except OSError as error:
            log.info("%s: %s can't be updated: %s", self.path, name, reason_of(error))


def cache_folder() -> Folder:
    """Return the folder that the environment names now."""
    if named := os.environ.get("BAOC_CACHE_DIR"):
        return Folder(Path(named))
    try:
        path = user_cache_path("baoc", appauthor=False)
    except RuntimeError:
        path = Path("~/.cache/baoc")
    return Folder(path, "" if path.is_absolute() else "the user has no home directory")


def read(path: Path) -> bytes:
    """Return a file's contents. Raises OSError for a link, and for a file that another user owns or may write to."""
    with open(os.open(path, _FILE), "rb") as file:
        _check_owner(os.fstat(file.fileno()))
        return file.read()


def seal(path: Path, name: str) -> None:
    """Append a digest to a file that will get this name, and sync it to disk. Raises OSError."""
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.write(_digest(name, file.read()))
        file.flush()
        os.fsync(file.fileno())


def is_intact(path: Path) -> bool:
    """Tell whether this file was sealed under its name and is unchanged since."""
    try:
        contents = read(path)
    except OSError as error:
        log.info("%s can't be used: %s", path.name, reason_of(error))
        return False
    if _digest(path.name, contents[:-_DIGEST_BYTES]) != contents[-_DIGEST_BYTES:]:
        log.info("%s is damaged", path.name)
        return False
    with suppress(OSError):
        os.utime(path)
    return True


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, for files that are renamed when complete."""
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock, where possible, that keeps other processes from doing the same work.

    It is not possible if the file system has no locks or another process holds the lock for `seconds`. Then the work is
    done twice, which does no harm.
    """
    lock = FileLock(path, timeout=seconds, mode=0o600)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.info("going on without a lock: %s", error)
    try:
        yield
    finally:
        with suppress(OSError, NotImplementedError):
            lock.release()


def sweep(folder: Path) -> None:
    """Remove what dead processes left unfinished, and programs that no process has loaded for a long time."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            with suppress(OSError):
                age = time.time() - path.lstat().st_mtime
                if path.name.startswith(_UNFINISHED) and age > SECONDS_TO_FINISH:
                    shutil.rmtree(path)
                elif re.fullmatch(r"[0-9a-f]{24}\.\w+", path.name) and age > SECONDS_UNUSED:
                    path.unlink()


def reason_of(error: Exception) -> str:
    """Return what went wrong, without the names of temporary files."""
    return getattr(error, "strerror", None) or str(error)


def _digest(name: str, contents: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + contents).digest()


def _make(path: Path) -> None:
    """Create a folder and its parents, accessible to this user alone, whatever the umask."""
    for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _check_owner(found: os.stat_result) -> None:
    """Raise PermissionError if another user owns the file or may write to it, or if it is no regular file or folder."""
    if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        raise PermissionError("it is not a regular file")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"it belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o022:
        raise PermissionError(f"other users may write to it (mode {stat.S_IMODE(found.st_mode):04o})")
