"""The image sets: the contents of the official distributions, and loading through the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import cache, fetch, readers
from .cache import Arrays, Entry


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """The images of one set at their original size.

    train_x, test_x: uint8 (N, H, W, C) with C = 1 or 3. train_y, test_y: int64 (N,), labels 0..K-1.
    digest: SHA-256 over decoded pixels and labels, shapes included, train then test.
    complete: whether this is the official distribution that published figures use.
    note: what is partial or substituted, "" otherwise.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    digest: str
    complete: bool
    note: str


Images = Mapping[str, ImageSet | None]  # by name; None for a set that is missing


class MissingData(UserError):
    """The set has no files, as opposed to damaged or incomplete ones."""


@dataclass(frozen=True, kw_only=True)
class Official:
    """The contents of a complete distribution. train, test: numbers of images, None if unknown; then the number of test images is
    known to be a multiple of `test_multiple`. balanced: equally many images of every class."""

    classes: int
    train: int | None
    test: int | None
    balanced: bool = False
    digest: str | None = None
    test_multiple: int = 1
    substitute: str = ""  # what it replaces, for the note; a substitute is never complete


OFFICIAL = {
    "cifar100": Official(
        classes=100,
        train=50_000,
        test=10_000,
        balanced=True,
        digest="bf7e3bf0060884123ceb697998cf8e8f294bc2de18405d8d23dcbfe02a0d9322",
    ),
    "cifar10": Official(classes=10, train=50_000, test=10_000, balanced=True),
    "mnist": Official(
        classes=10,
        train=60_000,
        test=10_000,
        digest="1ab36173c5442eefac1052e16cd4f6fadab376babf2649f6ff42f84b978b3824",
    ),
    "fashion_mnist": Official(
        classes=10,
        train=60_000,
        test=10_000,
        balanced=True,
        digest="e82adc0c97c6273e3db09f058ebe2cde03fe9e1df16f9d9054d558032e2a0f39",
    ),
    "svhn": Official(classes=10, train=73_257, test=26_032),
    # The counts of ACL's archive are not published, but CACL's published accuracy on it is 143/153.
    "notmnist": Official(classes=10, train=None, test=None, test_multiple=153),
    "notmnist_small": Official(
        classes=10,
        train=16_854,
        test=1_870,  # its 18,726 files without the two unreadable ones
        substitute="notMNIST_small with a fixed 90/10 split in place of the ACL archive",
    ),
    "miniimagenet": Official(classes=100, train=50_000, test=10_000, balanced=True),
    "digits": Official(
        classes=10,
        train=1_195,
        test=602,
        digest="11242647ade1e6908eb7a6577611835a4a12468d8aff5efdfba71298846e5438",
    ),
}
NAMES = (*readers.FIND, "digits")
ALTERED = "files differ from the official ones"


def has_one_form(name: str) -> bool:
    """Whether every complete distribution of this set holds the same images in the same order."""
    return OFFICIAL[name].digest is not None or bool(fetch.checksums(name))


def load(name: str, data_dir: Path | None = None, *, partial: bool = False) -> ImageSet:
    """The set from the files in `data_dir` (default: <cache>/downloads), decoded on first use and memory-mapped after.

    partial: accept fewer images than the official distribution has, or altered files; they are never `complete`.
    Raises UserError for an unknown name and for missing, damaged, mislabelled or incomplete files.
    """
    if name == "digits":
        return _digits()
    source = _source(name, data_dir)
    key = cache.fingerprint(source.files)
    entry = cache.lookup(name, key)
    if entry is None:
        with cache.decoding(name):
            entry = cache.lookup(name, key)  # another process may have decoded it meanwhile
            if entry is None:
                return _decode(name, source, key, partial)
    return _checked(name, source, entry, partial)


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
    if name == "digits":
        return _digits()
    source = _source(name, data_dir)
    with cache.decoding(name):
        return _decode(name, source, cache.fingerprint(source.files), partial)


def get(name: str, data_dir: Path | None = None, report: Callable[[str], None] = print) -> None:
    """Download what is missing of the set into `data_dir` (default: <cache>/downloads) and verify it.

    Raises UserError if it cannot be downloaded or may not be redistributed; the message then says how to get it.
    """
    folder = _folder(name, data_dir)
    if name == "digits":
        report("digits: comes with scikit-learn, nothing to fetch")
        return
    remotes = fetch.remotes(name)
    try:
        if readers.find(name, folder) is not None:
            verify(name, folder)
            report(f"{name}: already in {folder}")
            return
    except UserError as error:
        if not remotes:
            raise
        report(str(error))
    if not remotes:
        raise UserError(f"{name} cannot be fetched: {readers.HOW_TO[name]}")
    if name == "notmnist":
        report(f"notmnist: fetching notMNIST_small as a substitute; {readers.HOW_TO[name]}")
    for remote in remotes:
        fetch.download(remote.urls, folder / remote.path, md5=remote.md5, size=remote.size, report=report)
    verify(name, folder)
    report(f"{name}: verified in {folder}")


