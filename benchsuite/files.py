"""Files that several processes use: atomic writes, locks, digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from .errors import UserError

ELSEWHERE = "choose a writable folder (--results, --output or --data-dir; BENCHSUITE_CACHE for the cache)"


WRITING = ".writing."  # how the name of a file begins that is being written


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON form of `content`. Raises ValueError for NaN and infinity, which JSON cannot store."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` completely or not at all: it is written beside `path` under another name, synced, then renamed.

    Raises UserError where that fails. What a kill leaves of it begins with `WRITING`."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=WRITING)
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        try:
            os.replace(temporary, path)
        except OSError as error:  # of this name alone: it is too long, or a folder has it
            raise UserError(f"cannot write {path}: {error.strerror}", "choose another name") from None
        with suppress(OSError):  # the new name too survives a power cut, where the file system can sync a folder
            entry = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(entry)
            finally:
                os.close(entry)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {path.parent}: {error.strerror}", ELSEWHERE) from None
        raise


def read(path: Path) -> bytes:
    """The content of a regular file. Raises OSError; for a named pipe too, which nobody may ever write to."""
    with open(path, "rb", opener=_at_once) as file:
        _regular(file.fileno(), path)
        return file.read()


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _regular(handle: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, and those of its files, sorted; links count as what they lead to. None if it is not
    there. Raises UserError, naming it, where it cannot be read: what is in it must not be passed over."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _unreadable(error, folder) from None
    return sorted(folders), sorted(files)


def _unreadable(error: OSError, folder: Path) -> UserError:
    return UserError(f"{error.filename or folder}: cannot be read: {error.strerror}", "make it readable, or move it away")


def all_below(top: Path) -> list[Path]:
    """Every file at any depth below `top`, sorted. Links to folders are not followed. Raises UserError as `listed` does."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise _unreadable(error, top) from None

    return sorted(Path(at, name) for at, _, names in os.walk(top, onerror=fail) for name in names)


def folders_below(top: Path, depth: int) -> list[Path]:
    """The folders that lie so many levels below `top`. Raises UserError as `listed` does."""
    found = [top]
    for _ in range(depth):
        found = [folder / name for folder in found for name in listed(folder)[0]]
    return found


def named_below(top: Path, name: str) -> list[Path]:
    """The files of this name at any depth below `top`, in the order of their paths. Raises UserError as `listed` does."""
    found, left = [], [(top, frozenset[tuple[int, int]]())]
    while left:
        folder, above = left.pop()
        folders, files = listed(folder)
        if name in files:
            found.append(folder / name)
        if folders:
            status = folder.stat()
            if (own := (status.st_dev, status.st_ino)) in above:
                raise UserError(f"{folder}: leads back to a folder that it lies in", "remove this link")
            left += [(folder / one, above | {own}) for one in folders]
    return sorted(found, key=lambda path: path.parts)


class Busy(UserError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock between processes through a file at `path`, which is removed afterwards. A kill releases it.

    Not `filelock`: it leaves the file behind, cannot ask whether a lock is taken without creating its file, and on a file system
    without flock falls back to a marker file that outlives a kill.

    Raises UserError where the file cannot be written and, without `wait`, Busy where another process holds the lock."""
    for attempt in count():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a", opener=_at_once)  # noqa: SIM115
            _regular(file.fileno(), path)
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Busy(f"{path.parent}: another process is working on this run", "wait until it has ended") from None
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempt < 100:  # another process has removed the empty folder meanwhile
                continue
            raise UserError(f"cannot write to {path.parent}: {error.strerror}", ELSEWHERE) from None
        with file:
            # The previous holder may have removed the file: the lock counts only on the file that has this name now.
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path` right now. Changes nothing."""
    try:
        with open(path, opener=_at_once) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
