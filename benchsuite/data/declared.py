"""What a data set is: where its files are, who reads them, and what its official distribution holds.

    flowers = declare(DataSet(name="flowers", classes=5, folder="photos", reader=ImageFolder(size=32)))

The built-in sets are declared in `builtin/`, one file each, in the same way.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..registry import Registry
from .cache import Arrays
from .fetch import Remote


@dataclass(frozen=True, kw_only=True)
class Official:
    """The contents of a complete distribution. train, test: numbers of images, None if unknown; then the number of test images is
    known to be a multiple of `test_multiple`. balanced: equally many images of every class.

    digest: of its pixels and labels. md5: of its files, by name, where no digest of the pixels is known."""

    train: int | None = None
    test: int | None = None
    balanced: bool = False
    digest: str | None = None
    md5: Mapping[str, str] | None = None
    test_multiple: int = 1
    substitute: str = ""  # what it replaces, for the note; a substitute is never complete


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one data set, as its reader found them.

    place: the folder or archive, for messages.
    files: everything that `read` reads; none if the images come with a package.
    read: decodes them; the second value says what was left out, or "".
    settings: of the reader, where they decide what `read` returns.
    official: whose contents apply, where a reader knows several distributions.
    """

    place: Path
    files: Sequence[Path]
    read: Callable[[], tuple[Arrays, str]]
    settings: str = ""
    official: Official | None = None


Reader = Callable[[Path], Source | None]  # finds the files of a set in a folder, without reading pixels; None if there are none


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """A declared set of images.

    classes: number of classes; labels are 0..classes-1.
    reader: finds and decodes its files (`benchsuite.data.readers`).
    folder: where its files are, relative to the file that declares it; None: below the data folder (--data-dir).
    layouts: what the reader looks for, in words; by default the reader says it.
    fetch: files to download; several groups are several forms of the same set, tried in this order.
    how_to: how to come by the files, where they cannot be fetched; with `fetch`, what to know of what is fetched.
    official: what a complete set holds, None if nobody has published that.
    """

    name: str
    classes: int
    reader: Reader
    folder: Path | str | None = None
    layouts: str = ""
    fetch: tuple[tuple[Remote, ...], ...] = ()
    how_to: str = ""
    official: Official | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            raise ValueError(f"a data set's name is letters, digits and _ . -, got {self.name!r}")
        if self.classes < 1:
            raise ValueError(f"{self.name}: classes must be at least 1, got {self.classes}")

    @property
    def origin(self) -> str:
        """Where its files come from, in words."""
        if self.fetch or hasattr(self.reader, "fetch"):
            return f"`benchsuite data get {self.name}`"
        return f"you bring it: {self.how_to}" if self.how_to else "read where it is"


datasets: Registry[DataSet] = Registry("data set", "benchsuite.data.builtin", "call declare(DataSet(...)) once")


def declare(dataset: DataSet) -> DataSet:
    """Register a data set by its name, and return it with an absolute folder."""
    caller = sys._getframe(1).f_globals
    if dataset.folder is not None:
        home = Path(caller.get("__file__") or "").parent
        dataset = replace(dataset, folder=(home / Path(dataset.folder).expanduser()).absolute())
    datasets.add(dataset.name, dataset, caller["__name__"])
    return dataset
