"""Downloading the official files: resumable, verified, from the first mirror that responds."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import locked

CHUNK = 1 << 18  # bytes
TIMEOUT = 60  # seconds without a response


@dataclass(frozen=True)
class Remote:
    """A file to download. path: its place relative to the data folder."""

    urls: tuple[str, ...]
    path: str
    md5: str | None = None
    size: int | None = None


def altered(md5: Mapping[str, str], files: Iterable[Path]) -> bool:
    """Whether any of the files differs from the official file of that name. md5: of the official ones, by name."""
    return any(file.name in md5 and _md5(file) != md5[file.name] for file in files)


def _md5(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def download(
    urls: Sequence[str],
    path: Path,
    *,
    md5: str | None = None,
    size: int | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Download `path` from the first of `urls` that delivers it completely, unless a correct file exists.

    Partial data is kept in `path.part`; an interrupted download resumes from there at the next attempt or call. A complete file
    with a wrong checksum is deleted. Raises UserError with what went wrong at each address.
    """

    def mismatch(file: Path) -> str | None:
        """What is wrong with the file, if anything."""
        if size is not None and file.stat().st_size != size:
            return f"has {file.stat().st_size:,} bytes, expected {size:,}"
        if md5 is not None and (found := _md5(file)) != md5:
            return f"has md5 {found}, expected {md5}"
        return None

    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}", "choose another folder with --data-dir") from None
    with locked(path.with_name(path.name + ".lock")):
        if path.exists():
            wrong = mismatch(path)
            if not wrong:
                return
            report(f"{path} {wrong}: fetching it again")
        failures: dict[str, str] = {}
        # Two rounds: the second resumes a broken download, or starts again after a wrong checksum.
        for url in [*urls, *urls]:
            try:
                _transfer(url, part, report)
                wrong = mismatch(part)
                if not wrong:
                    os.replace(part, path)
                    return
                part.unlink()
                report(f"{part} {wrong}: deleted")
                failures[url] = f"what it sent {wrong}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures[url] = " ".join(str(error).split()) or type(error).__name__
    reasons = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise UserError(f"{path.name} could not be fetched ({reasons})", f"try again, or put the file into {path.parent} yourself")


def _transfer(url: str, part: Path, report: Callable[[str], None]) -> None:
    """Complete `part`. Raises OSError or HTTPException on failure; partial data is kept."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "benchsuite", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing left to send: the part is complete or belongs to another file
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            part.unlink()
        raise
    with answer:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        if answer.status == 206:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                part.unlink()
                raise OSError("the server sent another range than was asked for")
            total = total + start if total is not None else None
        else:
            start = 0  # the server ignores ranges
        got, told = start, 0
        with part.open("ab" if start else "wb") as file:
            while block := answer.read(CHUNK):
                file.write(block)
                got += len(block)
                if total and got * 10 // total > told:
                    told = got * 10 // total
                    report(f"{part.stem}: {got / 1e6:.1f} of {total / 1e6:.1f} MB")
    if total is not None and got < total:
        raise OSError(f"the connection closed after {got:,} of {total:,} bytes")
