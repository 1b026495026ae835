"""Loading data sets through the cache, and comparing them with the official distributions."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import cache, fetch
from .cache import Arrays, Entry
from .declared import DataSet, Official, Source, datasets


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """The images of one set at their original size.

    train_x, test_x: uint8 (N, H, W, C) with C = 1 or 3. train_y, test_y: int64 (N,), labels 0..K-1.
    digest: SHA-256 over decoded pixels and labels, shapes included, train then test.
    complete: whether nothing is missing, and it is the official distribution where there is one.
    note: what is partial or substituted, "" otherwise.
    own: whether it is declared outside of this package: then it is never taken for a published one.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    digest: str
    complete: bool
    note: str
    own: bool = False


Images = Mapping[str, ImageSet | None]  # by name; None for a set that is missing


class MissingData(UserError):
    """The set has no files, as opposed to damaged or incomplete ones."""


ALTERED = "files differ from the official ones"


def has_one_form(name: str) -> bool:
    """Whether every complete distribution of this set holds the same images in the same order."""
    official = datasets.get(name).official
    return datasets.is_built_in(name) and official is not None and bool(official.digest or official.md5)


def load(name: str, data_dir: Path | None = None, *, partial: bool = False) -> ImageSet:
    """The set from the files in `data_dir` (default: <cache>/downloads), decoded on first use and memory-mapped after.

    partial: accept fewer images than the official distribution has, or altered files; they are never `complete`.
    Raises UserError for an unknown name and for missing, damaged, mislabelled or incomplete files.
    """
    dataset = datasets.get(name)
    source = _source(dataset, data_dir)
    if not source.files:
        return _packaged(dataset)
    key = _key(dataset, source)
    entry = cache.lookup(name, key)
    if entry is None:
        with cache.decoding(name):
            entry = cache.lookup(name, key)  # another process may have decoded it meanwhile
            if entry is None:
                return _decode(dataset, source, key, partial)
    return _checked(dataset, source, entry, partial)


def load_all(
    names: Iterable[str],
    data_dir: Path | None = None,
    *,
    partial: bool = False,
    given: Images | None = None,
) -> dict[str, ImageSet | None]:
    """Each set by name; None if its files are missing, which only `partial` accepts. given: sets that are loaded already."""
    found = dict[str, ImageSet | None]()
    for name in names:
        try:
            here = given is not None and name in given and (partial or given[name] is not None)
            found[name] = given[name] if given and here else load(name, data_dir, partial=partial)
        except MissingData:
            if not partial:
                raise
            found[name] = None  # damaged files are still an error
    return found


def verify(name: str, data_dir: Path | None = None, *, partial: bool = False) -> ImageSet:
    """Like `load`, but decodes the files again whatever the cache holds, and repairs the cache if it differs."""
    dataset = datasets.get(name)
    source = _source(dataset, data_dir)
    if not source.files:
        return _packaged(dataset)
    with cache.decoding(name):
        return _decode(dataset, source, _key(dataset, source), partial)


def get(name: str, data_dir: Path | None = None, report: Callable[[str], None] = print) -> None:
    """Download what is missing of the set into `data_dir` (default: <cache>/downloads) and verify it.

    Raises UserError if it cannot be downloaded or may not be redistributed; the message then says how to get it.
    """
    dataset = datasets.get(name)
    folder = _folder(dataset, data_dir)
    theirs: Callable[[Path], None] | None = getattr(dataset.reader, "fetch", None)
    try:
        source = dataset.reader(folder)
        if source is not None and not source.files:
            report(f"{name}: comes with {source.place}, nothing to fetch")
            return
        if source is not None:
            verify(name, data_dir)
            report(f"{name}: already in {folder}")
            return
    except UserError as error:
        if not dataset.fetch and theirs is None:
            raise
        report(str(error))
    if theirs is not None:
        theirs(folder)
    elif not dataset.fetch:
        raise UserError(f"{name} cannot be fetched: {_how_to(dataset)}")
    else:
        if dataset.how_to:
            report(f"{name}: {dataset.how_to}")
        _fetch(dataset, folder, report)
    verify(name, data_dir)
    report(f"{name}: verified in {folder}")


def _fetch(dataset: DataSet, folder: Path, report: Callable[[str], None]) -> None:
    """Download the first form of a set that can be had."""
    for number, form in enumerate(dataset.fetch, 1):
        try:
            for remote in form:
                fetch.download(remote.urls, folder / remote.path, md5=remote.md5, size=remote.size, report=report)
            return
        except UserError as error:
            if number == len(dataset.fetch):
                raise
            report(f"{error.problem}; trying another form of {dataset.name}")


