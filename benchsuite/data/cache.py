"""Decoded image sets on disk: written once, addressed by their content, memory-mapped.

    <cache>/arrays/<name>/<16 hex digits of the digest>/{train_x,train_y,test_x,test_y}.npy, meta.json
    <cache>/arrays/<name>/index/<fingerprint of the source files>.json    {"digest", "note"}

The key of an entry is its content; the key of the index is the state of the source files. So a changed file never gets the
labels of the old one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..files import ELSEWHERE, locked, read, write_atomic

READERS = 3  # raise it when the output of a reader changes: older entries are then decoded again


class Arrays(NamedTuple):
    """Pixels are uint8 (N, H, W, C), labels int64 (N,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Entry(NamedTuple):
    arrays: Arrays
    digest: str
    note: str


def root() -> Path:
    """$BENCHSUITE_CACHE, else $XDG_CACHE_HOME/benchsuite, else ~/.cache/benchsuite."""
    if own := os.environ.get("BENCHSUITE_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "benchsuite"


def digest(arrays: Arrays) -> str:
    """SHA-256 over shapes, pixels and labels, train then test; the same on every machine."""
    h = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        h.update(f"{array.dtype.str}{array.shape}".encode())
        h.update(array.data)
    return h.hexdigest()


def fingerprint(files: Iterable[Path], settings: str = "") -> str:
    """The state of the files without reading them: path, size, modification time and change time.

    The change time is included because archives restore modification times, so two versions of a file may share theirs.
    settings: of the reader, where they decide what is decoded. Raises UserError for what is not an ordinary file.
    """
    h = hashlib.sha256(f"readers {READERS}{settings}".encode(errors="surrogateescape"))
    for file in files:
        try:
            s = check_regular(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}", "restore it or fetch the whole set again") from None
        h.update(b"\n" + os.fsencode(file.absolute()) + f"\0{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}".encode())
    return h.hexdigest()[:32]


def check_regular(file: Path) -> os.stat_result:
    """The state of a file. Raises UserError for a named pipe, which would be waited for, and for a folder or a device."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{file}: is not an ordinary file", "put the data file itself there")
    return found


def lookup(name: str, key: str) -> Entry | None:
    """The entry decoded from files with this fingerprint; None if there is none or its content is not what its digest says."""
    folder = root() / "arrays" / name
    try:
        found = json.loads(read(folder / "index" / f"{key}.json"))
        arrays = _open(folder / found["digest"][:16], found["digest"])
        if arrays is None or _content(arrays) != found["digest"]:
            return None
        return Entry(arrays, found["digest"], found["note"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(name: str, key: str, arrays: Arrays, note: str) -> Entry:
    """Write the entry, unless a valid one exists, and its line in the index. Returns the entry memory-mapped."""
    folder = root() / "arrays" / name
    whole = digest(arrays)
    target = folder / whole[:16]
    kept = _open(target, whole)
    try:
        if kept is None or _content(kept) != whole:
            _write(target, arrays, whole)
        (folder / "index").mkdir(exist_ok=True)
        write_atomic(folder / "index" / f"{key}.json", json.dumps({"digest": whole, "note": note}))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}", ELSEWHERE) from None
    stored = _open(target, whole)
    if stored is None:
        raise UserError(f"{target}: cannot be read back", "check the disk, or name another cache folder in BENCHSUITE_CACHE")
    return Entry(stored, whole, note)


def _content(arrays: Arrays) -> str:
    """The digest of mapped arrays, computed once in a process for each state of their files."""
    paths = [str(array.filename) for array in arrays if isinstance(array, np.memmap)]
    states = [(path, os.stat(path)) for path in paths]
    return _digest_of_state(tuple((path, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in states))


@lru_cache(maxsize=64)
def _digest_of_state(states: tuple[tuple[str, int, int, int, int], ...]) -> str:
    return digest(Arrays(*(np.load(path, mmap_mode="r") for path, *_ in states)))


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """One process at a time decodes a set. The others wait and then find it in the cache."""
    folder = root() / "arrays" / name
    with locked(folder / ".lock"):
        for left in folder.glob(".*/"):  # left by a process that was killed while writing
            shutil.rmtree(left, ignore_errors=True)
        yield


def _meta(arrays: Arrays, whole: str) -> dict[str, Any]:
    return {"digest": whole, "arrays": {k: [a.dtype.str, list(a.shape)] for k, a in arrays._asdict().items()}}


def _open(folder: Path, whole: str) -> Arrays | None:
    """The memory-mapped arrays if every file exists with the size and shape in meta.json, else None."""
    found = [folder / f"{field}.npy" for field in Arrays._fields]
    try:
        if not all(file.is_file() for file in found):
            return None
        arrays = Arrays(*(np.load(file, mmap_mode="r") for file in found))
        return arrays if json.loads(read(folder / "meta.json")) == _meta(arrays, whole) else None
    except (OSError, ValueError, EOFError, AttributeError):
        return None


def _write(target: Path, arrays: Arrays, whole: str) -> None:
    """Write beside `target`, then rename. A damaged entry of that name is moved away first."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        if target.exists():
            os.rename(target, temporary / "damaged")
        new = temporary / "new"
        new.mkdir()
        for field, array in arrays._asdict().items():
            np.save(new / f"{field}.npy", array)
        (new / "meta.json").write_text(json.dumps(_meta(arrays, whole)))
        try:
            os.rename(new, target)
        except OSError:
            if not target.exists():  # otherwise another process has written the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