def _folder(name: str, data_dir: Path | None) -> Path:
    if name not in NAMES:
        raise UserError(f"unknown image set {name!r}", f"choose one of {', '.join(NAMES)}")
    return cache.root() / "downloads" if data_dir is None else Path(data_dir)


def _source(name: str, data_dir: Path | None) -> readers.Source:
    folder = _folder(name, data_dir)
    source = readers.find(name, folder)
    if source is None:
        remedy = readers.HOW_TO["miniimagenet"] if name == "miniimagenet" else f"fetch it with `benchsuite data get {name}`"
        raise MissingData(
            f"{name} not found in {folder} (looked for {readers.LAYOUTS[name]})",
            f"{remedy}, or name the folder that has it with --data-dir",
        )
    return source


def _decode(name: str, source: readers.Source, key: str, partial: bool) -> ImageSet:
    arrays, note = source.read()
    official = OFFICIAL[source.distribution]
    if official.digest is None and not _shortfall(official, arrays) and fetch.altered(name, source.files):
        note = "; ".join(filter(None, [note, ALTERED]))  # stored with the decoded images, so that the files are not hashed again
    entry = Entry(arrays, cache.digest(arrays), note)
    _checked(name, source, entry, partial)  # checked before it is stored: the cache holds no rejected set
    return _checked(name, source, cache.store(name, key, arrays, note), partial)


def _checked(name: str, source: readers.Source, entry: Entry, partial: bool) -> ImageSet:
    """The entry as an ImageSet, compared with the official distribution."""
    official = OFFICIAL[source.distribution]
    a = entry.arrays
    counts = [np.bincount(y, minlength=official.classes) for y in (a.train_y, a.test_y)]
    for count, part in zip(counts, ("training", "test"), strict=True):
        if not count.all():
            raise UserError(
                f"{name}: {source.place} has no {part} image of class {int(np.argmin(count))}", "every class needs some"
            )
    what, altered = _shortfall(official, a), ALTERED in entry.note
    notes = [official.substitute, entry.note]
    if what:
        if not partial:
            remedy = "lay out the whole set" if name == "miniimagenet" else f"fetch it with `benchsuite data get {name}`"
            raise UserError(
                f"{name}: {source.place} holds {what}",
                f"{remedy}, or run on what is there with --partial-data (never comparable with published figures)",
            )
        notes.append(what)
    elif altered and not partial:
        raise UserError(
            f"{name}: {source.place}: {ALTERED}",
            f"fetch them with `benchsuite data get {name}`, "
            "or run on what is there with --partial-data (never comparable with published figures)",
        )
    elif official.digest is not None and entry.digest != official.digest:
        raise UserError(
            f"{name}: {source.place}: pixels or labels differ from the official set",
            "the files are damaged or altered, fetch them again",
        )
    return ImageSet(
        name=name,
        **a._asdict(),
        digest=entry.digest,
        complete=not (what or altered or official.substitute),
        note="; ".join(filter(None, notes)),
    )


def _shortfall(official: Official, arrays: Arrays) -> str | None:
    """How the numbers of images differ from the official distribution; None if they do not."""
    counts = [np.bincount(y, minlength=official.classes) for y in (arrays.train_y, arrays.test_y)]
    expected = (official.train, official.test)
    found = tuple(int(count.sum()) for count in counts)
    uneven = official.balanced and any(count.min() != count.max() for count in counts)
    if found[1] % official.test_multiple:
        return f"{found[1]:,} test images, which is no multiple of {official.test_multiple} as published accuracies need"
    if not uneven and all(n is None or n == f for n, f in zip(expected, found, strict=True)):
        return None
    what = " and ".join(f"{f:,} of {n:,} {part}" for f, n, part in zip(found, expected, ("training", "test"), strict=True))
    return f"{what} images" + ", unevenly over the classes" * uneven


@functools.cache  # reading the text takes as long as a short training
def _digits() -> ImageSet:
    """The 1,797 digits in scikit-learn, values 0..16 scaled to 0..255.

    That copy has no split: a fixed random two thirds of each class are for training.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = np.rint(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    y = labels.astype(np.int64)
    train, test = readers.split_classes(y, np.random.default_rng(0), lambda n: n * 2 // 3)
    arrays = Arrays(x[train], y[train], x[test], y[test])
    for array in arrays:
        array.flags.writeable = False  # like arrays from the cache
    source = readers.Source(Path("scikit-learn"), (), lambda: (arrays, ""), "digits")
    return _checked("digits", source, Entry(arrays, cache.digest(arrays), ""), False)