@functools.lru_cache(maxsize=8)
def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all training images, in units of pixel / 255, to four digits.

    They are computed from counts of the 256 values, so they are the same on every machine."""
    means, stds = [], []
    for channel in range(images.train_x.shape[3]):
        counts: np.ndarray = np.zeros(256, np.int64)
        for part in np.array_split(images.train_x, max(1, len(images.train_x) // 1000)):
            counts += np.bincount(part[..., channel].ravel(), minlength=256)
        n, total, squares = int(counts.sum()), int(counts @ np.arange(256)), int(counts @ np.arange(256) ** 2)
        means.append(round(total / n / 255, 4))
        stds.append(round(max(0, n * squares - total**2) ** 0.5 / n / 255, 4))
    return tuple(means), tuple(stds)


def _folder(dataset: DataSet, data_dir: Path | None) -> Path:
    if dataset.folder is not None:
        return Path(dataset.folder)
    return cache.root() / "downloads" if data_dir is None else Path(data_dir)


def _how_to(dataset: DataSet) -> str:
    """What to do about missing files."""
    if dataset.fetch or hasattr(dataset.reader, "fetch"):
        return f"fetch it with `benchsuite data get {dataset.name}`"
    return dataset.how_to or "put its files there"


def _source(dataset: DataSet, data_dir: Path | None) -> Source:
    folder = _folder(dataset, data_dir)
    source = dataset.reader(folder)
    if source is None:
        layouts = dataset.layouts or getattr(dataset.reader, "layout", "")
        elsewhere = "name the folder that has it with --data-dir" if dataset.folder is None else "change its `folder`"
        looked = f" (looked for {layouts})" if layouts else ""
        raise MissingData(f"{dataset.name} not found in {folder}{looked}", f"{_how_to(dataset)}, or {elsewhere}")
    return source


def _key(dataset: DataSet, source: Source) -> str:
    """What decides the decoded images: the state of the files, the reader's settings and the code of a reader from elsewhere."""
    settings = source.settings
    if not datasets.is_built_in(dataset.name):
        function = getattr(dataset.reader, "func", dataset.reader)
        code = getattr(function, "__code__", None) or type(function).__call__.__code__
        own = Path(code.co_filename)
        if Path(__file__).parent not in own.parents:
            settings += hashlib.sha256(own.read_bytes() if own.is_file() else code.co_code).hexdigest()
    return cache.fingerprint(source.files, settings)


def _decode(dataset: DataSet, source: Source, key: str, partial: bool) -> ImageSet:
    arrays, note = source.read()
    official = source.official or dataset.official
    if official and official.md5 and not _shortfall(dataset, official, arrays) and fetch.altered(official.md5, source.files):
        note = "; ".join(filter(None, [note, ALTERED]))  # stored with the decoded images, so that the files are not hashed again
    entry = Entry(arrays, cache.digest(arrays), note)
    _checked(dataset, source, entry, partial)  # checked before it is stored: the cache holds no rejected set
    return _checked(dataset, source, cache.store(dataset.name, key, arrays, note), partial)


def _checked(dataset: DataSet, source: Source, entry: Entry, partial: bool) -> ImageSet:
    """The entry as an ImageSet, compared with the official distribution."""
    name, a, official = dataset.name, entry.arrays, source.official or dataset.official
    for y, part in ((a.train_y, "training"), (a.test_y, "test")):
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < dataset.classes:
            wrong = int(y.max()) if y.min() >= 0 else int(y.min())
            raise UserError(
                f"{name}: {source.place} has {part} images of class {wrong}, but {name} has classes 0..{dataset.classes - 1}",
                "state the right number of classes, or take away the images",
            )
        count = np.bincount(y, minlength=dataset.classes)
        if not count.all():
            raise UserError(
                f"{name}: {source.place} has no {part} image of class {int(np.argmin(count))}", "every class needs some"
            )
    what, altered = _shortfall(dataset, official, a) if official else None, ALTERED in entry.note
    notes = [official.substitute if official else "", entry.note]
    again = f"fetch it with `benchsuite data get {name}`" if dataset.fetch else "lay out the whole set"
    anyway = "or run on what is there with --partial-data (never comparable with published figures)"
    if what:
        if not partial:
            raise UserError(f"{name}: {source.place} holds {what}", f"{again}, {anyway}")
        notes.append(what)
    elif altered and not partial:
        raise UserError(f"{name}: {source.place}: {ALTERED}", f"{again.replace('it with', 'them with')}, {anyway}")
    elif official and official.digest is not None and entry.digest != official.digest:
        raise UserError(
            f"{name}: {source.place}: pixels or labels differ from the official set",
            "the files are damaged or altered, fetch them again",
        )
    return ImageSet(
        name=name,
        **a._asdict(),
        digest=entry.digest,
        complete=not (what or altered or (official and official.substitute)),
        note="; ".join(filter(None, notes)),
        own=not datasets.is_built_in(name),
    )


def _shortfall(dataset: DataSet, official: Official, arrays: Arrays) -> str | None:
    """How the numbers of images differ from the official distribution; None if they do not."""
    counts = [np.bincount(y, minlength=dataset.classes) for y in (arrays.train_y, arrays.test_y)]
    expected = (official.train, official.test)
    found = tuple(int(count.sum()) for count in counts)
    uneven = official.balanced and any(count.min() != count.max() for count in counts)
    if found[1] % official.test_multiple:
        return f"{found[1]:,} test images, which is no multiple of {official.test_multiple} as published accuracies need"
    if not uneven and all(n is None or n == f for n, f in zip(expected, found, strict=True)):
        return None
    what = " and ".join(
        f"{f:,} of {n:,} {part}" if n is not None else f"{f:,} {part}"
        for f, n, part in zip(found, expected, ("training", "test"), strict=True)
    )
    return f"{what} images" + ", unevenly over the classes" * uneven


@functools.cache  # decoding may take as long as a short training
def _packaged(dataset: DataSet) -> ImageSet:
    """A set whose images come with a package, and need no cache on disk."""
    source = _source(dataset, None)
    arrays, note = source.read()
    for array in arrays:
        array.flags.writeable = False  # like arrays from the cache
    return _checked(dataset, source, Entry(arrays, cache.digest(arrays), note), False)
